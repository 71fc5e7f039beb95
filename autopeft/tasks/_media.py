"""Rows that are files, such as pictures: in a folder for each class, or named in a table beside them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autopeft.errors import ConfigError, Fault
from autopeft.tasks import Dataset, Raw
from autopeft.tasks._columns import ArrowColumn
from autopeft.tasks._reading import SPLITS, describe_origin, repeated, without_faulty
from autopeft.tasks._splits import complete
from autopeft.tasks._targets import RowFault, alike, in_order, is_missing, row_fault, some_rows

# Folders that systems and tools leave behind, beside those whose names begin with a dot.
LEFT_BEHIND = ("__MACOSX", "__pycache__", "@eaDir", "lost+found")
NAMED_AT_ONCE = 3  # files or folders in one message


@dataclass(frozen=True, slots=True)
class Medium:
    """A kind of files.

    Attributes:
        one, many: Its name: "picture", "pictures".
        key: Key of the config's `data` that names its column; also the input's name of rows from folders.
        endings: Endings of files that can be read.
        unread: Endings of such files that cannot be read.
        check: Raises ConfigError for a value that cannot be decoded.
    """

    one: str
    many: str
    key: str
    endings: tuple[str, ...]
    unread: tuple[str, ...]
    check: Callable[[Any], object]

    def files_in(self, folder: Path) -> list[Path]:
        """Returns the files of a folder that can be read, in order; hidden ones are none."""
        return _of(folder, self.endings)


def is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name in LEFT_BEHIND


def folders_in(folder: Path) -> list[Path]:
    """Returns the folders of a folder, in order, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path))


def read_folders(data: Mapping[str, Any], seed: int, medium: Medium) -> Dataset:
    """Reads a folder for each split, with a folder for each class in it.

    Raises:
        ConfigError: A class has no files, or files are where none is read. Names all faults at once.
    """
    faults: list[Fault] = []
    notes: list[str] = []
    if data.get("group"):
        faults.append(
            Fault("data.group", "names a column, and folders have none: give a table of paths, labels, groups")
        )
    found = [folder.name for folder in folders_in(Path(data["train"]))]
    names = list(data.get("label_names") or in_order(found))
    if len(found) < 2:
        raise ConfigError(
            [Fault("data.train", f"{data['train']} has {len(found)} class folders; expected two or more")], "data"
        )
    splits: dict[str, Raw] = {}
    for split in SPLITS:
        if data.get(split):
            raw, unfit = _split(Path(data[split]), split, names, set(found), medium, data.get("on_fault") == "skip")
            splits[split], left, said = without_faulty(raw, unfit, data)
            faults += left
            notes += said
    if faults:
        raise ConfigError(faults, "data")
    digests, marks = _hashes(splits, names, medium.key)
    parts, made, of_splits = complete(splits, data, seed, names)
    of_parts = {
        name: np.array([marks[file] for file in raw.inputs[medium.key]], dtype=np.uint64) for name, raw in parts.items()
    }
    notes += [*of_splits, *alike(names), *repeated(of_parts)]
    origin = describe_origin(data["train"], digests["digest"], parts, made, notes)
    return Dataset(parts, {"label_names": names, "n_outputs": len(names)}, {**origin, **digests})


def _split(
    folder: Path, split: str, names: Sequence[str], of_train: set[str], medium: Medium, skips: bool
) -> tuple[Raw, list[Fault]]:
    """Reads the class folders of one split, and finds all that is wrong in them."""
    at = f"data.{split}"
    files: list[str] = []
    labels: list[int] = []
    faults: list[Fault] = list(_outside(folder, at, medium))
    for of_class in folders_in(folder):
        found = medium.files_in(of_class)
        rows = range(len(files), len(files) + len(found))
        if of_class.name not in names:
            has = "train" if of_class.name not in of_train else "label_names"
            faults.append(RowFault(at, f"has a class {of_class.name!r} that {has} has not", rows=tuple(rows)))
        files += map(str, found)
        labels += [names.index(of_class.name) if of_class.name in names else 0] * len(found)
        faults += _of_class(of_class, at, medium, is_needed=split == "train" and not found)
    absent = [name for name in names if split == "train" and not (folder / name).is_dir()]
    faults += [Fault("data.label_names", f"train has no folder {name!r}") for name in absent]
    if not files:
        faults.append(Fault(at, f"{folder} has no {medium.many} ({', '.join(medium.endings)})"))
    if skips:
        faults += damaged(files, at, split, medium)
    indices = np.array(labels, dtype=np.int64)
    return Raw({medium.key: files}, {"label": indices}, np.arange(len(files)), indices), faults


def _of_class(folder: Path, at: str, medium: Medium, is_needed: bool) -> list[Fault]:
    """Finds files of a class that would not be read. `is_needed`: there is none that would."""
    deeper = [inner for inner in folders_in(folder) if any(map(medium.files_in, [inner, *_below(inner)]))]
    unread = _of(folder, medium.unread)
    said = []
    if deeper:
        said.append(f"{medium.many} in folders of its own ({_named(deeper)}): move them up")
    if unread:
        kinds = ", ".join(in_order(path.suffix.lower() for path in unread))
        said.append(f"{len(unread):,} {medium.many} of a kind that is not read ({kinds}): convert them")
    if is_needed:
        what = f", but {' and '.join(said)}" if said else ": fill it, or take the folder away"
        return [Fault(at, f"the class {folder.name!r} has no {medium.many} ({', '.join(medium.endings)}){what}")]
    return [RowFault(at, f"the class {folder.name!r} has {' and '.join(said)}")] if said else []


def _outside(folder: Path, at: str, medium: Medium) -> list[Fault]:
    """Finds files beside the class folders: they have no class."""
    loose = medium.files_in(folder)
    return [RowFault(at, f"{len(loose):,} {medium.many} are in no class folder: {_named(loose)}")] if loose else []


def damaged(values: Sequence[Any], at: str, split: str, medium: Medium, known: Collection[int] = ()) -> list[Fault]:
    """Tries to decode each value, and finds those that cannot be. `known`: rows that another fault is about."""
    wrong, why = [], ""
    for row, value in enumerate(values):
        if row in known:
            continue
        try:
            medium.check(value)
        except ConfigError as fault:
            wrong.append(row)
            why = why or fault.faults[0].message
    if not wrong:
        return []
    return [RowFault(at, f"{split} has damaged {medium.many}, {some_rows(wrong)}; the first: {why}", rows=tuple(wrong))]


def placed(column: Sequence[Any], folder: Path) -> Sequence[Any]:
    """Makes paths in a column of a table absolute: they are relative to the table's folder."""

    def place(value: Any) -> Any:
        if isinstance(value, str):
            return {"bytes": None, "path": str(folder / Path(value).expanduser())}
        if isinstance(value, Mapping) and value.get("path") and not value.get("bytes"):
            return {"bytes": None, "path": str(folder / value["path"])}
        return value

    if isinstance(column, ArrowColumn):
        return ArrowColumn(column.values, place)
    return [None if is_missing(value) else place(value) for value in column]


def media_faults(
    table: Mapping[str, Sequence[Any]], columns: Mapping[str, str], split: str, medium: Medium, skips: bool
) -> list[Fault]:
    """Finds cells without a file, or with a path that leads nowhere; if rows may be skipped, damaged files, too."""
    faults: list[Fault] = []
    for name, key in columns.items():
        empty, strange, gone = [], [], dict[int, str]()
        for row, value in enumerate(table[name]):
            is_content = isinstance(value, Mapping) and (value.get("bytes") or value.get("path"))
            if is_missing(value) or (isinstance(value, Mapping) and not is_content):
                empty.append(row)
            elif isinstance(value, (int, float, str, list)):
                strange.append(row)
            elif isinstance(value, Mapping) and not value.get("bytes") and not Path(value["path"]).is_file():
                gone[row] = value["path"]
        at = f"data.{key}"
        if empty:
            faults.append(row_fault(at, split, empty, f"without a {medium.one}"))
        if strange:
            faults.append(row_fault(at, split, strange, f"whose {medium.one} is neither a path nor bytes"))
        if gone:
            first = next(iter(gone.values()))
            what = f"whose {medium.one} is not there (looked for {first}; a path is relative to its table)"
            faults.append(row_fault(at, split, list(gone), what))
        if skips:
            faults += damaged(table[name], at, split, medium, known={*empty, *strange, *gone})
    return faults


def _below(folder: Path) -> list[Path]:
    """Returns all folders below a folder, without hidden ones."""
    inner = folders_in(folder)
    return [*inner, *(deeper for each in inner for deeper in _below(each))]


def _of(folder: Path, endings: Sequence[str]) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in endings and path.is_file() and not is_hidden(path)
    )


def _named(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths[:NAMED_AT_ONCE]) + (", …" if len(paths) > NAMED_AT_ONCE else "")


def _hashes(splits: Mapping[str, Raw], names: Sequence[str], key: str) -> tuple[dict[str, str], dict[str, int]]:
    """Hashes classes and content of all files.

    Returns:
        `digest`, and `digest_1`, that of names and sizes, which runs hold that an older autopeft began; and file → a
        hash of its content.
    """
    digest, older = hashlib.sha256(), hashlib.sha256()
    marks: dict[str, int] = {}
    for raw in splits.values():
        for file in map(Path, raw.inputs[key]):
            content = hashlib.sha256(file.read_bytes()).digest()
            marks[str(file)] = int.from_bytes(content[:8])
            older.update(file.name.encode() + file.stat().st_size.to_bytes(8, "big"))
            digest.update(file.parent.name.encode() + b"/" + content)
    if list(names) == sorted(names):
        return {"digest": _shown(digest), "digest_1": _shown(older)}, marks
    digest.update("\n".join(names).encode())  # an older autopeft had the classes in another order: other indices
    return {"digest": _shown(digest)}, marks


def _shown(digest: Any) -> str:
    return f"sha256:{digest.hexdigest()[:16]}"


def kinds_in(folder: Path) -> Counter[str]:
    """Counts the endings of all files below a folder, without hidden ones."""
    files = (path for each in [folder, *_below(folder)] for path in each.iterdir() if path.is_file())
    return Counter(path.suffix.lower() for path in files if not is_hidden(path))
