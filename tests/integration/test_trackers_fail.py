"""MLflow down, silent, slow, dying, or met by many at once: the search does not wait, and nothing is lost."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from mlflow import MlflowClient

from autopeft import plugins
from autopeft.errors import EnvironmentFault
from autopeft.history import History
from autopeft.trackers import mlflow as trackers
from autopeft.trackers.mlflow import MLflow
from tests.reports import histories as h
from tests.trackers.servers import Proxy
from tests.trackers.stores import run_folder, runs

# Of the search's own thread, for all events of a search whose trials would take minutes: far below 2 %.
AT_ONCE = 0.5
NOTHING = {"runs": 0, "params": 0, "metrics": 0, "tags": 0, "artifacts": 0}
PROJECT = Path(__file__).resolve().parents[2]


def uri(folder):
    return f"sqlite:///{folder.parent / 'mlflow.db'}"


def timed(tracker, events):
    """Seconds for all events, and for `finish`."""
    history = History(events[:1])
    tracker.start(history)
    began = time.monotonic()
    for event in events[1:]:
        history.apply(event)
        tracker.handle(event)
    handled = time.monotonic()
    tracker.finish()
    return handled - began, time.monotonic() - handled


def complaints(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.strip()]


@pytest.fixture
def closed_port():
    """One that is taken, and where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_down_from_the_start(tmp_path, closed_port, capsys):
    folder, events = run_folder(tmp_path), h.search(40)
    tracker = MLflow(folder, uri=f"http://me:pass-word@127.0.0.1:{closed_port}")
    handling, finishing = timed(tracker, events)
    assert handling < AT_ONCE
    assert finishing < 15
    assert tracker.is_behind
    (said,) = complaints(capsys)
    assert f"`autopeft track {folder}`" in said
    assert f"127.0.0.1:{closed_port}: nobody listens there. The search goes on" in said
    assert "pass-word" not in said
    with pytest.raises(EnvironmentFault, match="cannot be written") as caught:
        tracker.fill(History(events))
    assert "pass-word" not in str(caught.value)
    assert caught.value.exit_code == 5
    # The store comes up later, here another one: `track` brings all of it.
    assert MLflow(folder).fill(History(events))["runs"] == 1 + len(History(events).trials)


def test_silent(tmp_path, capsys):
    """It takes the connection and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(5)
        tracker = MLflow(run_folder(tmp_path), uri=f"http://127.0.0.1:{server.getsockname()[1]}", finish_seconds=1.0)
        handling, finishing = timed(tracker, h.search(40))
        assert handling < AT_ONCE
        assert finishing < 3
    assert len(complaints(capsys)) == 1


def test_a_silent_server_costs_seconds_at_the_end_of_a_search(tmp_path, capsys):
    """By default: to write what is left, and to look up the address that is shown."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(5)
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        folder, events = run_folder(tmp_path), h.search(40)
        _, finishing = timed(MLflow(folder, uri=address), events)
        began = time.monotonic()
        shown = MLflow(folder, uri=address).open_command(History(events))
        assert finishing < trackers.BEHIND_SECONDS + 2
        assert time.monotonic() - began < trackers.LOOKUP_SECONDS + 2
        assert shown.startswith(f"{address}/#/experiments")
    assert f"autopeft track {folder}" in complaints(capsys)[0]


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, b"You are not authenticated.", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        (403, b"Permission denied", "name an experiment of your own in trackers.mlflow.experiment"),
        (403, b"Invalid Host header - possible DNS rebinding attack detected", "Invalid Host header"),
        (507, b"no space left on device", "no space left on device"),
    ],
)
def test_a_server_that_refuses(tmp_path, capsys, status, body, said):
    """One message, which says what to do about it where that is known; the search goes on."""
    folder, events = run_folder(tmp_path), h.search(6)
    proxy = Proxy(0)
    proxy.refusal, proxy.refused_with = status, body
    try:
        tracker = MLflow(folder, uri=proxy.address.replace("//", "//me:pass-word@"))
        history = History(events[:1])
        tracker.start(history)
        thread = tracker._thread
        for event in events[1:]:
            history.apply(event)
            tracker.handle(event)
        tracker.finish()
        thread.join(280)
        with pytest.raises(EnvironmentFault) as caught:
            tracker.fill(history)
    finally:
        proxy.close()
    complaint = capsys.readouterr().err
    assert complaint.count("The search goes on and nothing is lost") == 1
    for text in (complaint, str(caught.value)):
        assert said in text
        assert "pass-word" not in text


def test_slow(tmp_path, capsys, monkeypatch):
    """Each new run takes five seconds: the search does not wait, `finish` gives up, and so does the thread then."""
    create, made = MlflowClient.create_run, []

    def slow(self, *args, **kwargs):
        time.sleep(5)
        made.append(1)
        return create(self, *args, **kwargs)

    folder, events = run_folder(tmp_path), h.search(40)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", slow)
        tracker = MLflow(folder, finish_seconds=1.0)
        history = History(events[:1])
        tracker.start(history)
        thread = tracker._thread
        began = time.monotonic()
        for event in events[1:]:
            history.apply(event)
            tracker.handle(event)
        assert time.monotonic() - began < AT_ONCE
        began = time.monotonic()
        tracker.finish()
        assert time.monotonic() - began < 3
        thread.join(60)
        assert not thread.is_alive()
        assert len(made) <= 2
    assert len(complaints(capsys)) == 1
    MLflow(folder).fill(history)
    assert len(runs(uri(folder))) == 1 + len(history.trials)
    assert MLflow(folder).fill(history) == NOTHING


def test_dying_midway(tmp_path, capsys, monkeypatch):
    """Some calls get through, one gets through and its answer is lost, then none: `track` adds what is missing."""
    log, calls = MlflowClient.log_batch, []

    def dying(self, *args, **kwargs):
        calls.append(1)
        if len(calls) <= 4:
            log(self, *args, **kwargs)
        if len(calls) >= 4:
            raise ConnectionError("the store died")

    folder, events = run_folder(tmp_path / "died"), h.search(10)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", dying)
        tracker = MLflow(folder)
        handling, finishing = timed(tracker, events)
    assert handling < AT_ONCE
    assert finishing < 15
    assert tracker.is_behind
    (said,) = complaints(capsys)
    assert "the store died" in said
    history, whole = History(events), run_folder(tmp_path / "whole")
    added = MLflow(folder).fill(history)
    assert 0 < added["metrics"] < MLflow(whole).fill(history)["metrics"]
    assert runs(uri(folder)) == runs(uri(whole))
    assert MLflow(folder).fill(history) == NOTHING


def test_away_for_a_while(tmp_path, capsys, monkeypatch):
    """When the store comes back while the search runs, nobody has to fill in anything."""
    monkeypatch.setattr(trackers, "PERIOD_SECONDS", 0.05)
    create, calls = MlflowClient.create_run, []

    def away(self, *args, **kwargs):
        calls.append(1)
        if 3 <= len(calls) <= 4:
            raise ConnectionError("away")
        return create(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "create_run", away)
    folder, events = run_folder(tmp_path), h.search(10)
    history, tracker = History(events[:1]), MLflow(folder)
    tracker.start(history)
    for event in events[1:]:
        history.apply(event)
        tracker.handle(event)
    until = time.monotonic() + 60
    while len(calls) < 4 + len(history.trials) - 1 and time.monotonic() < until:
        time.sleep(0.1)
    tracker.finish()
    assert not tracker.is_behind
    assert len(complaints(capsys)) == 1, "it said once that it was behind"
    assert MLflow(folder).fill(history) == NOTHING


def test_a_full_queue_loses_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trackers, "MOST_EVENTS", 5)
    folder, events = run_folder(tmp_path), h.search(20)
    tracker = MLflow(folder)
    handling, _ = timed(tracker, events)
    assert handling < AT_ONCE
    assert complaints(capsys) == []
    assert MLflow(folder).fill(History(events)) == NOTHING


@pytest.mark.parametrize("name", plugins.names("trackers"))
def test_a_thousand_trials_are_handled_in_passing(name, tmp_path):
    """Under a millisecond a trial of the search's thread, reports included."""
    events = h.search(1000)
    history = History(events[:1])
    options = {"quiet": True} if name == "console" else {"uri": "http://127.0.0.1:1"}
    tracker = plugins.load("trackers", name)(run_folder(tmp_path), **options)
    tracker.start(history)
    spent = 0.0
    for event in events[1:]:
        history.apply(event)
        began = time.thread_time()
        tracker.handle(event)
        spent += time.thread_time() - began
    tracker.finish()
    assert spent < 1.0


DRIVER = """
import sys, time
from pathlib import Path
from autopeft.history import History
from autopeft.trackers.mlflow import MLflow
from tests.reports import histories as h
from tests.trackers.stores import follow
number, folder, start = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
import mlflow.tracking
time.sleep(max(start - time.time(), 0))
tracker = MLflow(folder, finish_seconds=200)
follow(tracker, h.search(4, id=f"{number:0>8}"))
assert not tracker.is_behind
"""


def test_eight_drivers_that_start_together_on_one_fresh_file(tmp_path):
    """MLflow alone: of 8 that open a fresh SQLite file at once, none gets through."""
    drivers = 8
    start = time.time() + 4 + drivers
    started = []
    for number in range(drivers):
        folder = tmp_path / "runs" / f"run-{number}"
        folder.mkdir(parents=True)
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", DRIVER, str(number), str(folder), str(start)],
                cwd=PROJECT, env={**os.environ, "PYTHONPATH": str(PROJECT)}, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    said = [driver.communicate(timeout=280)[1] for driver in started]
    assert [driver.returncode for driver in started] == [0] * drivers, said
    assert said == [""] * drivers
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name.startswith("autopeft/")]
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    parents = [run for run in found if run.data.tags["autopeft.role"] == "search"]
    assert sorted(run.data.tags["autopeft.search_id"] for run in parents) == [f"{n:08d}" for n in range(drivers)]
    assert {run.info.status for run in parents} == {"FINISHED"}
    assert len(found) == drivers * 5


@pytest.mark.slow
def test_a_server_that_is_killed_and_comes_back(tmp_path, capsys):
    """A real server, killed with -9 in the middle of a search: filled in once it is up again."""
    folder, events = run_folder(tmp_path), h.search(30)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = serve(tmp_path, port)
    tracker = MLflow(folder, uri=f"http://127.0.0.1:{port}")
    history = History(events[:1])
    tracker.start(history)
    for index, event in enumerate(events[1:]):
        history.apply(event)
        began = time.monotonic()
        tracker.handle(event)
        assert time.monotonic() - began < AT_ONCE
        if index == len(events) // 2:
            time.sleep(5)
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
    tracker.finish()
    assert tracker.is_behind
    assert len(complaints(capsys)) == 1
    server = serve(tmp_path, port)
    try:
        assert sum(tracker.fill(history).values()) > 0
        assert tracker.fill(history) == NOTHING
        whole = run_folder(tmp_path / "whole")
        MLflow(whole).fill(history)
        assert runs(f"http://127.0.0.1:{port}") == runs(uri(whole))
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def serve(folder, port):
    """A server on the store of `folder`, in a process group of its own, once it answers."""
    words = ["server", "--backend-store-uri", f"sqlite:///{folder / 'runs' / 'mlflow.db'}",
             "--artifacts-destination", str(folder / "served"), "--port", str(port), "--workers", "1"]  # fmt: skip
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words], cwd=folder, start_new_session=True,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return server
        except OSError:
            assert time.monotonic() < until
            assert server.poll() is None, "the server ended"
            time.sleep(0.3)
