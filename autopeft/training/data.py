"""Data, encoded once a node: flat arrays on disk that every worker reads through memory maps, without copying."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from autopeft.errors import ConfigError, Fault, UsageError
from autopeft.files import build_once
from autopeft.tasks import Columns, Kind, Ragged, Raw, Split, Task, chunks
from autopeft.training import worst
from autopeft.training.setup import Setup

FORMAT = 5  # version of the folder; data of an older version is encoded again
MOST_FAULTS = 20  # named in one message
CHUNK = 512  # rows encoded at once; bounds the memory of encoding


@dataclass(frozen=True)
class Data:
    """A task's data, encoded for one model.

    Attributes:
        folder: Place of the arrays.
        task: The task that encoded the data.
        splits: "train", "validation", and "test" if there is one.
        rows: Split → (n_rows,) int64: each row's index in the file, or the official split, that it came from.
        about: What scoring, answers and reports need (`tasks.Dataset.about`).
        origin: Where the data came from and how the splits were made.
    """

    folder: Path
    task: Task
    splits: Mapping[str, Split]
    rows: Mapping[str, np.ndarray]
    about: Mapping[str, Any]
    origin: Mapping[str, Any]

    @property
    def n_outputs(self) -> int:
        """Size of the model's output layer; 0 to keep that of the checkpoint."""
        return int(self.about["n_outputs"])

    @cached_property
    def quotes(self) -> Ragged:
        """The bytes of what a reader sees of each validation row (`training.worst`)."""
        folder = self.folder / "validation"
        values = np.memmap(folder / "quotes.bin", np.uint8, "r")
        return Ragged(values, np.load(folder / "quotes.offsets.npy"), 0)

    @cached_property
    def weights(self) -> Mapping[str, np.ndarray]:
        """Split → (n_rows,): weight of each row in a mean loss."""
        return {name: np.asarray(self.task.weights(split.targets)) for name, split in self.splits.items()}


def prepare(setup: Setup) -> Data:
    """Opens the encoded data of a setup; encodes it into the cache first if needed. Safe between processes."""
    task = setup.task.make()
    if setup.encoded is not None:
        folder = Path(setup.encoded)
    else:
        folder = Path(setup.cache) / "data" / _key(setup)
        build_once(folder, lambda to: _encode(task, setup, to))
    try:
        meta = json.loads((folder / "meta.json").read_text())
        splits = {name: _load_split(folder / name) for name in meta["splits"]}
        rows = {name: np.load(folder / name / "rows.npy") for name in splits}
    except (ValueError, KeyError, TypeError) as fault:  # numpy refuses pickles so
        raise UsageError(f"{folder} is damaged ({fault}): remove it, and the data is encoded again") from fault
    return Data(folder, task, splits, rows, meta["about"], meta["origin"])


def encoded(setup: Setup, digest: str) -> Path | None:
    """Returns the folder in the setup's cache that has the data of this digest; None if there is none."""
    for file in sorted((Path(setup.cache) / "data").glob("*/meta.json")):
        meta = json.loads(file.read_text())
        if meta.get("format") == FORMAT and meta["origin"].get("digest") == digest:
            return file.parent
    return None


def _key(setup: Setup) -> str:
    """Returns a key of everything that the encoded arrays depend on. A file, also one of a folder, counts by its size and
    time of change."""
    stamps: dict[str, list[Any]] = {}
    for name, value in setup.task.data.items():
        if isinstance(value, str) and Path(value).is_file():
            stamps[name] = _stamp(Path(value))
        elif isinstance(value, str) and Path(value).is_absolute() and Path(value).is_dir():
            files = sorted(path for path in Path(value).rglob("*") if path.is_file())
            stamps[name] = [[str(path.relative_to(value)), *_stamp(path)] for path in files]
    task = {name: value for name, value in asdict(setup.task).items() if name != "own_metrics"}
    parts = [FORMAT, task, stamps, setup.model.path, setup.model.revision, setup.seed]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _stamp(file: Path) -> list[Any]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _encode(task: Task, setup: Setup, folder: Path) -> None:
    dataset = task.read(setup.task.data, setup.seed)
    encode = task.encoder(setup.source, dataset.about)
    faults: list[Fault] = []
    origin = dict(dataset.origin)
    for name, raw in dataset.splits.items():
        left_out: list[int] = []
        counts: Counter[str] = Counter()
        with contextlib.closing(Writer(folder / name)) as writer:
            for number, chunk in enumerate(chunks(raw, CHUNK)):
                try:
                    split = encode(chunk)
                except ConfigError as fault:  # of these rows; faults of the others are collected, too
                    faults += [Fault(inner.path, f"{name}, {inner.message}", inner.line) for inner in fault.faults]
                else:
                    writer.add(split)
                    left_out += [number * CHUNK + at for at in split.left_out]
                    counts.update(split.notes)
                if len(faults) > MOST_FAULTS:
                    break
        faults += _nothing_left(name, raw, left_out, counts)
        np.save(folder / name / "rows.npy", np.delete(raw.rows, left_out))
        if left_out:
            origin["rows"] = {**origin["rows"], name: len(raw) - len(left_out)}
        said = [f"{name}: {count:,} of {len(raw):,} rows {what}" for what, count in counts.items()]
        origin["notes"] = [*origin.get("notes", ()), *said]
        if name == "validation" and not faults:
            kinds = worst.kinds_of(task, setup.task.data)
            _write_quotes(folder / name, raw, set(left_out), kinds, dataset.about)
    if faults:
        raise ConfigError(faults, "data")
    meta = {"format": FORMAT, "splits": list(dataset.splits), "about": dict(dataset.about), "origin": origin}
    (folder / "meta.json").write_text(json.dumps(meta, default=str))


def _nothing_left(split: str, raw: Raw, left_out: Sequence[int], counts: Mapping[str, int]) -> list[Fault]:
    if len(left_out) < len(raw):
        return []
    return [Fault("data", f"{split} has no row left: {count:,} rows {what}") for what, count in counts.items()]


def _write_quotes(
    folder: Path, raw: Raw, left_out: Collection[int], kinds: Mapping[str, Kind], about: Mapping[str, Any]
) -> None:
    """Writes what a reader sees of each row that is used, so that reports need neither the data nor its libraries."""
    lengths: list[int] = []
    with open(folder / "quotes.bin", "wb") as file:
        of_all = (quote for chunk in chunks(raw, CHUNK) for quote in worst.quotes(chunk, kinds, about))
        for row, quote in enumerate(of_all):
            if row not in left_out:
                lengths.append(len(quote))
                file.write(quote)
    np.save(folder / "quotes.offsets.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


class Writer:
    """Writes an encoded split chunk by chunk, with at most one chunk in memory.

    A column is a file of its numbers, row after row. A ragged column has a second file with the lengths of its rows.
    columns.json holds the types and shapes.

    Args:
        folder: Destination; it is created.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._lengths: dict[str, list[np.ndarray]] = {}
        self._meta: dict[str, Any] = {"inputs": {}, "targets": {}, "scale": []}

    def add(self, split: Split) -> None:
        """Appends the next rows.

        Raises:
            ValueError: Their type or shape differs from that of the rows before.
        """
        for part, columns in (("inputs", split.inputs), ("targets", split.targets)):
            for name, column in columns.items():
                self._append(part, name, column)
        for name, scale in split.scale.items():
            if name not in self._meta["scale"]:
                self._meta["scale"].append(name)
                np.save(self.folder / f"{name}.scale.npy", np.stack(scale))

    def _append(self, part: str, name: str, column: Ragged | np.ndarray) -> None:
        values = np.ascontiguousarray(column.values if isinstance(column, Ragged) else column)
        kind: dict[str, Any] = {"dtype": values.dtype.str, "shape": list(values.shape[1:])}
        if isinstance(column, Ragged):
            kind |= {"pad": column.pad, "is_left": column.is_left}
        known = self._meta[part].setdefault(name, kind)
        if known != kind:
            raise ValueError(f"the encoder gives {name} as {kind}, and gave it as {known} before")
        key = f"{part}.{name}"
        if key not in self._files:
            self._files[key] = open(self.folder / f"{key}.bin", "wb")  # noqa: SIM115  (open until `close`)
        self._files[key].write(values.tobytes())
        if isinstance(column, Ragged):
            self._lengths.setdefault(key, []).append(np.diff(column.offsets))

    def close(self) -> None:
        """Closes the files and writes columns.json."""
        for file in self._files.values():
            file.close()
        for key, lengths in self._lengths.items():
            np.save(self.folder / f"{key}.offsets.npy", np.concatenate([[0], *lengths]).cumsum())
        (self.folder / "columns.json").write_text(json.dumps(self._meta))


def _load_split(folder: Path) -> Split:
    meta = json.loads((folder / "columns.json").read_text())
    scale = {name: tuple(np.load(folder / f"{name}.scale.npy")) for name in meta["scale"]}
    return Split(_load_columns(folder, "inputs", meta), _load_columns(folder, "targets", meta), scale)


def _load_columns(folder: Path, part: str, meta: Mapping[str, Any]) -> Columns:
    columns: dict[str, Ragged | np.ndarray] = {}
    for name, kind in meta[part].items():
        file = folder / f"{part}.{name}.bin"
        shape = (-1, *kind["shape"])
        if file.stat().st_size:
            values = np.memmap(file, kind["dtype"], "r").reshape(shape)
        else:  # an empty file cannot be mapped
            values = np.empty((0, *kind["shape"]), kind["dtype"])
        if "pad" in kind:
            columns[name] = Ragged(values, np.load(folder / f"{part}.{name}.offsets.npy"), kind["pad"], kind["is_left"])
        else:
            columns[name] = values
    return columns
