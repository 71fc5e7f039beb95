"""A full disk at the driver: a clear error with exit code 5, all that was told is readable, and a resume goes on.

The run's folder is a file system of its own, too small for the search. With each resume it is a little larger, so that
room runs out in many places: while data is encoded, in the ledger, in caches, in trained tensors, in reports. That
takes root and minutes; what runs everywhere fails while one trial's adapter is written.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from autopeft import ledger
from autopeft.files import trial_folder
from autopeft.history import History
from autopeft.training import loop
from tests import commands
from tests.executors.conversations import outcome
from tests.integration.test_kill import SMALL
from tests.security.stranger import call, write_rows, write_search

CONFIG = {
    **SMALL, "training": {**SMALL["training"], "epochs": None, "steps": 8}, "sampler": "random", "stopper": "never",
    "budget": {"trials": 6}, "name": "r",
}  # fmt: skip
STEPS = 8  # so many times the disk grows until it would hold all


def can_mount() -> bool:
    return os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


class Disk:
    """A file system in memory. The context unmounts it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Disk:
        self.folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(self.folder)], check=True)
        return self

    def __exit__(self, *fault: object) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def grow(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)


def told(run: Path) -> list[int]:
    path = run / ledger.NAME
    return [e["number"] for e in ledger.read(path) if e["event"] == "tell"] if path.exists() else []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a search with room, and the bytes that it takes."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "job.yaml").write_text(json.dumps({**CONFIG, "runs": str(folder)}))
    commands.autopeft("search", "job.yaml", "--set", "executor=serial", cwd=folder)
    sizes = [-(-path.stat().st_size // 4096) * 4096 for path in (folder / "r").rglob("*") if path.is_file()]
    return folder / "r", sum(sizes)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not can_mount(), reason="needs root: a small file system to be filled")
@pytest.mark.parametrize("executor", ["serial", {"name": "ray_tune", "slots": 2}])
def test_a_full_disk_at_the_driver(tmp_path, whole, executor, capsys):
    reference, size = whole
    with Disk(tmp_path / "disk") as disk:
        run = disk.folder / "r"
        (tmp_path / "job.yaml").write_text(json.dumps({**CONFIG, "runs": str(disk.folder), "executor": executor}))
        before, said = told(run), []
        for step in range(1, 3 * STEPS):
            disk.grow(step * size // STEPS)
            has_begun = (run / ledger.NAME).exists() and ledger.read(run / ledger.NAME)
            words = ["resume", str(run)] if has_begun else ["search", "job.yaml"]
            done = commands.autopeft(*words, cwd=tmp_path, check=False)
            now = told(run)
            assert now[: len(before)] == before, "what was told is there"
            before = now
            if done.returncode == 0:
                break
            assert done.returncode == 5, done.stderr
            said.append((len(now), done.stderr.strip().splitlines()[-1]))
            assert said[-1][1].startswith("error: "), done.stderr
            assert "Traceback" not in done.stderr
        with capsys.disabled():
            print(*(f"\n{number} trials told: {text}" for number, text in said), sep="")
        assert done.returncode == 0, "at last there was room"
        assert len(said) >= 4, "room ran out in many places, else this tests nothing"
        assert sorted(told(run)) == list(range(6)), "each is told once"
        assert History.read(run / ledger.NAME).counts() == {"COMPLETE": 6}
        assert outcome(run) == outcome(reference)
        assert {path.name for path in run.iterdir()} == {path.name for path in reference.iterdir()}


# ── while an adapter is written ─────────────────────────────────────────────────────────────────────────────────────


def tensors_full(path: Path) -> None:
    """Half of a file of tensors is written, and safetensors raises what it does on a full disk: no OSError."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def rows_full(path: Path) -> None:
    """The tensors are whole; what belongs beside them is not."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path.with_name("recipe.json")))


@pytest.mark.parametrize("full", [tensors_full, rows_full])
def test_a_full_disk_while_an_adapter_is_written(tmp_path, monkeypatch, full):
    write_rows(tmp_path / "rows.csv")
    write_search(tmp_path, keep="all")
    run, written = tmp_path / "runs" / "r", []

    def save(tensors, path):
        save_file(tensors, path)
        written.append(path)
        if len(written) == 2:
            full(path)

    monkeypatch.setattr(loop, "save_file", save)
    code, said = call("search", "my.yaml", "--name", "r", cwd=tmp_path)
    assert code == 5
    assert [line for line in said.splitlines() if line.startswith("error: ")] == [said.splitlines()[-1]]
    assert "No space left on device" in said and "Traceback" not in said
    assert told(run) == [0], "the trial without an adapter is not told"
    assert not trial_folder(run, 1).exists()
    code, said = call("resume", "runs/r", cwd=tmp_path)
    assert code == 0, said
    assert told(run) == [0, 1]
    assert sorted(path.name for path in (run / "trials").iterdir()) == ["00000", "00001"], (
        "nothing half written is left"
    )
    for number in (0, 1):
        assert load_file(trial_folder(run, number) / "trained.safetensors")
