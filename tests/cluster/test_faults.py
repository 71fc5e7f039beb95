"""Faults on a cluster: what was told is neither lost nor told twice, slots are freed, and `serial` has the same metrics.

Each prints its figures; benchmarks/LOG.md has them.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autopeft import ledger
from autopeft.tasks.digits import cache_folder
from tests import commands
from tests.cluster.namespaces import NODE_PATIENCE_SECONDS, Cluster, Machine, until
from tests.cluster.toy import SEES_TESTS, Toys, ends
from tests.executors.conversations import lines, outcome

KILLS = 10


@pytest.fixture(scope="module")
def cluster(make_cluster):
    """A head, and two workers of one slot each."""
    return make_cluster(workers=[Machine(f"worker{number}", environment=SEES_TESTS) for number in (1, 2)])


@pytest.fixture(autouse=True)
def whole(request):
    """Each test finds two workers."""
    yield
    if "cluster" in request.fixturenames:
        cluster = request.getfixturevalue("cluster")
        for machine in cluster.machines.values():
            if not machine.should_run:
                cluster.start(machine)
        cluster.wait_for(len(cluster.machines))


def workers(cluster: Cluster) -> list[Machine]:
    return [cluster.machines["worker1"], cluster.machines["worker2"]]


@pytest.fixture
def say(capsys):
    """Prints figures past pytest."""

    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}")

    return say


def spread(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    return f"{ordered[len(ordered) // 2]:.1f} s ({ordered[0]:.1f} to {ordered[-1]:.1f})"


def test_a_raylet_killed_at_ten_moments(cluster, say):
    """A supervisor starts its node again at once. Each kill costs the trial that ran there, and no other."""
    toys = Toys(cluster, "raylets").start()
    waits, detected, back, killed = random.Random(0), [], [], set()

    def runs_on(worker: Machine) -> list[int]:
        cluster.supervise()  # on a busy machine a node may end by itself while it starts
        return toys.on(worker)

    for kill in range(KILLS):
        worker = workers(cluster)[kill % 2]
        toys.until(lambda worker=worker: runs_on(worker))
        time.sleep(waits.uniform(0.0, 3.0))
        before, pids = toys.tells(), set(worker.pids())
        start = time.monotonic()
        cluster.kill_raylet(worker)
        until(lambda worker=worker: worker.node.poll() is not None)
        assert worker.node.poll() != 0, "a supervisor sees it"
        gone = toys.begun_in(pids) - {event["number"] for event in before}
        killed |= pids
        cluster.supervise()
        toys.until(lambda gone=gone: gone <= {event["number"] for event in toys.tells()})
        detected.append(time.monotonic() - start)
        toys.until(lambda worker=worker: runs_on(worker))
        back.append(time.monotonic() - start)
        assert toys.tells()[: len(before)] == before, "what was told is there"
    toys.stop()
    lost = toys.lost()
    assert {pid for number, pid in lines(toys.folder, "started") if number in lost} <= killed, "other trials went on"
    assert len(lost) == len(set(lost)) <= KILLS
    toys.start().end()
    toys.assert_whole()
    say(
        f"a raylet killed {KILLS} times: {toys.trials} trials, {len(lost)} lost, told after {spread(detected)}; the node, "
        f"started again at once, had its next trial after {spread(back)}"
    )


def test_a_node_gone_for_good(cluster, say):
    """The other one goes on alone, with all that is left."""
    toys = Toys(cluster, "gone").start()
    kept, worker = workers(cluster)
    toys.until(lambda: toys.on(worker) and toys.on(kept))
    before, pids = toys.tells(), set(worker.pids())
    start = time.monotonic()
    cluster.kill(worker)
    running = toys.begun_in(pids) - {event["number"] for event in before}
    toys.until(lambda: running <= {event["number"] for event in toys.tells()})
    detected = time.monotonic() - start
    toys.stop(told=16)
    assert toys.tells()[: len(before)] == before
    lost = toys.lost()
    assert {pid for number, pid in lines(toys.folder, "started") if number in lost} <= pids, "other trials went on"
    assert len(lost) <= 1
    toys.start().end()
    toys.assert_whole()
    say(f"a node gone for good: {len(toys.lost())} trial lost, told after {detected:.1f} s; the other ran the rest")


@pytest.mark.parametrize("seconds", [10, 30])
def test_a_link_that_is_down_for_a_while(cluster, say, seconds):
    """Ray's threshold is set so that the node lives: nothing is lost, and the trial there is late."""
    toys = Toys(cluster, f"link-{seconds}").start()
    worker, other = workers(cluster)
    toys.until(lambda: toys.on(worker) and toys.on(other))
    raylet, (cut, *_) = worker.raylet(), toys.on(worker)
    before = len(toys.tells())
    with cluster.cut_off(worker):
        time.sleep(seconds)
        meanwhile = len(toys.tells()) - before
    start = time.monotonic()
    toys.until(lambda: cut in {event["number"] for event in toys.tells()})
    answered = time.monotonic() - start
    toys.until(lambda: toys.on(worker))
    again = time.monotonic() - start
    toys.stop()
    assert worker.raylet() == raylet, "the node lived"
    assert toys.lost() == []
    toys.assert_whole()
    say(
        f"a link down for {seconds} s: nothing lost, {meanwhile} trials told meanwhile; its own trial {answered:.1f} s "
        f"after the link was back, the node's next one began after {again:.1f} s"
    )


def test_a_worker_out_of_memory(cluster, say):
    """Ray's monitor ends the worker of a node whose memory is full: here by what the node reads of its memory."""
    toys = Toys(cluster, "memory")
    (toys.folder / "3.hang").touch()
    toys.start()
    toys.until(lambda: any(3 in toys.on(worker) for worker in workers(cluster)))
    (worker,) = (worker for worker in workers(cluster) if 3 in toys.on(worker))
    full = cluster.folder / "meminfo"
    total = Path("/proc/meminfo").read_text().splitlines()[0]  # Ray's threshold is a share of what it found at first
    full.write_text(f"{total}\nMemFree: 10000 kB\nMemAvailable: 20000 kB\nBuffers: 0 kB\nCached: 0 kB\n")
    start = time.monotonic()
    subprocess.run([*worker.within(), "mount", "--bind", str(full), "/proc/meminfo"], check=True)
    try:
        toys.until(lambda: 3 in toys.lost())
        detected = time.monotonic() - start
    finally:
        subprocess.run([*worker.within(), "umount", "/proc/meminfo"], check=True)
    (toys.folder / "3.hang").unlink()
    toys.until(lambda: toys.on(worker))
    toys.stop(told=8)
    (event,) = (event for event in toys.tells() if event["number"] == 3)
    assert event["status"] == "FAILED"
    assert event["error"] == "its worker died: Ray ended it, as its node ran low on memory"
    assert toys.lost() == [3]
    toys.start().end()
    toys.assert_whole()
    say(f"a worker out of memory: its trial lost, told after {detected:.1f} s with the reason, the others complete")


def test_a_step_that_hangs(cluster, say):
    """It is the trial's own fault: told once, and not run again."""
    toys = Toys(cluster, "hangs", trial_seconds=30.0)
    (toys.folder / "3.hang").touch()
    toys.start()
    toys.until(lambda: any(3 in toys.on(worker) for worker in workers(cluster)))
    start = time.monotonic()
    toys.until(lambda: 3 in {event["number"] for event in toys.tells()})
    ended = time.monotonic() - start
    toys.stop(told=8)
    failed = {event["number"]: event["error"] for event in toys.tells() if event["status"] != "COMPLETE"}
    assert failed.keys() == {3}
    assert failed[3].startswith("over its time limit of 30 s: a step went on")
    assert not toys.lost()
    events = toys.events()
    toys.start().end()
    assert toys.events() == events, "nothing runs again"
    say(f"a step that hangs, trial_seconds 30: ended after {ended:.1f} s, {len(toys.tells()) - 1} others complete")


def test_the_head_killed_then_resumed_on_a_new_cluster(cluster, say):
    toys = Toys(cluster, "head").start()
    toys.until(lambda: len(toys.tells()) >= 3 and all(toys.on(worker) for worker in workers(cluster)))
    start = time.monotonic()
    cluster.kill(cluster.head)
    toys.end(code=5)
    noticed, before = time.monotonic() - start, toys.events()
    assert "the head of the Ray cluster at" in toys.printed.read_text()
    assert not toys.lost()
    cluster.restart()
    toys.start().stop(told=8)
    assert toys.events()[: len(before)] == before
    reruns = [event["number"] for event in toys.events() if event["event"] == "rerun"]
    assert len(reruns) <= 2, "what ran, and no more"
    toys.assert_whole()
    say(f"the head killed: exit code 5 after {noticed:.1f} s; on a new cluster {len(reruns)} trials ran again")


def test_the_driver_killed_while_nodes_work_then_resumed(cluster, say):
    toys = Toys(cluster, "driver").start()
    toys.until(lambda: len(toys.tells()) >= 3 and all(toys.on(worker) for worker in workers(cluster)))
    start = time.monotonic()
    toys.driver.kill()
    toys.driver.wait()
    before, begun = toys.events(), {pid for _, pid in lines(toys.folder, "started")}
    until(lambda: not any(begun & set(worker.pids()) for worker in workers(cluster)))
    freed = time.monotonic() - start
    toys.start().stop(told=8)
    assert toys.events()[: len(before)] == before
    assert not toys.lost()
    reruns = [event["number"] for event in toys.events() if event["event"] == "rerun"]
    assert len(reruns) <= 2, "what ran, and no more"
    toys.assert_whole()
    say(f"the driver killed: its workers were gone after {freed:.1f} s; {len(reruns)} trials ran again")


# ── the product itself: its trainer on digits, on a node that has nothing of the driver's ───────────────────────────

CONFIG = {
    "model": "digits",
    "task": "digits",
    "data": {},
    "space": "digits",
    "training": {"epochs": 10, "precision": "fp32", "attention": "eager"},
    "sampler": "random",
    "stopper": "never",
    "budget": {"trials": 8},
    "trackers": [],
    "keep": "all",
}


def test_a_full_disk_on_a_node(make_cluster, tmp_path, say):
    """It is full before the first trial, then after some. With room again, and its node started again, the search ends.

    Two things may come first: the node cannot keep what it is sent, or a trial's tensors, which ends the search with the
    node's name; or Ray's own processes end: then the search finds no node, and names it, or, in the middle, loses the
    trial that ran there, and waits for a node.
    """
    (tmp_path / "job.yaml").write_text(json.dumps(CONFIG))
    alone = ("search", "job.yaml", "--name", "alone", "--set", "executor=serial")
    commands.autopeft(*alone, cwd=tmp_path, timeout=NODE_PATIENCE_SECONDS)
    cluster = make_cluster(workers=[Machine("worker1", disk_bytes=64 * 2**20)], hidden=[cache_folder()])
    executor = f"executor={{name: ray_tune, address: '{cluster.address}'}}"
    worker, run = cluster.machines["worker1"], tmp_path / "runs" / "far"

    def assert_said(printed: str) -> str:
        last = printed.splitlines()[-1]
        ended = "no node of Ray has room" in last and f"{worker.address}: ended" in last
        if not (ended and worker.node.poll() is not None):
            assert f"node {worker.address}" in last and "No space left on device" in last, printed
        return last

    with full(worker):
        code, printed = cluster.autopeft("search", "job.yaml", "--name", "far", "--set", executor, cwd=tmp_path)
    assert code == 5, printed
    assert told(run) == []
    say(f"a full disk on a node: {assert_said(printed)}")
    cluster.supervise()
    cluster.wait_for(2)
    output = tmp_path / "printed"
    driver = cluster.driver("resume", "runs/far", "--set", executor, cwd=tmp_path, output=output)
    until(lambda: len(told(run)) >= 2 or driver.poll() is not None)
    assert driver.poll() is None, output.read_text()
    with full(worker):
        until(lambda: driver.poll() is not None or worker.node.poll() is not None)
        before, ended = told(run), worker.node.poll()
    assert 2 <= len(before) < 8, output.read_text()
    say(f"a full disk on a node, after {len(before)} trials: `ray start` {'goes on' if ended is None else 'ended'}")
    cluster.supervise()
    cluster.wait_for(2)
    if driver.wait(NODE_PATIENCE_SECONDS) == 5:
        say(f"a full disk on a node, after some trials: {assert_said(output.read_text())}")
    else:
        assert driver.poll() == 0, output.read_text()
    if set(ends(ledger.read(run / ledger.NAME)).values()) != {"COMPLETE"}:
        code, printed = cluster.autopeft("resume", "runs/far", "--set", executor, cwd=tmp_path)
        assert code == 0, printed
    assert told(run)[: len(before)] == before
    assert ends(ledger.read(run / ledger.NAME)) == dict.fromkeys(range(8), "COMPLETE")
    assert outcome(run) == outcome(tmp_path / "runs" / "alone")


def told(run: Path) -> list[int]:
    path = run / ledger.NAME
    return [e["number"] for e in ledger.read(path) if e["event"] == "tell"] if path.exists() else []


@contextlib.contextmanager
def full(machine: Machine) -> Iterator[None]:
    """Fills a machine's own disk as long as the context lasts."""
    ballast = machine.files / "tmp" / "ballast"
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    try:
        yield
    finally:
        ballast.unlink()
