"""Where the rows are: a file, a folder of files or of class folders, a data set on disk or on the hub; and how written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autopeft.errors import ConfigError, UsageError
from autopeft.tasks._format import EXPECTED, SEPARATORS, TEXTS, Format, is_known, kind_of, opened, seems_encoded
from autopeft.tasks._media import folders_in, kinds_in
from autopeft.tasks._reading import hub_tables, names_beside
from autopeft.tasks._separated import seems_separated
from autopeft.tasks._sounds import SOUNDS
from autopeft.tasks._tables import Table, read_file
from autopeft.tasks.image_classification import PICTURES

# Names of splits that people give to files and folders.
NAMES = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing", "tst"),
}
SAVED = ("dataset_dict.json", "state.json")  # in a folder that `datasets` has written
GUESSED_FROM = 2**18  # bytes


@dataclass(frozen=True)
class Found:
    """Where the rows are.

    Attributes:
        data: Keys of the config's `data`: files or a hub data set, and how they are written.
        why: The same keys → a line that says why.
        table: The rows of train; None for class folders.
        medium: "picture" or "sound" for class folders.
        splits: Official splits.
        classes: Number of class folders.
        names: Column → names of its integer labels, as they came with the data; "" for any column.
    """

    data: Mapping[str, str]
    why: Mapping[str, str]
    table: Table | None = None
    medium: str | None = None
    splits: Sequence[str] = ("train",)
    classes: int = 0
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)


def find(source: str) -> Found:
    """Finds the rows of a path, or of a name on the hub.

    Raises:
        UsageError: There is nothing, or nothing that can be read.
        EnvironmentFault: The hub is not reached.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _files({"train": path.resolve()}, "the file")
    if path.is_dir():
        return _folder(path.resolve())
    if (
        path.is_absolute()
        or source.startswith((".", "~"))
        or source.count("/") > 1
        or path.suffix in (*TEXTS, ".parquet")
    ):
        raise UsageError(f"there is no file or folder {source!r}, and it is no name on the hub")
    return _hub(source)


def _hub(name: str) -> Found:
    tables, names = hub_tables({"hub": name})
    if "train" not in tables:
        raise UsageError(f"{name} has no split `train`; it has {', '.join(tables) or 'none'}")
    why = {"hub": f"a data set with {', '.join(tables)}"}
    return Found({"hub": name}, why, tables["train"], splits=tuple(tables), names=names)


def _folder(path: Path) -> Found:
    if any((path / name).exists() for name in SAVED):
        return _hub(str(path))
    splits = _named({inner.name.lower(): inner for inner in folders_in(path)})
    is_split = "train" in splits and len(splits) > 1
    kinds = kinds_in(splits["train"] if is_split else path)
    tables = [
        file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith(".") and is_known(file)
    ]
    tables = [file for file in tables if file.name != "dataset_info.json"]
    for medium, endings in (("picture", PICTURES), ("sound", SOUNDS)):
        if not tables and sum(kinds[ending] for ending in endings) > sum(kinds.values()) / 2:
            folders = splits if is_split else {"train": path}
            classes = len(folders_in(folders["train"]))
            why = dict.fromkeys(folders, f"a folder of {medium}s in class folders")
            data = {split: str(folder) for split, folder in folders.items()}
            return Found(data, why, medium=medium, splits=tuple(folders), classes=classes)
    if not tables:
        raise UsageError(f"{path} has no rows that can be read: expected {EXPECTED}, or a folder for each class")
    files = _named({file.name.lower().split(".")[0]: file for file in tables})
    if "train" not in files and len(tables) > 1:
        some = ", ".join(file.name for file in tables[:5])
        raise UsageError(f"{path} has {len(tables)} files ({some}), and none is named train: name the file of rows")
    return _files(
        files if "train" in files else {"train": tables[0]}, f"the folder's {'files' if files else 'only file'}"
    )


def _named(paths: Mapping[str, Path]) -> dict[str, Path]:
    """Returns split → path, by the name, or by the name's last part: `reviews_test`."""
    found: dict[str, Path] = {}
    for split, names in NAMES.items():
        for name, path in paths.items():
            if name in names or name.replace("-", "_").split("_")[-1] in names or name.split("_")[0] in names:
                found.setdefault(split, path)
    return found


def _files(files: Mapping[str, Path], what: str) -> Found:
    """Reads train, and finds out how it is written."""
    train = files["train"]
    written: dict[str, str] = {}
    why = {split: what if len(files) == 1 else f"{what}, by its name" for split in files}
    if "validation" in files and "test" not in files:
        why["validation"] += "; it becomes the test, as there is none"
    if kind_of(train) in TEXTS:
        with opened(train) as file:
            sample = file.read(GUESSED_FROM)
        encoding = None if _is_utf_8(sample) else seems_encoded(sample)
        if encoding is not None:
            written["encoding"], why["encoding"] = encoding, "it is not UTF-8; look at what is read"
    if kind_of(train) in SEPARATORS:
        mark = seems_separated(train, Format.of(written))
        if mark is not None:
            written["separator"] = "tab" if mark == "\t" else mark
            why["separator"] = f"the first lines hold {mark!r}, and no {Format().separator_of(train)!r}"
    try:
        table = read_file(train, Format.of(written))
    except ConfigError as fault:
        if "quoting: none" not in str(fault):
            raise
        written["quoting"], why["quoting"] = "none", "texts begin with a quotation mark that encloses no field"
        table = read_file(train, Format.of(written))
    data = {**{split: str(path) for split, path in files.items()}, **written}
    info = train.parent / "dataset_info.json"
    names = names_beside(info) if info.is_file() else None
    return Found(data, why, table, splits=tuple(files), names={"": names} if names else {})


def _is_utf_8(sample: bytes) -> bool:
    import codecs

    try:
        return "\0" not in codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return False
