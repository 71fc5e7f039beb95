"""Reads splits from files and from Hugging Face data sets, and names all their faults at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autopeft.errors import AutoPEFTError, ConfigError, EnvironmentFault, Fault, UsageError, did_you_mean
from autopeft.tasks import Dataset, Raw
from autopeft.tasks._columns import ArrowColumn
from autopeft.tasks._splits import complete
from autopeft.tasks._tables import Table, read_file
from autopeft.tasks._targets import Target, nothing_wrong, text_faults

SPLITS = ("train", "validation", "test")
# Names of validation splits on the hub.
VALIDATION_NAMES = ("validation", "dev", "valid", "val")


def read_table(
    data: Mapping[str, Any],
    columns: Mapping[str, str],
    target: Target,
    seed: int,
    *,
    input_faults: Callable[[Table, Mapping[str, str], str], list[Fault]] | None = None,
) -> Dataset:
    """Reads all splits of a table of inputs and targets.

    Args:
        data: The config's data section.
        columns: Input column → the key of `data` that names it (for messages).
        target: Reads the targets.
        seed: Seed of carved splits.
        input_faults: Finds faults in the input columns of a split; None for texts (`text_faults`).

    Raises:
        ConfigError: Columns, targets or rows are wrong. Names all faults at once.
    """
    if data.get("hub"):
        tables, names, source = _from_hub(data, target)
    elif data.get("train"):
        tables, names, source = _from_files(data, target)
    else:
        raise ConfigError([Fault("data", "names no rows: give `train` (a file) or `hub` (a data set)")])
    every = {**columns, **target.columns}
    nothing_wrong(_once([fault for split, table in tables.items() for fault in _column_faults(table, every, split)]))
    tables = {split: {name: table[name] for name in every} for split, table in tables.items()}
    nothing_wrong([fault for split, table in tables.items() for fault in target.shape_faults(table, split)])
    if "test" in tables and target.is_unlabelled(tables["test"]):
        del tables["test"]
    about, wrong = target.about(tables["train"], names)
    faults: list[Fault] = []
    splits: dict[str, Raw] = {}
    for split, table in tables.items():
        targets, strata, unfit = target.encode(table, split, about)
        faults += unfit
        faults += (input_faults or text_faults)(table, columns, split)
        n_rows = len(next(iter(table.values())))
        splits[split] = Raw({name: table[name] for name in columns}, targets, np.arange(n_rows), strata)
    nothing_wrong([*faults, *wrong])
    parts, made = complete(splits, data, seed)
    return Dataset(parts, about, describe_origin(source, _digest(parts), parts, made))


def describe_origin(source: str, digest: str, parts: Mapping[str, Raw], made: Mapping[str, str]) -> dict[str, Any]:
    """`Dataset.origin`."""
    return {
        "source": source,
        "digest": digest,
        "rows": {name: len(raw) for name, raw in parts.items()},
        "made": dict(made),
    }


def lacks(what: str, model_path: str, fault: Exception) -> AutoPEFTError:
    """Makes the error for a missing tokenizer or image processor: the model has none, or the hub is not reached."""
    why = str(fault).splitlines()[0]
    if Path(model_path).is_dir() or isinstance(fault, ValueError):
        return UsageError(f"model: {model_path} has no {what} that can be loaded: is it a model for this task? ({why})")
    return EnvironmentFault(f"no {what} for {model_path!r}: {why}")


def _from_files(data: Mapping[str, Any], target: Target) -> tuple[dict[str, Table], Sequence[str] | None, str]:
    tables = {split: read_file(data[split]) for split in SPLITS if data.get(split)}
    info = Path(data["train"]).parent / "dataset_info.json"
    names = _names_beside(info) if info.is_file() else None
    labels = next((tables["train"][column] for column in target.columns if column in tables["train"]), [])
    if names is not None and not all(map(_is_code, labels)):
        names = None  # `names` only apply to integer labels
    return tables, names, str(Path(data["train"]).parent)


def _is_code(label: Any) -> bool:
    """Whether a cell holds an integer, or several."""
    if isinstance(label, (list, tuple, np.ndarray)):
        return all(map(_is_code, label))
    return isinstance(label, (int, np.integer))


def _names_beside(info: Path) -> Sequence[str] | None:
    """Reads `label_names` of a dataset_info.json; None if there are none, as in files that `datasets` writes."""
    try:
        content = json.loads(info.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise ConfigError([Fault("data", f"{info} is no JSON ({fault}): mend it, or take it away")]) from fault
    return content.get("label_names") if isinstance(content, dict) else None


def _from_hub(data: Mapping[str, Any], target: Target) -> tuple[dict[str, Table], Sequence[str] | None, str]:
    import datasets

    hub = data["hub"]
    loaded = _load(hub, data)
    if "train" not in loaded:
        raise ConfigError([Fault("data.hub", f"{hub} has no split `train`; it has {', '.join(loaded)}")], "data")
    found = {"train": "train", "test": "test"}
    found |= {"validation": next((name for name in VALIDATION_NAMES if name in loaded), "validation")}
    feature = next((loaded["train"].features.get(column) for column in target.columns), None)
    feature = getattr(feature, "feature", feature)  # of a list of labels a row
    names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    tables = {split: _undecoded(loaded[found[split]]) for split in SPLITS if found[split] in loaded}
    return (
        {split: _arrow(table) for split, table in tables.items()},
        names,
        f"{hub}@{data.get('revision') or 'main'}" if not Path(hub).is_dir() else hub,
    )


def _load(hub: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Loads the splits of a data set: a folder from `save_to_disk`, or any name that `load_dataset` takes.

    Raises:
        UsageError: The data set cannot be read, or not with these options.
        EnvironmentFault: The hub is not reached, or has no such data set.
    """
    import datasets

    try:
        if (Path(hub) / "dataset_dict.json").exists():
            return dict(datasets.load_from_disk(hub))
        if (Path(hub) / "state.json").exists():
            return {"train": datasets.load_from_disk(hub)}
        return dict(datasets.load_dataset(hub, data.get("name"), revision=data.get("revision")))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as fault:
        why = " ".join(str(fault).split())[:400]
        if isinstance(fault, OSError) and not Path(hub).is_dir():  # also a ConnectionError
            raise EnvironmentFault(
                f"the data set {hub!r} cannot be had: {why}. Where the hub is out of reach, give a folder that `datasets` "
                "can load, or fetch the set into the hub's cache beforehand"
            ) from fault
        raise UsageError(f"the data set {hub!r} cannot be read: {why}") from fault


def _undecoded(table: Any) -> Any:
    """Keeps pictures as bytes, as decoded pictures would all be in memory at once."""
    import datasets

    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table


def _arrow(table: Any) -> Table:
    """The columns of a data set as they lie on the disk."""
    plain = table.flatten_indices() if table._indices is not None else table
    return {name: ArrowColumn(plain.data.column(name)) for name in plain.column_names}


def _column_faults(table: Table, columns: Mapping[str, str], split: str) -> list[Fault]:
    return [
        Fault(f"data.{key}", f"no column {name!r} in {split}.{did_you_mean(name, table)} There are: {', '.join(table)}")
        for name, key in columns.items()
        if name not in table
    ]


def _once(faults: Sequence[Fault]) -> list[Fault]:
    """Keeps the first fault of each path, as the same column is often missing in each split."""
    return list({fault.path: fault for fault in reversed(faults)}.values())


def _digest(splits: Mapping[str, Raw]) -> str:
    """Computes SHA-256 over all rows as they are used: the data's revision."""
    digest = hashlib.sha256()
    for name, raw in splits.items():
        digest.update(name.encode())
        for target in raw.targets.values():
            for part in [target] if isinstance(target, np.ndarray) else target:
                digest.update(_bytes(part))
        for column in raw.inputs.values():
            for value in column:
                digest.update(_bytes(value))
    return f"sha256:{digest.hexdigest()[:16]}"


def _bytes(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        return repr(value.tolist()).encode() if value.dtype == object else value.tobytes()
    if isinstance(value, Mapping):  # a picture: its bytes, or its path without the folder of the data set
        return value.get("bytes") or Path(value["path"]).name.encode() + Path(value["path"]).stat().st_size.to_bytes(8)
    return value if isinstance(value, bytes) else str(value).encode()
