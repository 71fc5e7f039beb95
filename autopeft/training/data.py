"""Encoded data, once a node: flat arrays on disk, read by every worker through memory maps, without copying."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autopeft.errors import ConfigError, Fault
from autopeft.files import build_once
from autopeft.tasks import Ragged, Split, Task
from autopeft.training.setup import Setup

FORMAT = 3  # of the folder: a run that an older autopeft began is encoded anew


@dataclass(frozen=True)
class Data:
    """A task's data, encoded for one model.

    Attributes:
        folder: Where the arrays lie.
        splits: "train", "validation", and "test" where there is one.
        rows: Split → (n_rows,) int64: each row's index in the file, or the official split, that it came from.
        label_names: By label index.
        origin: Where the data came from and how the splits were made.
    """

    folder: Path
    splits: Mapping[str, Split]
    rows: Mapping[str, np.ndarray]
    label_names: tuple[str, ...]
    origin: Mapping[str, Any]


def prepare(setup: Setup) -> Data:
    """The data of a setup: where it was encoded, or read and encoded into the cache now. Safe between processes."""
    if setup.encoded is not None:
        folder = Path(setup.encoded)
    else:
        task = setup.task.make()
        folder = Path(setup.cache) / "data" / _key(setup)
        build_once(folder, lambda to: _encode(task, setup, to))
    meta = json.loads((folder / "meta.json").read_text())
    splits = {name: _load_split(folder / name) for name in meta["splits"]}
    rows = {name: np.load(folder / name / "rows.npy") for name in splits}
    return Data(folder, splits, rows, tuple(meta["label_names"]), meta["origin"])


def encoded(setup: Setup, digest: str) -> Path | None:
    """The folder in the setup's cache that has the data of this digest; None where none has."""
    for file in sorted((Path(setup.cache) / "data").glob("*/meta.json")):
        meta = json.loads(file.read_text())
        if meta.get("format") == FORMAT and meta["origin"].get("digest") == digest:
            return file.parent
    return None


def _key(setup: Setup) -> str:
    """Changes with everything that the encoded arrays depend on; files count by size and time of change."""
    stamps = {}
    for name, value in setup.task.data.items():
        if isinstance(value, str) and Path(value).is_file():
            stat = Path(value).stat()
            stamps[name] = [stat.st_size, stat.st_mtime_ns]
    parts = [FORMAT, asdict(setup.task), stamps, setup.model.path, setup.model.revision, setup.seed]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _encode(task: Task, setup: Setup, folder: Path) -> None:
    dataset = task.read(setup.task.data, setup.seed)
    options = {
        "max_length": setup.task.max_length,
        "revision": setup.model.revision,
        "trust_remote_code": setup.model.trust_remote_code,
        "image_size": setup.task.data.get("image_size"),
    }
    faults: list[Fault] = []
    for name, raw in dataset.splits.items():
        try:
            _save_split(folder / name, task.encode(raw, setup.model.path, options))
            np.save(folder / name / "rows.npy", raw.rows)
        except ConfigError as fault:  # rows that cannot be encoded: those of the other splits are looked at, too
            faults += [Fault(inner.path, f"{name}, {inner.message}", inner.line) for inner in fault.faults]
    if faults:
        raise ConfigError(faults, "data")
    meta = {
        "format": FORMAT,
        "splits": list(dataset.splits),
        "label_names": list(dataset.label_names),
        "origin": dict(dataset.origin),
    }
    (folder / "meta.json").write_text(json.dumps(meta, default=str))


def _save_split(folder: Path, split: Split) -> None:
    folder.mkdir(parents=True)
    kinds = {}
    for name, column in split.columns.items():
        if isinstance(column, Ragged):
            kinds[name] = {"kind": "ragged", "pad": column.pad, "is_left": column.is_left}
            np.save(folder / f"{name}.values.npy", column.values)
            np.save(folder / f"{name}.offsets.npy", column.offsets)
        else:
            kinds[name] = {"kind": "dense"}
            np.save(folder / f"{name}.npy", column)
    for name, (multiply, add) in split.scale.items():
        np.save(folder / f"{name}.scale.npy", np.stack([multiply, add]))
    np.save(folder / "labels.npy", split.labels)
    (folder / "columns.json").write_text(json.dumps({"columns": kinds, "scale": list(split.scale)}))


def _load_split(folder: Path) -> Split:
    meta = json.loads((folder / "columns.json").read_text())
    columns: dict[str, Ragged | np.ndarray] = {}
    for name, kind in meta["columns"].items():
        if kind["kind"] == "ragged":
            values = np.load(folder / f"{name}.values.npy", mmap_mode="r")
            columns[name] = Ragged(values, np.load(folder / f"{name}.offsets.npy"), kind["pad"], kind["is_left"])
        else:
            columns[name] = np.load(folder / f"{name}.npy", mmap_mode="r")
    scale = {}
    for name in meta["scale"]:
        multiply, add = np.load(folder / f"{name}.scale.npy")
        scale[name] = (multiply, add)
    return Split(columns, np.load(folder / "labels.npy"), scale)
