"""Nodes that join while a search runs: what they lack is sent, then their slots count; none of them ends the run."""

from __future__ import annotations

import threading

import pytest

from autopeft.errors import EnvironmentFault
from autopeft.executors import _late, _nodes
from autopeft.executors._late import Newcomers
from autopeft.executors._nodes import Luggage


def node(name, cpus=2, alive=True):
    return {"NodeID": name, "Alive": alive, "Resources": {"CPU": float(cpus)}}


def newcomers(nodes, luggage=None):
    start = [node("old")]
    found = Newcomers(start, lambda one: int(one["Resources"].get("CPU", 0)), luggage, lambda: nodes)
    found.start = start
    return found


def look(found):
    """What is found once those who are new have been welcomed."""
    found.look()
    for thread in threading.enumerate():
        if thread.name == "autopeft-newcomer":
            thread.join(10)
    return found.look()


def test_slots_come_and_go_with_nodes():
    nodes = [node("old")]
    found = newcomers(nodes)
    assert look(found) == 2
    nodes.append(node("new", 3))
    nodes.append(node("driver", 0))
    assert look(found) == 5
    nodes[0] = node("old", alive=False)
    assert look(found) == 3
    assert [one["NodeID"] for one in found.start] == ["old", "new"], "those are cleaned up in the end"


def test_a_newcomer_is_sent_what_it_lacks(monkeypatch):
    asked = []

    def ask(nodes, question, luggage):
        asked.append((nodes[0]["NodeID"], question.__name__, dict(luggage.parcels)))
        return [["/data"] if question is Luggage.lacks else None]

    packed = []
    monkeypatch.setattr(_nodes, "ask", ask)
    monkeypatch.setattr(_nodes, "parcel", lambda path: packed.append(path) or {"a": 1})
    found = newcomers([node("old"), node("new"), node("newer")], Luggage(None, "token", {}))
    assert look(found) == 6
    assert ("new", "settle", {"/data": {"a": 1}}) in asked
    assert ("newer", "settle", {"/data": {"a": 1}}) in asked


def test_one_that_cannot_take_trials_is_said_once_and_plugged(monkeypatch, capsys):
    def ask(nodes, question, luggage):
        raise EnvironmentFault("node 10.0.0.9: it lacks a package")

    plugged = []
    monkeypatch.setattr(_nodes, "ask", ask)
    monkeypatch.setattr(_late, "plug", lambda one: plugged.append(one["NodeID"]))
    found = newcomers([node("old"), node("new")], Luggage(None, "token", {}))
    assert look(found) == look(found) == 2
    assert plugged == ["new"]
    assert capsys.readouterr().err == "a node joined that takes no trials: node 10.0.0.9: it lacks a package\n"


def test_that_no_node_is_left_is_said_once(capsys):
    nodes = [node("old", alive=False)]
    found = newcomers(nodes)
    assert look(found) == look(found) == 0
    assert capsys.readouterr().err.count("no node of the Ray cluster has room for a trial any more") == 1
    nodes.append(node("new"))
    assert look(found) == 2
    nodes.clear()
    assert look(found) == 0
    assert capsys.readouterr().err.count("no node of the Ray cluster") == 1


def test_it_looks_now_and_then():
    found = newcomers([node("old")])
    assert found.slots() is None
    assert found._looker is None, "it is not time yet"
    found._next_look = 0.0
    first = found.slots()
    found._looker.join(10)
    assert {first, found.slots()} == {None, 2}
    assert found.slots() is None, "said once"


def test_a_head_that_does_not_answer_holds_nothing_up():
    """`ray.nodes()` hangs there, or raises in the end. There is one look at a time."""
    asked, answers = [], threading.Event()

    def hang():
        asked.append(1)
        answers.wait(60)
        raise RuntimeError("no connection to the head")

    found = Newcomers([node("old")], lambda one: 1, None, hang)
    for _ in range(3):
        found._next_look = 0.0
        assert found.slots() is None
    assert len(asked) == 1
    answers.set()
    found._looker.join(10)
    assert found.slots() is None


def test_a_worker_on_a_late_node_waits_for_what_is_laid_down_there(tmp_path, monkeypatch):
    place = tmp_path / "place"
    threading.Timer(0.05, place.mkdir).start()
    _nodes._wait_for(place, "/data")
    assert place.exists()
    monkeypatch.setattr(_nodes, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(EnvironmentFault, match="joined late, does not see /data"):
        _nodes._wait_for(tmp_path / "other", "/data")
