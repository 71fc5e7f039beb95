"""MLflow down, silent, slow, dying, or met by many at once: the search does not wait, and nothing is lost.

That the search does not wait is shown by no clock. Only the tracker's thread opens connections and databases
(`connecting`); a store that answers only after the last event was handled would block a search that waits for it; and
`finish` says how long it would wait for the thread (`waits`).
"""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from autopeft import plugins
from autopeft.errors import EnvironmentFault
from autopeft.history import History
from autopeft.trackers import mlflow as trackers
from autopeft.trackers.mlflow import MLflow
from tests.reports import histories as h
from tests.trackers.servers import Proxy
from tests.trackers.stores import run_folder, runs

NOTHING = {"runs": 0, "params": 0, "metrics": 0, "tags": 0, "artifacts": 0}
OURS = "autopeft-mlflow"  # the tracker's thread
PROJECT = Path(__file__).resolve().parents[2]


def uri(folder):
    return f"sqlite:///{folder.parent / 'mlflow.db'}"


def shown(tracker, events):
    """Starts the tracker and hands it all events. Returns the history, and the tracker's thread."""
    history = History(events[:1])
    tracker.start(history)
    thread = tracker._thread
    for event in events[1:]:
        history.apply(event)
        tracker.handle(event)
    return history, thread


@pytest.fixture
def connecting(monkeypatch, tmp_path_factory):
    """Names of the threads that opened a connection or a database."""
    run_folder(tmp_path_factory.mktemp("first"))  # makes the tests' template of a database
    names = set()
    for owner in (socket.socket, sqlite3.dbapi2):
        call = owner.connect

        def noted(*args, call=call, **options):
            names.add(threading.current_thread().name)
            return call(*args, **options)

        monkeypatch.setattr(owner, "connect", noted)
    return names


@pytest.fixture
def waits(monkeypatch):
    """Seconds that somebody would wait for each of the tracker's threads. Nobody does: it goes on at once."""
    asked, join = [], threading.Thread.join

    def noted(thread, timeout=None):
        if thread.name.startswith(OURS):
            asked.append(timeout)
        else:
            join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", noted)
    return asked


def complaints(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.strip()]


@pytest.fixture
def closed_port():
    """One that is taken, and where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_down_from_the_start(tmp_path, closed_port, capsys, monkeypatch, connecting):
    monkeypatch.setattr(trackers, "BEHIND_SECONDS", 280.0)
    folder, events = run_folder(tmp_path), h.search(40)
    tracker = MLflow(folder, uri=f"http://me:pass-word@127.0.0.1:{closed_port}")
    _, thread = shown(tracker, events)
    tracker.finish()
    thread.join(280)
    assert connecting == {OURS}
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


def test_silent(tmp_path, capsys, connecting, waits):
    """It takes the connection and never answers: the search ends all the same, and so does a look for its address."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(5)
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        folder, events = run_folder(tmp_path), h.search(40)
        for options in ({}, {"finish_seconds": 1.0}):
            tracker = MLflow(folder, uri=address, **options)
            history, _ = shown(tracker, events)
            tracker.finish()
        assert waits == [trackers.BEHIND_SECONDS, 1.0]
        opened = MLflow(folder, uri=address).open_command(history)
        assert waits[2:] == [trackers.LOOKUP_SECONDS]
    assert connecting <= {OURS, f"{OURS}-lookup"}
    assert opened.startswith(f"{address}/#/experiments")
    first, second = complaints(capsys)
    assert f"autopeft track {folder}" in first and f"autopeft track {folder}" in second


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, b"You are not authenticated.", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        (403, b"Permission denied", "name an experiment of your own in trackers.mlflow.experiment"),
        (403, b"Invalid Host header - possible DNS rebinding attack detected", "Invalid Host header"),
        (507, b"no space left on device", "no space left on device"),
    ],
)
def test_a_server_that_refuses(tmp_path, capsys, monkeypatch, status, body, said):
    """One message, which says what to do about it where that is known; the search goes on."""
    monkeypatch.setattr(trackers, "DOUBTS", (0.0, 0.0))
    monkeypatch.setattr(trackers, "BEHIND_SECONDS", 280.0)
    folder, events = run_folder(tmp_path), h.search(6)
    proxy = Proxy(0)
    proxy.refusal, proxy.refused_with = status, body
    try:
        tracker = MLflow(folder, uri=proxy.address.replace("//", "//me:pass-word@"))
        history, thread = shown(tracker, events)
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


def test_slow(tmp_path, capsys, monkeypatch, connecting, waits):
    """The first new run is not there before the search is over: `finish` gives up, and so does the thread then."""
    create, answered, made = MlflowClient.create_run, threading.Event(), []

    def slow(self, *args, **kwargs):
        assert answered.wait(280)
        made.append(1)
        return create(self, *args, **kwargs)

    folder, events = run_folder(tmp_path), h.search(40)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", slow)
        tracker = MLflow(folder)
        history, thread = shown(tracker, events)
        tracker.finish()
        assert waits == [30.0]
        assert made == [], "all was handled before the store had answered"
        answered.set()
        until = time.monotonic() + 280
        while thread.is_alive() and time.monotonic() < until:
            time.sleep(0.05)
        assert not thread.is_alive()
        assert len(made) == 1
    assert connecting == {OURS}
    assert len(complaints(capsys)) == 1
    MLflow(folder).fill(history)
    assert len(runs(uri(folder))) == 1 + len(history.trials)
    assert MLflow(folder).fill(history) == NOTHING


def test_dying_midway(tmp_path, capsys, monkeypatch, connecting):
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
        tracker = MLflow(folder, finish_seconds=280)
        shown(tracker, events)
        tracker.finish()
    assert connecting == {OURS}
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
    monkeypatch.setattr(trackers, "WRITE_SHARE", 1e9)
    create, calls = MlflowClient.create_run, []

    def away(self, *args, **kwargs):
        calls.append(1)
        if 3 <= len(calls) <= 4:
            raise ConnectionError("away")
        return create(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "create_run", away)
    folder, events = run_folder(tmp_path), h.search(10)
    tracker = MLflow(folder, finish_seconds=280)
    history, _ = shown(tracker, events)
    until = time.monotonic() + 280
    while len(calls) < 4 + len(history.trials) - 1 and time.monotonic() < until:
        time.sleep(0.1)
    tracker.finish()
    assert not tracker.is_behind
    assert len(complaints(capsys)) == 1, "it said once that it was behind"
    assert MLflow(folder).fill(history) == NOTHING


def test_a_refusal_that_passes_is_not_believed(tmp_path, capsys, monkeypatch):
    """Another search made the experiment a moment ago, and MLflow has not let its own user in yet."""
    look, refused = MlflowClient.get_experiment_by_name, []

    def early(self, name):
        if len(refused) < 2:
            refused.append(name)
            raise MlflowException("Permission denied", error_code=PERMISSION_DENIED)
        return look(self, name)

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", early)
    monkeypatch.setattr(trackers, "DOUBTS", (0.0, 0.0))
    folder, events = run_folder(tmp_path), h.search(4)
    tracker = MLflow(folder, finish_seconds=280)
    history, _ = shown(tracker, events)
    tracker.finish()
    assert len(refused) == 2
    assert not tracker.is_behind
    assert complaints(capsys) == []
    assert MLflow(folder).fill(history) == NOTHING


def test_writing_takes_its_share_of_the_time_and_no_more(tmp_path, monkeypatch):
    """After each write there is a pause that its CPU time sets. By a clock of the test's own."""
    now, spent, writes = [0.0], [0.0], []
    monkeypatch.setattr(trackers.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(trackers.time, "thread_time", lambda: spent[0])
    tracker = MLflow(run_folder(tmp_path))
    history = History(h.search(4))

    class Costly:
        layout = None

        def trials(self, numbers):
            writes.append(now[0])
            spent[0] += 0.2

        def everything(self, *, is_over):
            pass

    def taken(self, of):
        now[0] += trackers.PERIOD_SECONDS
        if now[0] > 1000:
            self._ending.set()
        return {0}

    sync = Costly()
    sync.layout = SimpleNamespace(history=None)
    monkeypatch.setattr(MLflow, "_take", taken)
    monkeypatch.setattr(MLflow, "_connect", lambda self, of: sync)
    tracker.history, tracker.show_every = history, 10_000
    tracker._follow(history)
    assert 0.2 * len(writes) <= trackers.WRITE_SHARE * 1000 + 0.2
    assert len(writes) > 0.9 * trackers.WRITE_SHARE * 1000 / 0.2, "and it takes it"


def test_a_full_queue_loses_nothing(tmp_path, capsys, monkeypatch, connecting):
    monkeypatch.setattr(trackers, "MOST_EVENTS", 5)
    folder, events = run_folder(tmp_path), h.search(20)
    tracker = MLflow(folder, finish_seconds=280)
    shown(tracker, events)
    tracker.finish()
    assert connecting == {OURS}
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
tracker = MLflow(folder, finish_seconds=1200)
follow(tracker, h.search(4, id=f"{number:0>8}"))
assert not tracker.is_behind
"""


@pytest.mark.timeout(1800)
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
    said = [driver.communicate(timeout=1500)[1] for driver in started]
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
def test_a_server_that_is_killed_and_comes_back(tmp_path, capsys, connecting):
    """A real server, killed with -9 in the middle of a search: filled in once it is up again."""
    folder, events = run_folder(tmp_path), h.search(30)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = serve(tmp_path, port)
    connecting.clear()  # this test asked the server, too
    tracker = MLflow(folder, uri=f"http://127.0.0.1:{port}")
    history = History(events[:1])
    tracker.start(history)
    for index, event in enumerate(events[1:]):
        history.apply(event)
        tracker.handle(event)
        if index == len(events) // 2:
            time.sleep(5)
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
    tracker.finish()
    assert connecting == {OURS}
    assert tracker.is_behind
    assert len(complaints(capsys)) == 1
    server = serve(tmp_path, port)
    tracker = MLflow(folder, uri=f"http://127.0.0.1:{port}")
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
