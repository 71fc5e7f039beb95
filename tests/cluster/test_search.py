"""A search on a head and two workers, as a user types it. The workers see neither code, nor model, nor data."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from autopeft import ledger
from autopeft.tasks.digits import cache_folder
from tests import commands
from tests.cluster.namespaces import Cluster

CONFIG = """
model: digits
task: digits
data: {}
space: digits
training: {epochs: 2, batch_size: 32, precision: fp32, attention: eager}
sampler: random
stopper: never
budget: {trials: 12}
trackers: [console]
keep: all
name: run
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A folder with a config."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "job.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def alone(job):
    """The run folder of the search, by the serial executor. It also makes the base."""
    commands.autopeft("search", "job.yaml", "--set", "name=alone", "--set", "executor=serial", cwd=job, timeout=1200)
    return job / "runs" / "alone"


@pytest.fixture(scope="module")
def cluster(make_cluster, alone):
    return make_cluster(workers=2, hidden=[cache_folder()])


def words(cluster: Cluster, name: str, *options: str) -> list[str]:
    """`search` on the cluster."""
    sets = [f"name={name}", f"executor={{name: ray_tune, address: '{cluster.address}'}}", *options]
    return ["search", "job.yaml", *(word for option in sets for word in ("--set", option))]


def results(folder: Path) -> Mapping[int, Any]:
    """What must not depend on the executor: params, seed, status and score of each number."""
    events = ledger.read(folder / "ledger.jsonl")
    asked = {event["number"]: (event["params"], event["seed"]) for event in events if event["event"] == "ask"}
    told = {
        event["number"]: (event["status"], event["metrics"]["accuracy"], event["metrics"]["trainable_parameters"])
        for event in events
        if event["event"] == "tell"
    }
    return {number: (*asked[number], *told[number]) for number in asked}


def test_a_search_on_two_workers_agrees_with_serial(job, alone, cluster, capsys):
    start = time.monotonic()
    code, printed = cluster.autopeft(*words(cluster, "cluster"), cwd=job)
    with capsys.disabled():
        print(f"\n12 trials on two workers: {time.monotonic() - start:.0f} s, start and shipping included")
    assert code == 0, printed
    found, expected = results(job / "runs/cluster"), results(alone)
    assert len(expected) == 12
    assert found == expected
    tensors = sorted(path.relative_to(alone) for path in alone.glob("trials/*/trained.safetensors"))
    assert len(tensors) == 12
    for path in tensors:
        assert (job / "runs/cluster" / path).read_bytes() == (alone / path).read_bytes(), "they came back"
