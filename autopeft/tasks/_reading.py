"""Tables from files and from Hugging Face data sets, with all that is wrong with them said at once."""

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

SPLITS = ("train", "validation", "test")
ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
# What hubs call their validation split.
VALIDATION_NAMES = ("validation", "dev", "valid", "val")


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
    names = tuple(data.get("label_names") or names or _label_names(tables["train"][label]))
    splits: dict[str, Raw] = {}
    for split, table in tables.items():
        if split == "test" and _is_unlabelled(table[label]):
            continue
        labels, wrong = _labels(table[label], names, split)
        faults += wrong
        if not encodes_pictures:
            faults += _empty_faults(table, columns, split)
        splits[split] = Raw({name: table[name] for name in columns}, labels, np.arange(len(labels)))
    if len(names) < 2:
        faults.append(Fault("data.label", f"a classification has two labels or more; train has only {list(names)}"))
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


Table = Mapping[str, Sequence[Any]]


def read_file(path: str | Path) -> Table:
    """The columns of a CSV, TSV, JSON, JSON Lines or Parquet file.

    Raises:
        ConfigError: Another kind of file, or a damaged one.
    """
    import pandas as pd

    path = Path(path)
    try:
        if path.suffix in (".csv", ".tsv"):
            separator = "\t" if path.suffix == ".tsv" else ","
            header = pd.read_csv(path, sep=separator, header=None, nrows=1, dtype=str).iloc[0]
            if header.duplicated().any():  # pandas would give the second one another name
                twice = header[header.duplicated()].iloc[0]
                raise ConfigError([Fault("data", f"{path} has two columns {twice!r}: rename one")])
            frame = pd.read_csv(path, sep=separator, keep_default_na=False, na_values=[""])
        elif path.suffix in (".jsonl", ".json"):
            frame = pd.read_json(path, lines=path.suffix == ".jsonl", dtype=False, convert_dates=False)
        elif path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            raise ConfigError([Fault("data", f"{path.name}: expected one of {', '.join(ENDINGS)}")])
    except UnicodeDecodeError as fault:
        wrong = f"{fault.object[fault.start]:#04x}"
        raise ConfigError([Fault("data", f"{path} is not UTF-8: it has a byte {wrong}; save it as UTF-8")]) from fault
    except (ValueError, OSError) as fault:
        raise ConfigError([Fault("data", f"{path} cannot be read: {str(fault).splitlines()[0]}")]) from fault
    return {str(name): frame[name].tolist() for name in frame.columns}


def lacks(what: str, model_path: str, fault: Exception) -> AutoPEFTError:
    """Why there is no tokenizer or image processor: a folder that has none, or a hub that is not reached."""
    why = str(fault).splitlines()[0]
    if Path(model_path).is_dir():
        return UsageError(f"model: {model_path} has no {what} that can be loaded: is it a model for this task? ({why})")
    return EnvironmentFault(f"no {what} for {model_path!r}: {why}")


def read_columns(file: Path, columns: Sequence[str]) -> Table:
    """Some columns of a file of rows without labels.

    Raises:
        ConfigError: One is not there.
    """
    table = read_file(file)
    faults = [
        Fault(column, f"no such column in {file}.{did_you_mean(column, table)} There are: {', '.join(table)}")
        for column in columns
        if column not in table
    ]
    if faults:
        raise ConfigError(faults, str(file))
    return {column: table[column] for column in columns}


def _from_files(data: Mapping[str, Any], label: str) -> tuple[dict[str, Table], Sequence[str] | None, str]:
    tables = {split: read_file(data[split]) for split in SPLITS if data.get(split)}
    info = Path(data["train"]).parent / "dataset_info.json"
    names = None
    if info.is_file():
        names = json.loads(info.read_text()).get("label_names")
        column = tables["train"].get(label, [])
        if names is not None and not all(isinstance(value, (int, np.integer)) for value in column[:100]):
            names = None  # they name integer labels
    return tables, names, str(Path(data["train"]).parent)


def _from_hub(data: Mapping[str, Any], label: str) -> tuple[dict[str, Table], Sequence[str] | None, str]:
    import datasets

    hub = data["hub"]
    try:
        if Path(hub).is_dir() and (Path(hub) / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(hub)
        else:
            loaded = datasets.load_dataset(hub, data.get("name"), revision=data.get("revision"))
    except (OSError, ValueError, ConnectionError) as fault:
        raise EnvironmentFault(f"the data set {hub!r} cannot be had: {str(fault).splitlines()[0]}") from fault
    if "train" not in loaded:
        raise ConfigError([Fault("data.hub", f"{hub} has no split `train`; it has {', '.join(loaded)}")], "data")
    found = {"train": "train", "test": "test"}
    found |= {"validation": next((name for name in VALIDATION_NAMES if name in loaded), "validation")}
    feature = loaded["train"].features.get(label)
    names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    tables = {split: loaded[found[split]] for split in SPLITS if found[split] in loaded}
    return (
        {split: {name: table[name][:] for name in table.column_names} for split, table in tables.items()},
        names,
        f"{hub}@{data.get('revision') or 'main'}" if not Path(hub).is_dir() else hub,
    )


def _column_faults(table: Table, columns: Mapping[str, str], split: str) -> list[Fault]:
    return [
        Fault(f"data.{key}", f"no column {name!r} in {split}.{did_you_mean(name, table)} There are: {', '.join(table)}")
        for name, key in columns.items()
        if name not in table
    ]


def _once(faults: Sequence[Fault]) -> list[Fault]:
    """The first fault of each path: the same column is missing in each split."""
    return list({fault.path: fault for fault in reversed(faults)}.values())


def _label_names(column: Sequence[Any]) -> list[Any]:
    """Labels in order: integers by value, else by name."""
    values = {value for value in column if not _is_missing(value)}
    return sorted(
        values,
        key=lambda value: (
            not isinstance(value, (int, np.integer)),
            value if isinstance(value, (int, np.integer)) else 0,
            str(value),
        ),
    )


def _labels(column: Sequence[Any], names: Sequence[Any], split: str) -> tuple[np.ndarray, list[Fault]]:
    """Label indices, and what is wrong with them."""
    index = {str(name): number for number, name in enumerate(names)}
    are_indices = not any(str(value) in index for value in column[:1000]) and all(
        isinstance(value, (int, np.integer)) for value in column
    )
    labels = np.zeros(len(column), dtype=np.int64)
    missing: list[int] = []
    unknown: dict[str, int] = {}
    for row, value in enumerate(column):
        if _is_missing(value):
            missing.append(row)
        elif are_indices and 0 <= int(value) < len(names):
            labels[row] = int(value)
        elif str(value) in index and not are_indices:
            labels[row] = index[str(value)]
        else:
            unknown.setdefault(str(value), row)
    faults = []
    if missing:
        faults.append(Fault("data.label", f"{split} has {len(missing):,} rows without a label: {_some(missing)}"))
    if unknown:
        named = ", ".join(f"{value!r} (row {row})" for value, row in list(unknown.items())[:5])
        faults.append(Fault("data.label", f"{split} has labels that train has not: {named}"))
    return labels, faults


def _empty_faults(table: Table, columns: Mapping[str, str], split: str) -> list[Fault]:
    faults = []
    for name, key in columns.items():
        empty = [row for row, value in enumerate(table[name]) if _is_missing(value) or not str(value).strip()]
        if empty:
            faults.append(
                Fault(f"data.{key}", f"{split} has {len(empty):,} rows with an empty {name!r}: {_some(empty)}")
            )
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
    if isinstance(value, Mapping):
        return value.get("bytes") or str(value.get("path")).encode()
    return value if isinstance(value, bytes) else str(value).encode()
