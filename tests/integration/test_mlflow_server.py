"""A search against what a team shares: MLflow's server with users, on PostgreSQL, and all that can happen to it.

`./dev test-slow tests/integration/test_mlflow_server.py` starts both for itself, on loopback.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from mlflow import MlflowClient

from autopeft.errors import EnvironmentFault
from autopeft.history import History
from autopeft.trackers import mlflow as trackers
from autopeft.trackers.mlflow import MLflow
from tests.commands import autopeft
from tests.reports import histories as h
from tests.trackers.servers import PATIENCE, Postgres, Proxy, Server, free_port, needs_postgres, wait_for
from tests.trackers.stores import run_folder, runs
from tests.trackers.test_mlflow import artifacts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PROJECT = Path(__file__).resolve().parents[2]
NOTHING = {"runs": 0, "params": 0, "metrics": 0, "tags": 0, "artifacts": 0}
WITH_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": f"{PATIENCE:.0f}"}  # a loaded machine is no fault of the server
USER, PASSWORD = "searcher", "canary-Zq7Xw2-password"
DEMO = [
    "demo", "--name", "d", "--set", "space=lora", "--set", "budget.trials=2", "--set", "training={steps: 3}",
    "--set", "executor=serial",
]  # fmt: skip


class Shared:
    """A database, a server with users on it, and a proxy in front."""

    def __init__(self, folder: Path) -> None:
        self.postgres = Postgres()
        self.server = Server(folder / "server", self.postgres.uri("tracking"), self.postgres.uri("users"))
        self.server.add_user(USER, PASSWORD)
        self.proxy = Proxy(self.server.port)

    def close(self) -> None:
        self.proxy.close()
        self.server.kill()
        self.postgres.close()


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    needs_postgres()
    shared = Shared(tmp_path_factory.mktemp("shared"))
    yield shared
    shared.close()


@pytest.fixture
def shared(everything, monkeypatch):
    """With the log-in in the environment, and nothing left over of an earlier test."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    monkeypatch.setattr(trackers, "WRITE_SHARE", 1e9)  # no pauses: these searches take no time themselves
    everything.proxy.delay, everything.proxy.refusal = 0.0, None
    everything.proxy.seen.clear()
    return everything


class Following:
    """A tracker that is shown a search's events piece by piece."""

    def __init__(self, folder, events, address, **options):
        self.folder, self.events, self.history = folder, events[1:], History(events[:1])
        options = {"artifacts": artifacts, "experiment": folder.parent.parent.name, **options}
        self.address, self.options = address, options
        self.tracker = MLflow(folder, uri=address, **options)
        self.tracker.start(self.history)
        self.thread = self.tracker._thread

    def show(self, count=None):
        shown, self.events = self.events[:count], self.events[count:] if count else []
        for event in shown:
            self.history.apply(event)
            self.tracker.handle(event)

    def wait_until_caught_up(self):
        """Until all that was shown is there."""
        wait_for("the tracker", lambda: not self.tracker.is_behind and self.tracker._events.empty())

    def finish(self):
        self.tracker.finish()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()

    def track(self):
        """As `autopeft track RUN`: what it adds."""
        return MLflow(self.folder, uri=self.address, **self.options).fill(self.history)

    def assert_whole(self, tmp_path):
        """Each trial is there once, with all it has, as in a store that was never away; a second `track` adds nothing."""
        assert self.track() == NOTHING
        whole = run_folder(tmp_path / "whole")
        MLflow(whole, **self.options).fill(self.history)
        found, wanted = (
            runs(uri, self.options["experiment"]) for uri in (self.address, f"sqlite:///{whole.parent / 'mlflow.db'}")
        )
        for run in [*found.values(), *wanted.values()]:
            run["tags"].pop("mlflow.user", None)  # a server with users writes the one who logged in
        assert found == wanted
        assert len(found) == 1 + len(self.history.trials)


def fresh_users(server, folder):
    """A configuration as the server's, of a database without users."""
    text, path = Path(server.environment["MLFLOW_AUTH_CONFIG_PATH"]).read_text(), folder / "auth.ini"
    lines = [line for line in text.splitlines() if not line.startswith("database_uri")]
    path.write_text("\n".join([*lines, f"database_uri = sqlite:///{folder / 'users.db'}", ""]))
    return path


def complaints(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.strip()]


def test_a_trial_costs_three_requests(shared, tmp_path):
    """One makes its run, one logs all its metrics, params and tags, one ends it. The rest is for the search."""
    history = History(h.search(20))
    MLflow(run_folder(tmp_path), uri=shared.proxy.address, experiment="counted").fill(history)
    trials, seen = len(history.trials), shared.proxy.seen
    per_trial = ("POST runs/create", "POST runs/log-batch", "POST runs/update")
    assert seen["POST runs/create"] == 1 + trials
    assert trials <= seen["POST runs/log-batch"] <= trials + 2
    assert trials <= seen["POST runs/update"] <= trials + 1
    others = Counter({name: count for name, count in seen.items() if name not in per_trial})
    assert others.total() <= 10, others
    print(f"\n{trials} trials: {seen.total()} requests, {seen.total() / trials:.2f} a trial; {dict(seen)}")


@pytest.mark.parametrize("seconds", [5, 60])
def test_a_server_that_is_killed_and_comes_back(shared, tmp_path, capsys, seconds):
    """While the search runs: it is caught up with by then, or by `track`."""
    following = Following(run_folder(tmp_path), h.search(14), shared.server.address)
    following.show(20)
    following.wait_until_caught_up()
    shared.server.kill()
    following.show(15)
    time.sleep(seconds)
    wait_for("the tracker to see it", lambda: following.tracker.is_behind)
    shared.server.start()
    following.show()
    following.wait_until_caught_up()
    following.finish()
    assert len(complaints(capsys)) == 1
    following.track()
    following.assert_whole(tmp_path)


def test_a_server_that_stays_away_until_the_search_is_over(shared, tmp_path, capsys):
    following = Following(run_folder(tmp_path), h.search(14), shared.server.address)
    following.show(20)
    following.wait_until_caught_up()
    shared.server.kill()
    following.show()
    following.finish()
    (said,) = complaints(capsys)
    assert f"autopeft track {following.folder}" in said
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        following.track()
    shared.server.start()
    assert following.track()["runs"] > 0
    following.assert_whole(tmp_path)


def test_a_database_that_is_killed_under_the_server(shared, tmp_path, capsys):
    following = Following(run_folder(tmp_path), h.search(14), shared.server.address)
    following.show(20)
    following.wait_until_caught_up()
    shared.postgres.kill()
    following.show(15)
    time.sleep(5)
    shared.postgres.start()
    following.show()
    following.wait_until_caught_up()
    following.finish()
    assert len(complaints(capsys)) <= 1, "MLflow's own retries may bridge it"
    following.track()
    following.assert_whole(tmp_path)


def test_a_second_a_call(shared, tmp_path, capsys, monkeypatch):
    """The search ends long before its last request would: `track` has the rest to write, and writes no more than that."""
    monkeypatch.setattr(trackers, "BEHIND_SECONDS", 2.0)
    shared.proxy.delay = 1.0
    following = Following(run_folder(tmp_path), h.search(30), shared.proxy.address, finish_seconds=2.0)
    following.show()
    following.finish()
    (said,) = complaints(capsys)
    assert f"autopeft track {following.folder}" in said
    shared.proxy.delay = 0.0
    following.track()
    following.assert_whole(tmp_path)


@pytest.mark.parametrize("lost", [1, 7])
def test_answers_that_are_lost_make_no_twins(shared, tmp_path, lost):
    """MLflow's client repeats such a request, up to twice with our bounds, and the server makes a run each time."""
    shared.proxy.losing = lost
    following = Following(run_folder(tmp_path), h.search(8), shared.proxy.address)
    following.show()
    wait_for("the answers to be lost", lambda: not shared.proxy.losing)
    following.wait_until_caught_up()
    following.finish()
    following.track()
    following.assert_whole(tmp_path)


@pytest.mark.parametrize("status", [500, 507])
def test_a_server_whose_disk_is_full(shared, tmp_path, capsys, status):
    following = Following(run_folder(tmp_path), h.search(14), shared.proxy.address)
    following.show(20)
    following.wait_until_caught_up()
    shared.proxy.refusal = status
    following.show()
    following.finish()
    (said,) = complaints(capsys)
    assert str(status) in said
    shared.proxy.refusal = None
    assert following.track()["runs"] > 0
    following.assert_whole(tmp_path)


@pytest.fixture
def small_disk():
    """A file system of its own in memory, of 100 MB, that everybody may use."""
    folder = Path(tempfile.mkdtemp(prefix="autopeft-small-"))
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100m,mode=1777", "tmpfs", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        folder.rmdir()
        pytest.skip(f"needs to mount a tmpfs: {done.stderr.strip()}")
    yield folder
    # Lazily: MLflow's engine in this process keeps its connections to a SQLite file.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


def fill_up(disk):
    """Takes what is left of it; returns the file that does."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue
    return ballast


def test_a_database_whose_disk_is_full(small_disk, tmp_path, capsys):
    """PostgreSQL stops by itself if its log does not fit, and is started again once there is room."""
    needs_postgres()
    home = small_disk / "postgres"
    home.mkdir()
    postgres = Postgres(home)
    server = Server(tmp_path / "server", postgres.uri("tracking"))
    try:
        following = Following(run_folder(tmp_path), h.search(40), server.address)
        following.show(20)
        following.wait_until_caught_up()
        ballast = fill_up(small_disk)
        # Larger than what the database's open segments still hold.
        events = [h.report(40, step, train_loss=1 / step) for step in range(1, 12_000)]
        following.events += [h.ask(40, {"method": "lora", "lora.rank": 2}, 10.0), *events]
        following.show()
        following.finish()
        (said,) = complaints(capsys)
        assert f"autopeft track {following.folder}" in said
        ballast.unlink()
        assert postgres.process is not None
        if postgres.process.poll() is not None:
            postgres.start()
        following.track()
        following.assert_whole(tmp_path)
    finally:
        server.kill()
        postgres.close()


def test_a_sqlite_file_whose_disk_is_full(small_disk, tmp_path, capsys):
    """No server: the driver itself writes the file."""
    store = small_disk / "mlflow.db"
    shutil.copyfile(run_folder(tmp_path / "empty").parent / "mlflow.db", store)
    following = Following(run_folder(tmp_path), h.search(30), f"sqlite:///{store}")
    following.show(20)
    following.wait_until_caught_up()
    ballast = fill_up(small_disk)
    following.show()
    following.finish()
    (said,) = complaints(capsys)
    assert f"autopeft track {following.folder}" in said
    with pytest.raises(EnvironmentFault, match="full"):
        following.track()
    ballast.unlink()
    assert following.track()["runs"] > 0
    following.assert_whole(tmp_path)


DRIVER = """
import sys, time
from pathlib import Path
from autopeft.trackers.mlflow import MLflow
from tests.reports import histories as h
from tests.trackers.stores import follow
number, folder, address = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
import mlflow.tracking
print("ready", flush=True)
sys.stdin.readline()
tracker = MLflow(folder, uri=address, experiment="eight", finish_seconds=1200)
tracker.is_behind = False  # it waits for the server, however busy
follow(tracker, h.search(6, id=f"{number:0>8}"))
assert not tracker.is_behind
"""


def test_eight_searches_on_one_server(shared, tmp_path):
    """They begin together, in an experiment that none of them finds there."""
    drivers = []
    for number in range(8):
        folder = tmp_path / "runs" / f"run-{number}"
        folder.mkdir(parents=True)
        words = [sys.executable, "-c", DRIVER, str(number), str(folder), shared.proxy.address]
        drivers.append(
            subprocess.Popen(
                words, cwd=PROJECT, env={**os.environ, "PYTHONPATH": str(PROJECT), **WITH_PATIENCE}, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    for driver in drivers:
        assert driver.stdout.readline() == "ready\n"
    for driver in drivers:
        driver.stdin.write("go\n")
        driver.stdin.flush()
    said = [""] * len(drivers)

    def listen(index):
        said[index] = drivers[index].communicate(timeout=1500)[1]

    listening = [threading.Thread(target=listen, args=(index,)) for index in range(len(drivers))]
    for thread in listening:
        thread.start()
    for thread in listening:
        thread.join()
    assert [driver.returncode for driver in drivers] == [0] * 8, said
    assert said == [""] * 8
    client = MlflowClient(tracking_uri=shared.server.address)
    experiment = client.get_experiment_by_name("eight")
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    roles = Counter((run.data.tags["autopeft.search_id"], run.data.tags["autopeft.role"]) for run in found)
    trials = len(History(h.search(6)).trials)
    assert roles == {(f"{n:08d}", role): count for n in range(8) for role, count in (("search", 1), ("trial", trials))}
    assert len({(run.data.tags["autopeft.search_id"], run.info.run_name) for run in found}) == 8 * (1 + trials)
    print(f"\n8 searches of {trials} trials: {dict(shared.proxy.seen)}")


class TestLogin:
    """By the command line, as a user has it."""

    @pytest.fixture
    def environment(self, everything):
        taken = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_TRACKING")}
        return {**taken, "MLFLOW_DISABLE_TELEMETRY": "true"}

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({}, 200),
            ({"Authorization": ""}, 401),
            ({"Authorization": "Basic bm9ib2R5Om5vdGhpbmc="}, 401),
            ({"Host": "evil.example"}, 403),
            ({"Origin": "http://evil.example"}, 403),
        ],
    )
    def test_strangers_and_pages_of_strangers_are_refused(self, everything, headers, status):
        """By the server itself, as README has it started: who has no log-in, and who comes by another name."""
        login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        request = urllib.request.Request(
            f"{everything.server.address}/api/2.0/mlflow/experiments/search",
            data=json.dumps({"max_results": 1}).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Basic {login}", **headers},
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                found = answer.status
        except urllib.error.HTTPError as fault:
            found = fault.code
        assert found == status

    def test_a_server_with_users_does_not_start_without_a_password_for_its_admin(self, everything, tmp_path):
        server = everything.server
        environment = {k: v for k, v in server.environment.items() if k != "MLFLOW_AUTH_ADMIN_PASSWORD"}
        done = subprocess.run(
            [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path / 'x.db'}",
             *server.words, "--port", str(free_port()), "--workers", "1"],
            cwd=tmp_path, timeout=PATIENCE, capture_output=True, text=True,
            env={**environment, "MLFLOW_AUTH_CONFIG_PATH": str(fresh_users(server, tmp_path))},
        )  # fmt: skip
        assert done.returncode != 0 and "MLFLOW_AUTH_ADMIN_PASSWORD" in done.stdout + done.stderr

    @pytest.mark.parametrize("way", ["variables", "uri"])
    def test_it_is_in_nothing_that_is_written(self, everything, environment, tmp_path, way):
        """From the search over `track`, `report` and `confirm` to what the databases hold."""
        name = f"login-{way}"
        if way == "variables":
            environment |= {
                "MLFLOW_TRACKING_URI": everything.server.address,
                "MLFLOW_TRACKING_USERNAME": USER,
                "MLFLOW_TRACKING_PASSWORD": PASSWORD,
            }
        else:
            environment["MLFLOW_TRACKING_URI"] = f"http://{USER}:{PASSWORD}@127.0.0.1:{everything.server.port}"
        trackers = ["--set", f"trackers=[console, {{name: mlflow, experiment: {name}, finish_seconds: 600}}]"]
        said = []
        for words in ([*DEMO, *trackers], ["track", "runs/d"], ["report", "runs/d"],
                      ["confirm", "runs/d", "--seeds", "1", "--pick", "best"]):  # fmt: skip
            done = autopeft(*words, cwd=tmp_path, env=environment)
            said += [done.stdout, done.stderr]
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert files
        for path in [
            *files,
            *(everything.server.folder / "served").rglob("*"),
            everything.server.folder / "server.log",
        ]:
            assert path.is_dir() or PASSWORD.encode() not in path.read_bytes(), path
        assert PASSWORD not in "".join(said)
        assert PASSWORD not in everything.postgres.dump()
        login = f"http://{USER}:{PASSWORD}@127.0.0.1:{everything.server.port}"
        found = runs(login, name)
        roles = Counter(run["tags"]["autopeft.role"] for run in found.values())
        assert roles == {"search": 1, "trial": 2, "replicate": 2}

    def test_a_wrong_one_is_one_message_and_the_search_goes_on(self, everything, environment, tmp_path):
        environment |= {
            "MLFLOW_TRACKING_URI": everything.server.address,
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": "wrong-" + PASSWORD,
        }
        done = autopeft(*DEMO, cwd=tmp_path, env=environment)
        said = [line for line in done.stderr.splitlines() if "MLflow at" in line]
        assert len(said) == 1
        assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in said[0]
        assert "autopeft track" in said[0]
        assert PASSWORD not in done.stdout + done.stderr
        failed = autopeft("track", "runs/d", cwd=tmp_path, env=environment, check=False)
        assert failed.returncode == 5
        assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in failed.stderr
        environment["MLFLOW_TRACKING_PASSWORD"] = PASSWORD
        assert "3 runs" in autopeft("track", "runs/d", cwd=tmp_path, env=environment).stdout

    def test_an_experiment_of_somebody_else_s(self, shared, tmp_path, monkeypatch):
        following = Following(run_folder(tmp_path), h.search(3), shared.server.address, experiment="hers")
        following.show()
        following.finish()
        following.track()
        shared.server.add_user("another", "another-long-password")
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "another")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another-long-password")
        with pytest.raises(EnvironmentFault, match=r"may not write there.*trackers\.mlflow\.experiment"):
            following.track()
