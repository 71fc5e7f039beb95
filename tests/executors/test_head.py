"""A cluster's head that is gone: the run ends, with a message, before Ray ends the process, and if a call hangs, too."""

from __future__ import annotations

import socket
import threading

import pytest

from autopeft.errors import EnvironmentFault
from autopeft.executors import _head, _nodes
from autopeft.executors._head import Head, HeadGone
from autopeft.executors._tune import Bridge, Left


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def address(server):
    return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def clock(monkeypatch):
    """Time that stands still; the thread looks all the time."""
    now = [0.0]
    monkeypatch.setattr(_head.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(_head, "LOOK_SECONDS", 0.01)
    return now


def test_a_head_that_answers_is_there_however_long_it_takes(server, clock):
    head = Head(address(server), 60.0, lambda code: pytest.fail("it is there"))
    try:
        for moment in (30.0, 70.0, 1000.0):
            clock[0] = moment
            server.accept()[0].close()  # it looked before
            server.accept()[0].close()  # it looked since
            head.require()
    finally:
        head.close()


@pytest.mark.parametrize("is_noticed", [True, False])
def test_a_head_that_is_gone_ends_the_run_and_if_that_hangs_the_process(server, clock, capsys, is_noticed):
    """Whoever raised the message says it; else the process does before it ends."""
    ended, codes = threading.Event(), []
    head = Head(address(server), 60.0, lambda code: (codes.append(code), ended.set()))
    server.close()
    clock[0] = 39.0
    head.require()
    assert not ended.wait(0.1)
    clock[0] = 41.0
    if is_noticed:
        with pytest.raises(HeadGone, match=r"not answered for 40 s\. Nothing told so far is lost: `autopeft resume`"):
            head.require()
        head.close()
    assert not ended.wait(0.1), "the run may end by itself"
    clock[0] = 53.0
    assert ended.wait(60)
    assert codes == [EnvironmentFault.exit_code]
    said = capsys.readouterr().err
    assert (said == "") if is_noticed else said.startswith("error: the head of the Ray cluster at 127.0.0.1:")


def test_a_run_that_has_ended_is_not_ended_again(server, clock):
    head = Head(address(server), 60.0, lambda code: pytest.fail("it was closed"))
    server.close()
    head.close()
    clock[0] = 1000.0
    head._thread.join(60)
    assert not head._thread.is_alive()


def test_the_bridge_leaves_at_once_and_kills_no_trial_as_ray_would_hang(monkeypatch):
    class Gone:
        def require(self):
            raise HeadGone("gone")

    monkeypatch.setattr("autopeft.executors._tune.kill", lambda trial: pytest.fail("that call would hang"))
    bridge = Bridge([], slots=1, trial_seconds=None, interrupts=[], head=Gone())
    with pytest.raises(Left):
        bridge.watch([object()])
    assert isinstance(bridge.fault, HeadGone)
    assert not isinstance(Left(), Exception), "Tune would clean up, and hang"


def test_nodes_are_not_cleaned_up_through_a_head_that_is_gone(tmp_path, monkeypatch):
    class Portable:
        reads, folder = (), str(tmp_path)

    asked = []
    monkeypatch.setattr(_nodes, "ask", lambda nodes, question, *rest, **how: asked.append(question.__name__) or [])
    with pytest.raises(HeadGone), _nodes.shipped(Portable(), []):
        raise HeadGone("gone")
    assert asked == ["lacks", "settle"]
    assert list(tmp_path.iterdir()) == [], "the mark is gone"
