"""What a trial asks of a node, and nodes that come and go while a search runs."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autopeft import ledger
from autopeft.tasks.digits import cache_folder
from tests import commands
from tests.cluster import where
from tests.cluster.namespaces import Cluster, Machine, until

CONFIG = """
model: digits
task: where
data: {}
space: {method: head, head: {lr: {float: [3e-3, 3e-1], log: true, default: 3e-2}}}
training: {steps: 4, batch_size: 32, precision: fp32, attention: eager, device: cpu}
sampler: random
stopper: never
trackers: [console]
keep: none
name: run
"""


@pytest.fixture(scope="module")
def site(possible) -> Iterator[Path]:
    """The folder of the task `where`, which all machines see."""
    folder = Path(tempfile.mkdtemp(prefix="autopeft-site-", dir="/run"))
    yield where.install(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def job(tmp_path_factory, site) -> Path:
    """A folder with a config. The base is made beforehand, on this machine."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "job.yaml").write_text(CONFIG)
    commands.autopeft("plan", "job.yaml", "--set", "task=digits", "--set", "budget.trials=1", cwd=folder, timeout=1200)
    return folder


def machine(site: Path, name: str, **options: Any) -> Machine:
    return Machine(name, environment={"PYTHONPATH": str(site)}, **options)


@pytest.fixture(scope="module")
def cluster(make_cluster, job, site) -> Cluster:
    """One worker has two CPUs and a GPU, which is declared only; the other has two CPUs and a licence."""
    workers = [
        machine(site, "worker1", cpus=2, gpus=1),
        machine(site, "worker2", cpus=2, resources={"licence": 1}),
    ]
    return make_cluster(workers=workers, hidden=[cache_folder()])


def words(cluster: Cluster, name: str, trials: int, options: str = "", seconds: float = 0.0) -> list[str]:
    """`search` on the cluster."""
    sets = [
        f"name={name}",
        f"executor={{name: ray_tune, address: '{cluster.address}'{options}}}",
        f"task={{name: where, seconds: {seconds}}}",
        f"budget.trials={trials}",
    ]
    return ["search", "job.yaml", *(word for option in sets for word in ("--set", option))]


def events(run: Path) -> list[dict[str, Any]]:
    path = run / "ledger.jsonl"
    return list(ledger.read(path)) if path.exists() else []


def machines(run: Path) -> list[str]:
    """Of each trial that ended, its machine's address."""
    return [event["detail"]["machine"] for event in events(run) if event["event"] == "tell" and "detail" in event]


def most_at_once(run: Path) -> int:
    """Trials that were running together, by the ledger."""
    running, most = 0, 0
    for event in events(run):
        running += {"ask": 1, "rerun": 1, "tell": -1}.get(event["event"], 0)
        most = max(most, running)
    return most


@pytest.mark.parametrize(
    ("name", "options", "on", "at_once"),
    [
        ("cpus", ", cpus_per_trial: 2", {"worker1", "worker2"}, 2),
        ("gpus", ", gpus_per_trial: 0.5", {"worker1"}, 2),
        ("whole-gpu", ", gpus_per_trial: 1", {"worker1"}, 1),
        ("licence", ", resources_per_trial: {licence: 1}", {"worker2"}, 1),
        ("half-licence", ", resources_per_trial: {licence: 0.5}", {"worker2"}, 2),
    ],
)
def test_trials_have_what_they_ask_for(job, cluster, site, name, options, on, at_once):
    code, printed = cluster.autopeft(
        *words(cluster, name, 8, options, seconds=1.0), cwd=job, PYTHONPATH=where.of_driver(site)
    )
    assert code == 0, printed
    run = job / "runs" / name
    assert len(machines(run)) == 8
    assert set(machines(run)) == {cluster.machines[each].address for each in on}
    assert most_at_once(run) == at_once


def test_what_no_node_holds_is_said_with_what_each_has(job, cluster, site):
    options = ", gpus_per_trial: 0.5, resources_per_trial: {licence: 1}"  # there is each, on no node both
    code, printed = cluster.autopeft(*words(cluster, "none", 8, options), cwd=job, PYTHONPATH=where.of_driver(site))
    assert code == 5
    said = printed.splitlines()[-1]
    one, two = (cluster.machines[name].address for name in ("worker1", "worker2"))
    assert "a trial asks for 1 CPU, 0.5 GPU, 1 licence, but no node of Ray has room for it" in said
    assert f"{one}: 2 CPU, 1 GPU, 0 licence" in said and f"{two}: 2 CPU, 0 GPU, 1 licence" in said
    assert """ray start --num-cpus=1 --num-gpus=1 --resources='{"licence": 1}'""" in said
    assert not (job / "runs" / "none").exists(), "before model and data are loaded"


def test_a_wrong_token_is_said_before_anything_is_loaded(job, cluster, site, tmp_path, capsys):
    cluster.write_token(tmp_path / "wrong")
    given = {"PYTHONPATH": where.of_driver(site), "RAY_AUTH_TOKEN_PATH": str(tmp_path / "wrong")}
    start = time.monotonic()
    code, printed = cluster.autopeft(*words(cluster, "wrong", 8), cwd=job, **given)
    with capsys.disabled():
        print(f"\na wrong token is said after {time.monotonic() - start:.1f} s")
    assert code == 5
    assert f"the Ray cluster at '{cluster.address}' refuses this driver's token" in printed.splitlines()[-1]
    assert not (job / "runs" / "wrong").exists()


def test_nodes_that_come_and_go_change_the_slots(job, cluster, site, tmp_path, capsys):
    """One that joins takes trials; one that leaves takes none of the others' time, and what ran there is told once."""
    run = job / "runs" / "come-and-go"
    driver = cluster.driver(
        *words(cluster, "come-and-go", 100_000, seconds=0.5), cwd=job, output=tmp_path / "printed",
        PYTHONPATH=where.of_driver(site),
    )  # fmt: skip

    def alive() -> bool:
        assert driver.poll() is None, (tmp_path / "printed").read_text()
        return True

    until(lambda: alive() and len(machines(run)) > 8, 600)
    before = most_at_once(run)
    start = time.monotonic()
    late = cluster.join(machine(site, "late", cpus=2))
    known = time.monotonic() - start
    until(lambda: alive() and late.address in machines(run), 600)
    first = time.monotonic() - start
    until(lambda: alive() and most_at_once(run) > before, 600)
    cluster.kill(late)
    start = time.monotonic()
    cluster.wait_for(3)
    dead = time.monotonic() - start
    count = len(machines(run))
    until(lambda: alive() and len(machines(run)) > count + 12, 600)
    assert late.address not in machines(run)[count + 4 :], "nothing is taken there any more"
    commands.autopeft("stop", "runs/come-and-go", cwd=job)
    assert driver.wait(600) == 0, (tmp_path / "printed").read_text()
    with capsys.disabled():
        print(
            f"\na node joined {known:.1f} s after `ray start`; a trial had ended there {first - known:.1f} s after that; "
            f"most trials at once {before} before, {most_at_once(run)} with it; known as dead {dead:.1f} s after its end"
        )
    told = [event["number"] for event in events(run) if event["event"] == "tell"]
    asked = [event["number"] for event in events(run) if event["event"] == "ask"]
    assert before == 4
    assert sorted(told) == sorted(asked) and len(set(told)) == len(told), "each is told once"
    lost = [event for event in events(run) if event["event"] == "tell" and event["status"] != "COMPLETE"]
    assert len(lost) <= 2, "what ran on the node that left"
    assert all(event["fault"] == "machine" for event in lost)
