"""Reads splits from files and from Hugging Face data sets, and names all their faults at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from autopeft.errors import AutoPEFTError, ConfigError, EnvironmentFault, Fault, UsageError
from autopeft.tasks import Dataset, Raw
from autopeft.tasks._columns import ArrowColumn
from autopeft.tasks._format import Format
from autopeft.tasks._splits import complete, rows_of
from autopeft.tasks._tables import Table, no_column, read_file
from autopeft.tasks._targets import Labels, RowFault, Target, alike, is_missing, nothing_wrong, row_fault, text_faults
from autopeft.tasks._templates import is_template

SPLITS = ("train", "validation", "test")
# Names of validation splits on the hub.
VALIDATION_NAMES = ("validation", "dev", "valid", "val")
MASK = 2**64 - 1
CODE = "custom code"  # in what transformers says of a model that would run some


def read_table(
    data: Mapping[str, Any],
    columns: Mapping[str, str],
    target: Target,
    seed: int,
    *,
    input_faults: Callable[[Table, Mapping[str, str], str], list[Fault]] | None = None,
    place: Callable[[Sequence[Any], Path], Sequence[Any]] | None = None,
) -> Dataset:
    """Reads all splits of a table of inputs and targets.

    Args:
        data: The config's data section.
        columns: Input column → the key of `data` that names it (for messages).
        target: Reads the targets.
        seed: Seed of carved splits.
        input_faults: Finds faults in the input columns of a split; None for texts (`text_faults`).
        place: Makes the paths of an input column absolute, given the folder of its table.

    Raises:
        ConfigError: Columns, targets or rows are wrong. Names all faults at once.
    """
    if data.get("hub"):
        tables, names, source = _from_hub(data, target)
    elif data.get("train"):
        tables, names, source = _from_files(data, target)
    else:
        raise ConfigError([Fault("data", "names no rows: give `train` (a file) or `hub` (a data set)")])
    every = {**columns, **target.columns, **({data["group"]: "group"} if data.get("group") else {})}
    nothing_wrong([*_column_faults(tables, every, data), *named_twice(columns, target.columns, data)])
    tables = {split: {name: table[name] for name in every} for split, table in tables.items()}
    if not len(next(iter(tables["train"].values()))):
        raise ConfigError([Fault("data", "train has no row")], "data")
    if place is not None and data.get("train"):
        for split, table in tables.items():
            beside = Path(data[split]).parent
            tables[split] = {name: place(table[name], beside) if name in columns else table[name] for name in table}
    nothing_wrong([fault for split, table in tables.items() for fault in target.shape_faults(table, split)])
    about, wrong = target.about(tables["train"], names)
    if "test" in tables and target.is_unlabelled(tables["test"]):
        del tables["test"]
    groups, straddling = groups_of(tables, data.get("group"))
    faults: list[Fault] = list(wrong)
    splits: dict[str, Raw] = {}
    notes: list[str] = []
    for split, table in tables.items():
        targets, strata, unfit = target.encode(table, split, about)
        unfit += (input_faults or text_faults)(table, columns, split) + straddling.get(split, [])
        rows = np.arange(len(next(iter(table.values()))))
        raw = Raw({name: table[name] for name in columns}, targets, rows, strata, groups.get(split))
        splits[split], left, said = without_faulty(raw, unfit, data)
        faults += left
        notes += said
    nothing_wrong(faults)
    classes, may_lack = (about["label_names"], target.may_lack) if isinstance(target, Labels) else (None, ())
    parts, made, of_splits = complete(splits, data, seed, classes, may_lack)
    digest, marks = _digest(parts)
    notes += [*of_splits, *alike(about.get("label_names", [])), *repeated(marks)]
    return Dataset(parts, about, describe_origin(source, digest, parts, made, notes))


def describe_origin(
    source: str, digest: str, parts: Mapping[str, Raw], made: Mapping[str, str], notes: Sequence[str] = ()
) -> dict[str, Any]:
    """`Dataset.origin`."""
    return {
        "source": source,
        "digest": digest,
        "rows": {name: len(raw) for name, raw in parts.items()},
        "made": dict(made),
        "notes": list(notes),
    }


def without_faulty(raw: Raw, faults: Sequence[Fault], data: Mapping[str, Any]) -> tuple[Raw, list[Fault], list[str]]:
    """Leaves faulty rows out if `data.on_fault` is skip.

    Returns:
        The split; the faults that remain; and what was left out, in words.
    """
    of_rows = [fault for fault in faults if isinstance(fault, RowFault)]
    if data.get("on_fault") != "skip" or not of_rows:
        hint = " (`on_fault: skip` under `data` leaves such rows out)"
        ends = {id(fault): hint for fault in of_rows[:1]}
        return raw, [replace(f, message=f.message + ends[id(f)]) if id(f) in ends else f for f in faults], []
    is_good = np.ones(len(raw), dtype=bool)
    is_good[[row for fault in of_rows for row in fault.rows]] = False
    notes = [f"left out: {fault.message}" for fault in of_rows]
    left = [fault for fault in faults if not isinstance(fault, RowFault)]
    return rows_of(raw, np.flatnonzero(is_good)), left, notes


def groups_of(tables: Mapping[str, Table], column: str | None) -> tuple[dict[str, np.ndarray], dict[str, list[Fault]]]:
    """Numbers the groups of all splits, and finds rows without a group, and groups that straddle the splits.

    Returns:
        Split → (n_rows,) int64, and split → faults; both empty if no column names groups.
    """
    if column is None:
        return {}, {}
    numbers: dict[str, int] = {}
    groups: dict[str, np.ndarray] = {}
    faults: dict[str, list[Fault]] = {}
    seen = np.zeros(0, dtype=np.int64)
    for split, table in tables.items():
        values = [None if is_missing(value) else str(value) for value in table[column]]
        of = np.array([-1 if v is None else numbers.setdefault(v, len(numbers)) for v in values], dtype=np.int64)
        absent, known = np.flatnonzero(of < 0).tolist(), np.flatnonzero((of >= 0) & np.isin(of, seen)).tolist()
        said = {f"without a group in {column!r}": absent, f"whose {column!r} is in another split, too": known}
        groups[split] = of
        faults[split] = [row_fault("data.group", split, rows, what) for what, rows in said.items() if rows]
        seen = np.union1d(seen, of)
    return groups, faults


def named_twice(columns: Mapping[str, str], targets: Mapping[str, str], data: Mapping[str, Any]) -> list[Fault]:
    """Finds columns that are inputs and targets. A key may be both, of a text that goes on; a template may quote one."""
    return [
        Fault(f"data.{key}", f"{column!r} is the column of `{columns[column]}`, too: an answer is no question")
        for column, key in targets.items()
        if columns.get(column, key) != key
        and not (is_template(data.get(key)) or is_template(data.get(columns[column])))
    ]


def repeated(marks: Mapping[str, np.ndarray]) -> list[str]:
    """Says how many rows of a split have the inputs of a row of train.

    Args:
        marks: Split → (n_rows,) hashes of the rows' inputs.
    """
    notes = []
    for split in ("validation", "test"):
        again = int(np.isin(marks[split], marks["train"]).sum()) if split in marks else 0
        if again:
            notes.append(
                f"{again:,} of {len(marks[split]):,} rows of {split} are in train, too: it was trained on them"
            )
    if "test" in marks and "validation" in marks:
        both = int(np.isin(marks["test"], marks["validation"]).sum())
        if both:
            notes.append(f"{both:,} of {len(marks['test']):,} rows of test are in validation, too")
    return notes


def runs_code(model_path: str) -> UsageError:
    """Makes the error for a model that needs code of its own, which its user has not allowed."""
    return UsageError(
        f"model: {model_path} comes with code, which does not run unless you say so: read it, then set "
        "model.trust_remote_code: true"
    )


def lacks(what: str, model_path: str, fault: Exception) -> AutoPEFTError:
    """Makes the error for a missing tokenizer or image processor: the model has none, or the hub is not reached."""
    why = str(fault).splitlines()[0]
    if isinstance(fault, ValueError) and CODE in why:
        return runs_code(model_path)
    if Path(model_path).is_dir() or isinstance(fault, ValueError):
        return UsageError(f"model: {model_path} has no {what} that can be loaded: is it a model for this task? ({why})")
    return EnvironmentFault(f"no {what} for {model_path!r}: {why}")


def _from_files(data: Mapping[str, Any], target: Target) -> tuple[dict[str, Table], Sequence[str] | None, str]:
    tables = _all_read({split: data[split] for split in SPLITS if data.get(split)}, Format.of(data))
    info = Path(data["train"]).parent / "dataset_info.json"
    names = names_beside(info) if info.is_file() else None
    labels = next((tables["train"][column] for column in target.columns if column in tables["train"]), [])
    if names is not None and not all(map(_is_code, labels)):
        names = None  # `names` only apply to integer labels
    return tables, names, str(Path(data["train"]).parent)


def _all_read(files: Mapping[str, str], format: Format) -> dict[str, Table]:
    """Reads all files; names the faults of all of them at once."""
    tables: dict[str, Table] = {}
    faults: list[Fault] = []
    for split, path in files.items():
        try:
            tables[split] = read_file(path, format)
        except ConfigError as fault:
            faults += [replace(inner, path=f"data.{split}") for inner in fault.faults]
    nothing_wrong(faults)
    return tables


def _is_code(label: Any) -> bool:
    """Whether a cell holds an integer, or several."""
    if isinstance(label, (list, tuple, np.ndarray)):
        return all(map(_is_code, label))
    return isinstance(label, (int, np.integer))


def names_beside(info: Path) -> Sequence[str] | None:
    """Reads `label_names` of a dataset_info.json; None if there are none, as in files that `datasets` writes."""
    try:
        content = json.loads(info.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise ConfigError([Fault("data", f"{info} is no JSON ({fault}): mend it, or take it away")]) from fault
    return content.get("label_names") if isinstance(content, dict) else None


def _from_hub(data: Mapping[str, Any], target: Target) -> tuple[dict[str, Table], Sequence[str] | None, str]:
    hub = data["hub"]
    tables, names = hub_tables(data)
    if "train" not in tables:
        raise ConfigError([Fault("data.hub", f"{hub} has no split `train`; it has {', '.join(tables)}")], "data")
    return (
        tables,
        next((names[column] for column in target.columns if column in names), None),
        f"{hub}@{data.get('revision') or 'main'}" if not Path(hub).is_dir() else hub,
    )


def hub_tables(data: Mapping[str, Any]) -> tuple[dict[str, Table], dict[str, Sequence[str]]]:
    """Reads a data set of the hub, or of a folder that `datasets` loads.

    Returns:
        Split → its table, with the names of other splits if there is no train; and column → names of its labels.

    Raises:
        UsageError: The data set cannot be read, or not with these options.
        EnvironmentFault: The hub is not reached, or has no such data set.
    """
    import datasets

    loaded = _load(data["hub"], data)
    if "train" not in loaded:
        return {split: _arrow(_undecoded(table)) for split, table in loaded.items()}, {}
    found = {"train": "train", "test": "test"}
    found |= {"validation": next((name for name in VALIDATION_NAMES if name in loaded), "validation")}
    features = {name: getattr(of, "feature", of) for name, of in loaded["train"].features.items()}  # of a list a row
    coded = {name: of for name, of in features.items() if isinstance(of, datasets.ClassLabel)}
    names: dict[str, Sequence[str]] = {name: list(of.names) for name, of in coded.items()}
    return {split: _arrow(_undecoded(loaded[found[split]])) for split in SPLITS if found[split] in loaded}, names


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
    """Keeps pictures and sounds as bytes: decoded, they would all be in memory at once."""
    import datasets

    for name, feature in table.features.items():
        if isinstance(feature, (datasets.Image, datasets.Audio)):
            table = table.cast_column(name, type(feature)(decode=False))
    return table


def _arrow(table: Any) -> Table:
    """The columns of a data set as they lie on the disk."""
    plain = table.flatten_indices() if table._indices is not None else table
    return {name: ArrowColumn(plain.data.column(name)) for name in plain.column_names}


def _column_faults(tables: Mapping[str, Table], columns: Mapping[str, str], data: Mapping[str, Any]) -> list[Fault]:
    """Finds missing columns. A column that several splits lack is one fault."""
    found = {
        (key, name): Fault(f"data.{key}", no_column(name, split, list(table), data.get(split), Format.of(data)))
        for split, table in list(tables.items())[::-1]
        for name, key in columns.items()
        if name not in table
    }
    return list(found.values())


def _digest(splits: Mapping[str, Raw]) -> tuple[str, dict[str, np.ndarray]]:
    """Computes SHA-256 over all rows as they are used: the data's revision. Also hashes the inputs of each row."""
    digest, marks = hashlib.sha256(), {}
    for name, raw in splits.items():
        marks[name] = np.zeros(len(raw), dtype=np.uint64)
        digest.update(name.encode())
        for target in raw.targets.values():
            for part in [target] if isinstance(target, np.ndarray) else target:
                digest.update(_bytes(part))
        for column in raw.inputs.values():
            for row, value in enumerate(column):
                content = _bytes(value)
                digest.update(content)
                marks[name][row] = hash((int(marks[name][row]), content)) & MASK
    return f"sha256:{digest.hexdigest()[:16]}", marks


def _bytes(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        return repr(value.tolist()).encode() if value.dtype == object else value.tobytes()
    if isinstance(value, Mapping):  # a picture, wherever it lies
        return value.get("bytes") or Path(value["path"]).read_bytes()
    return value if isinstance(value, bytes) else str(value).encode()
