"""A worker that the kernel kills, as its memory ran out: its trial is told once with a reason, and others go on."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from autopeft.executors._tune import faults_as_deaths, why_died
from autopeft.trial import Status
from tests.executors.conversations import Toy, lines
from tests.executors.test_ray_tune import run

CGROUPS = Path("/sys/fs/cgroup")
LIMIT = 64 * 2**20


@contextlib.contextmanager
def group() -> Iterator[Path | None]:
    """Makes a cgroup with little memory. Yields its folder; None if none can be made here."""
    is_old = (CGROUPS / "memory").is_dir()
    folder = (CGROUPS / "memory" if is_old else CGROUPS) / f"autopeft-{uuid.uuid4().hex[:8]}"
    limits = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"] if is_old else ["memory.max", "memory.swap.max"]
    try:
        folder.mkdir()
        for name, size in zip(limits, (LIMIT, LIMIT if is_old else 0), strict=True):
            (folder / name).write_text(str(size))
    except OSError:
        with contextlib.suppress(OSError):
            folder.rmdir()
        yield None
        return
    try:
        yield folder
    finally:
        end = time.monotonic() + 60
        while folder.exists() and time.monotonic() < end:  # a cgroup goes once its last process has gone
            with contextlib.suppress(OSError):
                folder.rmdir()
            time.sleep(0.1)


@pytest.mark.slow
def test_a_worker_that_the_kernel_kills_for_its_memory(tmp_path):
    with group() as folder:
        if folder is None:
            pytest.skip("no cgroup with a memory limit can be made here: needs root")
        (tmp_path / "1.eat").write_text(str(folder))
        history = run(tmp_path, Toy(tmp_path, seconds=0.02), slots=2)
    failed = {
        record.number: (record.error, record.fault) for record in history.records if record.status is Status.FAILED
    }
    assert failed == {1: ("its worker died: killed, crashed, or its node is gone", "machine")}
    assert sorted(history.told) == list(range(8)), "each is told once, and the slot was free again"
    assert len(lines(tmp_path, "started")) == 8


def test_a_worker_that_rays_monitor_ends_has_died_and_the_run_goes_on():
    """Its fault is no RayActorError, so that Tune by itself would end the run (Ray 2.60)."""
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.exceptions import OutOfMemoryError

    heard = []
    actor = SimpleNamespace(actor_id=1, _on_error=lambda who, fault: heard.append(fault))
    manager = SimpleNamespace(_failed_actor_ids=set(), _cleanup_actor=lambda tracked_actor: None)
    task = SimpleNamespace(_tracked_actor=actor, _on_error=None)
    fault = OutOfMemoryError("1 worker(s) were killed due to the node running low on memory. Memory on the node …")
    with pytest.raises(RuntimeError, match="Caught unexpected exception"):
        RayActorManager._actor_task_failed(manager, task, fault)
    with faults_as_deaths():
        RayActorManager._actor_task_failed(manager, tracked_actor_task=task, exception=fault)
    assert [why_died(one) for one in heard] == ["Ray ended it, as its node ran low on memory"]
    with pytest.raises(RuntimeError, match="Caught unexpected exception"):
        RayActorManager._actor_task_failed(manager, task, fault)


def test_rays_own_monitor_is_named():
    """Its text is Ray's, of 2.60: tests/cluster/test_faults.py has the monitor itself end a worker."""
    text = "The actor died unexpectedly ... Task was killed due to the node running low on memory."
    assert why_died(RuntimeError(text)) == "Ray ended it, as its node ran low on memory"
