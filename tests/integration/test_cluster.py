"""A search on a Ray cluster of two nodes, as a user types it."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import time

import pytest

from autopeft import ledger
from tests.executors.cluster import Cluster
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


def search(job, cluster, name, *options, address=None, **environment):
    """Runs `autopeft search`; an environment variable that is None is taken away."""
    sets = [f"name={name}", f"executor={{name: ray_tune, address: '{address or cluster.address}'}}", *options]
    words = ["search", "job.yaml", *(word for option in sets for word in ("--set", option))]
    merged = {**cluster.environment, **environment}
    return subprocess.run(
        [sys.executable, "-m", "autopeft", *words],
        cwd=job, env={k: v for k, v in merged.items() if v is not None}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip


def results(folder):
    """What must not depend on the executor: params, status and score of each number."""
    events = ledger.read(folder / "ledger.jsonl")
    params = {event["number"]: event["params"] for event in events if event["event"] == "ask"}
    told = {e["number"]: (e["status"], e["metrics"]["accuracy"]) for e in events if e["event"] == "tell"}
    return {number: (params[number], *told[number]) for number in params}


def test_a_search_on_a_cluster_agrees_with_serial(job, cluster):
    done = search(job, cluster, "on-cluster")
    assert done.returncode == 0, done.stderr
    serial = search(job, cluster, "alone", "executor=serial")
    assert serial.returncode == 0, serial.stderr
    found = results(job / "runs" / "on-cluster")
    assert len(found) == 6
    assert found == results(job / "runs" / "alone")
    tensors = sorted(path.parent.name for path in (job / "runs/on-cluster/trials").glob("*/trained.safetensors"))
    assert tensors == [f"{number:05d}" for number in found]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RAY_AUTH_MODE": None, "RAY_AUTH_TOKEN": None}, "autopeft talks to one by token only"),
        ({"RAY_AUTH_TOKEN": None, "HOME": "/nowhere"}, "RAY_AUTH_TOKEN_PATH that of the cluster?"),
        ({"RAY_AUTH_TOKEN": "f" * 32}, "RAY_AUTH_TOKEN_PATH that of the cluster?"),
    ],
)
def test_without_the_clusters_token_it_says_so(job, cluster, environment, message):
    done = search(job, cluster, f"token-{time.monotonic_ns()}", **environment)
    assert done.returncode == 5, done.stderr
    assert message in done.stderr.splitlines()[-1]
    ours = [line for line in done.stderr.splitlines() if "gcs_client.cc" not in line]  # Ray's own, which nothing quiets
    assert len(ours) == 2, "one message, beside `searching in`"


def test_an_address_where_nobody_listens_is_said_at_once(job, cluster):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        start = time.monotonic()
        address = f"127.0.0.1:{free.getsockname()[1]}"
        done = search(job, cluster, "nobody", address=address)
    assert done.returncode == 5, done.stderr
    assert f"no Ray cluster at '{address}'" in done.stderr.splitlines()[-1]
    assert time.monotonic() - start < 60
