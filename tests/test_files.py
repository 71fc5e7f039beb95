"""Folders that are there whole, or not at all."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from autopeft.files import build_once, remove_empty


def write(folder: Path) -> None:
    (folder / "one").write_text("1")
    (folder / "two").write_text("2")


def die_midway(folder: Path) -> None:
    (folder / "one").write_text("1")
    os.kill(os.getpid(), signal.SIGKILL)


def fail(folder: Path) -> None:
    raise ValueError("no such rows")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_is_built_once(tmp_path: Path) -> None:
    build_once(tmp_path / "built", write)
    build_once(tmp_path / "built", fail)
    assert names(tmp_path) == ["built"]
    assert names(tmp_path / "built") == ["one", "two"]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such rows"):
        build_once(tmp_path / "built", fail)
    assert names(tmp_path) == []


def test_what_a_killed_process_left_half_made_is_swept_away(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=build_once, args=(tmp_path / "built", die_midway))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (left,) = names(tmp_path)
    assert left.startswith(".built.")
    (tmp_path / ".builder.other").mkdir()  # of another folder, whose name begins alike
    build_once(tmp_path / "built", write)
    assert names(tmp_path) == [".builder.other", "built"]


def test_of_several_processes_one_builds(tmp_path: Path) -> None:
    def note(folder: Path) -> None:
        (tmp_path / f"by {os.getpid()}").touch()
        write(folder)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=build_once, args=(tmp_path / "built", note)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(list(tmp_path.glob("by *"))) == 1


@pytest.mark.parametrize(
    ("files", "stays"),
    [
        ([], False),
        (["cache/data/encoded-1.lock", "cache/prefix/a.lock"], False),
        (["cache/data/encoded-1.lock", "cache/data/encoded-1/train.npy"], True),
        (["poetry.lock"], True),
        (["ledger.jsonl", "cache/data/encoded-1.lock"], True),
    ],
)
def test_a_run_that_never_began_is_removed_and_no_file_of_anybody_s(
    tmp_path: Path, files: list[str], stays: bool
) -> None:
    folder = tmp_path / "run"
    (folder / "trials").mkdir(parents=True)
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    remove_empty(folder)
    assert folder.exists() == stays
    assert not stays or all((folder / name).is_file() for name in files)
