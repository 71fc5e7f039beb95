"""A search on a Ray cluster of two nodes, as a user types it."""

from __future__ import annotations

import importlib.util
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autopeft import ledger
from tests import commands
from tests.executors.cluster import Cluster, can_hide
from tests.models import WORDS, bert

CONFIG = """
model: model
task: text_classification
data: {train: train.csv, text: text, label: label}
space: {method: [head, lora], head: {lr: 1e-2}, lora: {rank: {int: [1, 8], default: 4}, alpha: 16, lr: 1e-3,
  modules: {subset: modules, default: [query]}}}
training: {steps: 10, precision: fp32, attention: eager}
budget: {trials: 6}
trackers: [console]
sampler: random
stopper: never
keep: all
name: r
"""


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster()
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A folder with a config, its data and its model."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "model").mkdir()
    bert(folder / "model")
    draw = random.Random(0)
    rows = [" ".join(draw.choices(WORDS, k=5)) for _ in range(120)]
    lines = [f"{row},{'yes' if 'good' in row or 'fine' in row else 'no'}" for row in rows]
    (folder / "train.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    (folder / "job.yaml").write_text(CONFIG)
    return folder


def words(cluster, name, *options, address=None):
    """`search` on the cluster."""
    sets = [f"name={name}", f"executor={{name: ray_tune, address: '{address or cluster.address}'}}", *options]
    return ["search", "job.yaml", *(word for option in sets for word in ("--set", option))]


def search(job, cluster, name, *options, address=None, **environment):
    """Runs it; an environment variable that is None is taken away."""
    merged = {**cluster.environment, **environment}
    env = {name: value for name, value in merged.items() if value is not None}
    return commands.autopeft(*words(cluster, name, *options, address=address), cwd=job, env=env, check=False)


@pytest.fixture(scope="module")
def alone(job):
    """The run folder of the same search, by the serial executor."""
    commands.autopeft("search", "job.yaml", "--set", "name=alone", "--set", "executor=serial", cwd=job)
    return job / "runs" / "alone"


def results(folder):
    """What must not depend on the executor: params, status and score of each number."""
    events = ledger.read(folder / "ledger.jsonl")
    params = {event["number"]: event["params"] for event in events if event["event"] == "ask"}
    told = {e["number"]: (e["status"], e["metrics"]["accuracy"]) for e in events if e["event"] == "tell"}
    return {number: (params[number], *told[number]) for number in params}


def test_a_search_on_a_cluster_agrees_with_serial(job, cluster, alone):
    done = search(job, cluster, "on-cluster")
    assert done.returncode == 0, done.stderr
    found = results(job / "runs" / "on-cluster")
    assert len(found) == 6
    assert found == results(alone)
    tensors = sorted(path.parent.name for path in (job / "runs/on-cluster/trials").glob("*/trained.safetensors"))
    assert tensors == [f"{number:05d}" for number in found]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RAY_AUTH_MODE": None, "RAY_AUTH_TOKEN": None}, "autopeft talks to one by token only"),
        ({"RAY_AUTH_TOKEN": None, "HOME": "/nowhere"}, "RAY_AUTH_TOKEN_PATH that of the cluster?"),
        ({"RAY_AUTH_TOKEN": "f" * 32}, "refuses this driver's token: is RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH that of"),
    ],
)
def test_without_the_clusters_token_it_says_so(job, cluster, environment, message):
    name = f"token-{time.monotonic_ns()}"
    done = search(job, cluster, name, **environment)
    assert done.returncode == 5, done.stderr
    assert message in done.stderr.splitlines()[-1]
    not_ours = ("gcs_client.cc", "preparing: ")  # the first is Ray's own, which nothing quiets
    said = [line for line in done.stderr.splitlines() if not any(part in line for part in not_ours)]
    assert len(said) == 1, "one message"
    assert not (job / "runs" / name).exists(), "before the model is loaded and the data encoded"


def test_what_no_node_has_room_for_is_said_before_anything_is_loaded(job, cluster):
    wants = f"executor={{name: ray_tune, address: '{cluster.address}', resources_per_trial: {{licence: 1}}}}"
    done = search(job, cluster, "no-room", wants)
    assert done.returncode == 5, done.stderr
    assert "a trial asks for 1 CPU, 1 licence, but no node of Ray has room for it" in done.stderr.splitlines()[-1]
    assert not (job / "runs" / "no-room").exists()


def test_an_address_where_nobody_listens_is_said_at_once(job, cluster):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        done = search(job, cluster, "nobody", address=address)
    assert done.returncode == 5, done.stderr
    last = done.stderr.splitlines()[-1]
    assert f"no Ray cluster at '{address}': [Errno 111] Connection refused" in last, "before Ray tries for minutes"
    assert not (job / "runs" / "nobody").exists(), "before the model is loaded and the data encoded"


@pytest.mark.slow  # Ray takes a minute to call a node dead
def test_a_node_that_dies_midway_costs_its_trial_and_no_other(job, tmp_path):
    cluster = Cluster()
    try:
        options = ("budget.trials=12", "training.steps=400")
        driver = commands.start_autopeft(
            *words(cluster, "dies", *options), cwd=job, env=cluster.environment, output=tmp_path / "printed"
        )
        run = job / "runs" / "dies"
        end = time.monotonic() + 120
        while len(told(run)) < 4 and driver.is_alive() and time.monotonic() < end:
            time.sleep(0.05)
        cluster.kill_worker()
        driver.join(200)
        assert driver.exitcode == 0, (tmp_path / "printed.stderr").read_text()
    finally:
        cluster.close()
    ends = told(run)
    asked = [event["number"] for event in ledger.read(run / "ledger.jsonl") if event["event"] == "ask"]
    assert len(asked) == 12
    assert sorted(end["number"] for end in ends) == asked, "each is told once"
    lost = [end["error"] for end in ends if end["status"] != "COMPLETE"]
    assert len(lost) <= 1
    assert all("its node is gone" in error for error in lost)


def told(run):
    path = run / "ledger.jsonl"
    return [event for event in ledger.read(path) if event["event"] == "tell"] if path.exists() else []


# A task that writes each trial's node to the ledger. After some trials it waits for a file, so that the search is
# still there when a node comes, however slow the machine is.
TASK = """
import time
from dataclasses import replace
from pathlib import Path

from autopeft.tasks.text_classification import TextClassification

class Where(TextClassification):
    def __init__(self, go):
        super().__init__()
        self.go, self.scored = Path(go), 0

    def score(self, kept, targets, about):
        import ray

        scores = super().score(kept, targets, about)
        if not ray.is_initialized():
            return scores
        self.scored += 1
        end = time.monotonic() + 240
        while self.scored > 10 and not self.go.exists() and time.monotonic() < end:
            time.sleep(0.1)
        return replace(scores, detail={**scores.detail, "node": ray.get_runtime_context().get_node_id()})
"""


class Midway:
    """A search on a cluster of one node, which more may join; it waits for `go`, trials being left."""

    def __init__(self, job: Path, folder: Path, name: str) -> None:
        site = folder / "site"
        (site / "where-1.0.dist-info").mkdir(parents=True)
        (site / "where-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: where\nVersion: 1.0\n")
        (site / "where-1.0.dist-info/entry_points.txt").write_text("[autopeft.tasks]\nwhere = where:Where\n")
        (site / "where.py").write_text(TASK)
        self.go, self.printed, self.run = folder / "go", folder / "printed", job / "runs" / name
        self.cluster = Cluster(is_whole=False, packages=site)
        task = f"task={{name: where, go: '{self.go}'}}"
        command = [sys.executable, "-c", "from autopeft.cli import main; main()"]  # a fork would not see `packages`
        with open(self.printed, "wb") as to:
            self.driver = subprocess.Popen(
                [*command, *words(self.cluster, name, task, "budget.trials=16")],
                cwd=job, env=self.cluster.environment, stdout=to, stderr=to,
            )  # fmt: skip

    def until(self, happens: Callable[[], bool]) -> float:
        """Seconds until something happens, or the driver ends, or two minutes have gone."""
        start = time.monotonic()
        while not happens() and self.driver.poll() is None and time.monotonic() < start + 120:
            time.sleep(0.05)
        return time.monotonic() - start

    def nodes(self) -> list[str]:
        """Of each trial that ended, its node."""
        return [event["detail"]["node"] for event in told(self.run)]

    def end(self) -> None:
        """Lets it end; asserts that all went well."""
        self.go.touch()
        assert self.driver.wait(200) == 0, self.printed.read_text()
        asked = [event["number"] for event in ledger.read(self.run / "ledger.jsonl") if event["event"] == "ask"]
        assert len(asked) == 16
        assert sorted(event["number"] for event in told(self.run)) == asked, "each is told once"
        assert {event["status"] for event in told(self.run)} == {"COMPLETE"}

    def close(self) -> None:
        self.driver.kill()
        self.cluster.close()


@pytest.fixture
def midway(job, tmp_path, request):
    midway = Midway(job, tmp_path, f"midway-{time.monotonic_ns()}")
    yield midway
    midway.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_joins_midway_takes_trials(job, midway, capsys):
    midway.until(lambda: len(midway.nodes()) > 1)
    midway.cluster.join(hidden=[job] if can_hide() else [])
    seconds = midway.until(lambda: len(set(midway.nodes())) > 1)
    with capsys.disabled():
        print(f"\na trial had ended on the late node {seconds:.1f} s after it joined")
    midway.end()
    nodes = midway.nodes()
    assert len(set(nodes)) == 2, midway.printed.read_text()
    assert nodes[0] == nodes[1], "before, there was one node"
    kept = {path.parent.name for path in midway.run.glob("trials/*/trained.safetensors")}
    assert len(kept) == 16, "those of the late node were sent"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not can_hide(), reason="no folder can be hidden from a process here: `unshare --mount` fails")
def test_a_node_that_joins_midway_and_lacks_a_package_is_said_once(midway):
    midway.until(lambda: len(midway.nodes()) > 1)
    midway.cluster.join(hidden=[Path(importlib.util.find_spec("peft").origin).parent])
    midway.until(lambda: "takes no trials" in midway.printed.read_text())
    midway.end()
    assert len(set(midway.nodes())) == 1
    said = [line for line in midway.printed.read_text().splitlines() if "takes no trials" in line]
    assert len(said) == 1, midway.printed.read_text()
    assert "it lacks a package" in said[0] and "peft" in said[0]


@pytest.mark.skipif(not can_hide(), reason="no folder can be hidden from a process here: `unshare --mount` fails")
class TestANodeWithoutTheDriversDisk:
    @pytest.fixture(scope="class")
    def far(self, job):
        """A cluster whose trials all run on a node that sees nothing of the job."""
        cluster = Cluster(head_cpus=0, hidden=[job])
        yield cluster
        cluster.close()

    def test_model_and_data_are_shipped_and_tensors_come_back(self, job, far, alone):
        of_nodes = f"autopeft-{'[0-9a-f]' * 32}-*"
        before = set(Path(tempfile.gettempdir()).glob(of_nodes))
        done = search(job, far, "far")
        assert done.returncode == 0, done.stderr
        assert results(job / "runs" / "far") == results(alone)
        kept = [path.relative_to(alone) for path in (alone / "trials").glob("*/*")]
        assert len(kept) == 18, "tensors, recipe and most wrong rows of six trials"
        for path in kept:
            assert (job / "runs/far" / path).read_bytes() == (alone / path).read_bytes()
        assert not (job / "runs" / "far" / ".shared").exists()
        assert set(Path(tempfile.gettempdir()).glob(of_nodes)) == before, "the node keeps nothing"

    @pytest.mark.slow
    def test_a_front_that_is_confirmed_there(self, job, far):
        split = "data={train: train.csv, text: text, label: label, test_share: 0.2}"
        assert search(job, far, "confirmed", split).returncode == 0
        commands.autopeft("confirm", "runs/confirmed", "--seeds", "2", cwd=job, env=far.environment)
        confirmed = [e for e in ledger.read(job / "runs/confirmed/ledger.jsonl") if e["event"] == "confirm"]
        assert len(confirmed) > 2
        assert all(event["status"] == "COMPLETE" for event in confirmed)

    def test_a_node_that_lacks_a_package_says_so_before_the_first_trial(self, job):
        package = Path(importlib.util.find_spec("peft").origin).parent
        cluster = Cluster(hidden=[package])
        try:
            done = search(job, cluster, "lacking")
        finally:
            cluster.close()
        assert done.returncode == 5, done.stderr
        last = done.stderr.splitlines()[-1]
        assert "node " in last and "it lacks a package" in last and "peft" in last
        assert [e["event"] for e in ledger.read(job / "runs/lacking/ledger.jsonl")] == ["search"]
