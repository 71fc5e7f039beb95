"""Splits from files and from Hugging Face data sets, with all that is wrong with them said at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autopeft.errors import AutoPEFTError, ConfigError, EnvironmentFault, Fault, UsageError, did_you_mean
from autopeft.tasks import Dataset, Raw
from autopeft.tasks._splits import complete
from autopeft.tasks._tables import Table, read_file

SPLITS = ("train", "validation", "test")
# What hubs call their validation split.
VALIDATION_NAMES = ("validation", "dev", "valid", "val")
MOST_REALS = 20  # labels such as 2.5 stars; more of them are measurements
# What a cell may hold that is neither a text nor a label.
NESTED = (list, tuple, dict, bytes, np.ndarray)


def read_table(
    data: Mapping[str, Any], columns: Mapping[str, str], seed: int, *, encodes_pictures: bool = False
) -> Dataset:
    """Reads all splits of a table of inputs and labels.

    Args:
        data: The config's data section.
        columns: Input column → the key of `data` that names it (for messages).
        seed: Of carved splits.

    Raises:
        ConfigError: Columns, labels or rows that are not as they should be; all at once.
    """
    label = data.get("label") or "label"
    if data.get("hub"):
        tables, names, source = _from_hub(data, label)
    elif data.get("train"):
        tables, names, source = _from_files(data, label)
    else:
        raise ConfigError([Fault("data", "names no rows: give `train` (a file) or `hub` (a data set)")])
    faults: list[Fault] = []
    for split, table in tables.items():
        faults += _column_faults(table, {**columns, label: "label"}, split)
    if faults:
        raise ConfigError(_once(faults), "data")
    tables = {split: {name: table[name][:] for name in (*columns, label)} for split, table in tables.items()}
    shapes = [fault for split, table in tables.items() for fault in _shape_faults(table[label], split)]
    if shapes:
        raise ConfigError(shapes, "data")
    given = data.get("label_names") or names
    names = tuple(given or _label_names(tables["train"][label]))
    splits: dict[str, Raw] = {}
    for split, table in tables.items():
        if split == "test" and _is_unlabelled(table[label]):
            continue
        labels, wrong = _labels(table[label], names, split, "label_names" if given else "train")
        faults += wrong
        if not encodes_pictures:
            faults += _text_faults(table, columns, split)
        splits[split] = Raw({name: table[name] for name in columns}, labels, np.arange(len(labels)))
    if len(names) < 2:
        faults.append(Fault("data.label", f"a classification has two labels or more; train has only {list(names)}"))
    elif not given and len(names) == len(tables["train"][label]) > 2:
        faults.append(Fault("data.label", f"each of the {len(names):,} rows of train has a label of its own: is "
                                          f"{label!r} the column of labels?"))  # fmt: skip
    elif not given and sum(map(_is_real, names)) > MOST_REALS:
        faults.append(Fault("data.label", f"{label!r} holds {len(names):,} different numbers such as {names[1]}: a "
                                          "classification needs classes"))  # fmt: skip
    if faults:
        raise ConfigError(faults, "data")
    parts, made = complete(splits, data, seed)
    origin = {
        "source": source,
        "digest": _digest(parts),
        "rows": {name: len(raw.labels) for name, raw in parts.items()},
        "made": made,
    }
    return Dataset(parts, tuple(str(name) for name in names), origin)


def lacks(what: str, model_path: str, fault: Exception) -> AutoPEFTError:
    """Why there is no tokenizer or image processor: a model that has none, or a hub that is not reached."""
    why = str(fault).splitlines()[0]
    if Path(model_path).is_dir() or isinstance(fault, ValueError):
        return UsageError(f"model: {model_path} has no {what} that can be loaded: is it a model for this task? ({why})")
    return EnvironmentFault(f"no {what} for {model_path!r}: {why}")


def _from_files(data: Mapping[str, Any], label: str) -> tuple[dict[str, Table], Sequence[str] | None, str]:
    tables = {split: read_file(data[split]) for split in SPLITS if data.get(split)}
    info = Path(data["train"]).parent / "dataset_info.json"
    names = _names_beside(info) if info.is_file() else None
    if names is not None and not all(isinstance(value, (int, np.integer)) for value in tables["train"].get(label, [])):
        names = None  # they name integer labels
    return tables, names, str(Path(data["train"]).parent)


def _names_beside(info: Path) -> Sequence[str] | None:
    """`label_names` of a dataset_info.json; None where it has none, as those of `datasets` have not."""
    try:
        content = json.loads(info.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise ConfigError([Fault("data", f"{info} is no JSON ({fault}): mend it, or take it away")]) from fault
    return content.get("label_names") if isinstance(content, dict) else None


def _from_hub(data: Mapping[str, Any], label: str) -> tuple[dict[str, Table], Sequence[str] | None, str]:
    import datasets

    hub = data["hub"]
    loaded = _load(hub, data)
    if "train" not in loaded:
        raise ConfigError([Fault("data.hub", f"{hub} has no split `train`; it has {', '.join(loaded)}")], "data")
    found = {"train": "train", "test": "test"}
    found |= {"validation": next((name for name in VALIDATION_NAMES if name in loaded), "validation")}
    feature = loaded["train"].features.get(label)
    names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    tables = {split: _undecoded(loaded[found[split]]) for split in SPLITS if found[split] in loaded}
    return (
        {split: {name: table[name] for name in table.column_names} for split, table in tables.items()},
        names,
        f"{hub}@{data.get('revision') or 'main'}" if not Path(hub).is_dir() else hub,
    )


def _load(hub: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The splits of a data set: a folder as `save_to_disk` writes it, with splits or of one; what `load_dataset` takes.

    Raises:
        UsageError: It is not to be read as it is, or as it is asked for.
        EnvironmentFault: The hub is not reached, or has no such data set.
    """
    import datasets

    try:
        if (Path(hub) / "dataset_dict.json").exists():
            return datasets.load_from_disk(hub)
        if (Path(hub) / "state.json").exists():
            return {"train": datasets.load_from_disk(hub)}
        return datasets.load_dataset(hub, data.get("name"), revision=data.get("revision"))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as fault:
        why = " ".join(str(fault).split())[:400]
        if isinstance(fault, OSError) and not Path(hub).is_dir():  # also a ConnectionError
            raise EnvironmentFault(
                f"the data set {hub!r} cannot be had: {why}. Where the hub is out of reach, give a folder that `datasets` "
                "can load, or fetch the set into the hub's cache beforehand"
            ) from fault
        raise UsageError(f"the data set {hub!r} cannot be read: {why}") from fault


def _undecoded(table: Any) -> Any:
    """With pictures as their bytes: decoded they would all lie in memory at once."""
    import datasets

    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table


def _column_faults(table: Table, columns: Mapping[str, str], split: str) -> list[Fault]:
    return [
        Fault(f"data.{key}", f"no column {name!r} in {split}.{did_you_mean(name, table)} There are: {', '.join(table)}")
        for name, key in columns.items()
        if name not in table
    ]


def _once(faults: Sequence[Fault]) -> list[Fault]:
    """The first fault of each path: the same column is missing in each split."""
    return list({fault.path: fault for fault in reversed(faults)}.values())


def _shape_faults(column: Sequence[Any], split: str) -> list[Fault]:
    """Labels that are none: several a row."""
    for row, value in enumerate(column):
        if isinstance(value, NESTED):
            return [Fault("data.label", f"{split} has {value!r:.60} in row {row}; expected one label a row")]
    return []


def _label_names(column: Sequence[Any]) -> list[Any]:
    """Labels in order: integers by value, else by name."""
    values = {_whole(value) for value in column if not _is_missing(value)}
    return sorted(
        values,
        key=lambda value: (
            not isinstance(value, (int, np.integer)),
            value if isinstance(value, (int, np.integer)) else 0,
            str(value),
        ),
    )


def _whole(value: Any) -> Any:
    """`1.0` is the label 1: integers beside a missing one become floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_real(name: Any) -> bool:
    """Whether a label is a number with a fraction: `0.37`."""
    try:
        return not float(name).is_integer()
    except (ValueError, OverflowError):  # a name; infinity
        return False


def _labels(column: Sequence[Any], names: Sequence[Any], split: str, known: str) -> tuple[np.ndarray, list[Fault]]:
    """Label indices, and what is wrong with them.

    Args:
        known: What `names` are of, for messages.
    """
    values = [None if _is_missing(value) else _whole(value) for value in column]
    index = {str(name): number for number, name in enumerate(names)}
    are_indices = not any(str(value) in index for value in values[:1000]) and all(
        isinstance(value, (int, np.integer)) for value in values if value is not None
    )
    labels = np.zeros(len(column), dtype=np.int64)
    missing: list[int] = []
    unknown: dict[str, int] = {}
    for row, value in enumerate(values):
        if value is None:
            missing.append(row)
        elif are_indices and 0 <= int(value) < len(names):
            labels[row] = int(value)
        elif str(value) in index and not are_indices:
            labels[row] = index[str(value)]
        else:
            unknown.setdefault(str(value), row)
    faults = []
    if missing:
        rows = "1 row" if len(missing) == 1 else f"{len(missing):,} rows"
        faults.append(Fault("data.label", f"{split} has {rows} without a label: {_some(missing)}"))
    if unknown:
        named = ", ".join(f"{value!r} (row {row})" for value, row in list(unknown.items())[:5])
        faults.append(Fault("data.label", f"{split} has labels that {known} has not: {named}"))
    return labels, faults


def _text_faults(table: Table, columns: Mapping[str, str], split: str) -> list[Fault]:
    """Inputs that are no text, or empty."""
    faults = []
    for name, key in columns.items():
        nested = next((row for row, value in enumerate(table[name]) if isinstance(value, NESTED)), None)
        if nested is not None:
            what = type(table[name][nested]).__name__
            faults.append(Fault(f"data.{key}", f"{split} has a {what} in row {nested} of {name!r}; expected text"))
            continue
        empty = [row for row, value in enumerate(table[name]) if _is_missing(value) or not str(value).strip()]
        if empty:
            rows = "1 row" if len(empty) == 1 else f"{len(empty):,} rows"
            faults.append(Fault(f"data.{key}", f"{split} has {rows} with an empty {name!r}: {_some(empty)}"))
    return faults


def _is_unlabelled(column: Sequence[Any]) -> bool:
    """Whether a test split came without its labels: all missing, or all -1 as on the GLUE hub."""
    return all(_is_missing(value) or value == -1 for value in column)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _some(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:5]))
    return f"row {shown}" + (", …" if len(rows) > 5 else "")


def _digest(splits: Mapping[str, Raw]) -> str:
    """SHA-256 over all rows as they are used: the data's revision."""
    digest = hashlib.sha256()
    for name, raw in splits.items():
        digest.update(name.encode())
        digest.update(raw.labels.tobytes())
        for column in raw.inputs.values():
            for value in column:
                digest.update(_bytes(value))
    return f"sha256:{digest.hexdigest()[:16]}"


def _bytes(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, Mapping):  # a picture: its bytes, or where it lies, whatever the folder above
        return value.get("bytes") or Path(value["path"]).name.encode() + Path(value["path"]).stat().st_size.to_bytes(8)
    return value if isinstance(value, bytes) else str(value).encode()
