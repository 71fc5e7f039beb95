"""Checks of a config that pydantic cannot make: plugins and their options, metrics, files and columns.

Each check notes faults in a Draft; none raises. Imports no torch: a check reads a plugin's name, its attributes and its
constructor's signature, and a plugin's module imports nothing heavy at its top.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autopeft import plugins
from autopeft.draft import FILES, Draft
from autopeft.errors import ConfigError, UnknownName, UsageError, did_you_mean
from autopeft.history import Record
from autopeft.model_folder import adapter_fault
from autopeft.objectives import Objective
from autopeft.quantisations import QUANTISATIONS, missing_library
from autopeft.redact import is_secret
from autopeft.space import Space
from autopeft.spaces import SWITCHES
from autopeft.tasks import ReadsForms
from autopeft.tasks._format import EXPECTED, Format, is_known, unknown_kind
from autopeft.tasks._own_metrics import OwnMetric, metric_fault, scored_by
from autopeft.tasks._tables import columns_of, no_column
from autopeft.trial import Report, Trial

# Arguments that autopeft passes to a plugin; the user cannot set them as options.
GIVEN = frozenset(
    {
        "space",
        "objectives",
        "sizes",
        "folder",
        "describe",
        "quiet",
        "terminal",
        "artifacts",
        "adapters",
        "trial_seconds",
        "n_gpus",
    }
)
# Options of a stopper that the search itself reads: the times of rungs, and their signal.
STOPPER_OPTIONS = ("rungs", "signal")
SIGNALS = ("auto", "train_loss")
SIZES = ("trainable_parameters", "adapter_parameters", "head_parameters")
MEMORY = "peak_memory_bytes"  # of a trial, on a GPU
SECRETS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, PGPASSWORD of PostgreSQL, HF_TOKEN of the hub"
LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


# ── plugins ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def plugins_of(draft: Draft, space: Space | None) -> None:
    """Finds unknown plugins, unknown options, and values that a plugin refuses.

    Options are written to the draft with their declared types: `off` becomes False for a bool.

    Args:
        space: The space that a sampler would get; None if the model's layers are not known.
    """
    entries = [(f"{key}s", str(key)) for key in ("task", "sampler", "stopper", "executor") if key in draft.content]
    trackers = draft.content.get("trackers")
    if isinstance(trackers, list):
        entries += [("trackers", f"trackers.{index}") for index in range(len(trackers))]
    for kind, path in entries:
        entry = trackers[int(path.split(".")[1])] if kind == "trackers" else draft.content[path]  # type: ignore[index]
        name = entry.get("name") if isinstance(entry, Mapping) else entry
        if not isinstance(name, str):
            continue  # pydantic says so
        try:
            plugin = plugins.load(kind, name)
        except UnknownName as fault:
            draft.fault(f"{path}.name" if isinstance(entry, Mapping) else path, str(fault))
            continue
        before = len(draft.faults)
        options = _options(draft, kind, path, name, plugin, entry if isinstance(entry, Mapping) else {})
        if isinstance(entry, dict):
            entry.update(options)
        if len(draft.faults) == before:
            _try(draft, kind, path, plugin, options, space)


def _options(draft: Draft, kind: str, path: str, name: str, plugin: Any, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options with the types that the plugin's constructor declares."""
    parameters = {key: value for key, value in inspect.signature(plugin).parameters.items() if key not in GIVEN}
    hints = _hints(plugin)
    takes = [*parameters, *(STOPPER_OPTIONS if kind == "stoppers" else ())]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    options = {}
    for key, value in entry.items():
        if key == "name":
            continue
        if key not in takes and not takes_any:
            known = f" It has: {', '.join(sorted(takes))}" if takes else " It has none"
            draft.fault(f"{path}.{key}", f"{name} has no option {key!r}.{did_you_mean(key, takes)}{known}")
            continue
        options[key] = _as_declared(value, hints.get(key))
        if key in hints and not _fits(options[key], hints[key]):
            draft.fault(f"{path}.{key}", f"expected {_expected(hints[key])}, got {value!r}")
    for key, parameter in parameters.items():
        is_plain = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if is_plain and parameter.default is parameter.empty and key not in entry:
            draft.fault(path, f"{name} needs its option {key!r}")
    return options


def _try(draft: Draft, kind: str, path: str, plugin: Any, options: Mapping[str, Any], space: Space | None) -> None:
    """Builds plugins that are cheap to build, so that their constructors check the options' values."""
    objectives = (Objective("score", "maximize", 0.0), Objective(SIZES[0], "minimize", 1e9, "log10"))
    given: dict[str, tuple[Any, ...] | None] = {
        "tasks": (),
        "samplers": None if space is None else (space, objectives, lambda params: None),
        "stoppers": (objectives,),
        "executors": (),
        "trackers": None,  # their constructors open files
    }
    arguments = given[kind]
    if kind == "stoppers":
        _stopper_options(draft, path, options)
        options = {key: value for key, value in options.items() if key not in STOPPER_OPTIONS}
    if arguments is None:
        return
    try:
        plugin(*arguments, **options)
    except ConfigError as fault:
        for inner in fault.faults:
            draft.fault(path, f"{inner.path}: {inner.message}" if inner.path else inner.message)
    except (UsageError, ValueError, TypeError) as fault:
        draft.fault(path, str(fault))


def _stopper_options(draft: Draft, path: str, options: Mapping[str, Any]) -> None:
    rungs, signal = options.get("rungs", [0.5]), options.get("signal", "auto")
    are_shares = isinstance(rungs, list) and bool(rungs) and all(_is_number(rung) and 0 < rung < 1 for rung in rungs)
    if not are_shares or sorted(set(rungs)) != rungs:
        draft.fault(f"{path}.rungs", f"expected ascending shares of the steps, each above 0 and below 1, got {rungs!r}")
    score = _score(draft)
    known = [*SIGNALS, *([score] if score else [])]
    if signal not in known:
        expected = f"{', '.join(known[:-1])} or {known[-1]}"
        message = f"expected {expected}, got {signal!r}.{did_you_mean(signal, known)}"
        draft.fault(f"{path}.signal", message.rstrip("."))


def _hints(plugin: Any) -> dict[str, Any]:
    """Returns the types of the constructor's parameters; empty if they need an import that is not loaded."""
    try:
        return {k: v for k, v in typing.get_type_hints(plugin.__init__).items() if _scalars(v)}
    except (NameError, AttributeError, TypeError):
        return {}


def _scalars(hint: Any) -> tuple[type, ...]:
    """Returns the scalar types that a hint allows; empty if it also allows other types."""
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    parts = typing.get_args(hint) if is_union else (hint,)
    return tuple(parts) if all(part in (bool, int, float, str, type(None)) for part in parts) else ()


def _as_declared(value: Any, hint: Any) -> Any:
    allowed = _scalars(hint) if hint is not None else ()
    if isinstance(value, str) and str not in allowed:
        if bool in allowed:
            return SWITCHES.get(value.lower(), value)
        if float in allowed or int in allowed:
            return _number(value)
    return value


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _fits(value: Any, hint: Any) -> bool:
    allowed = _scalars(hint)
    return type(value) in allowed or (type(value) is int and float in allowed)


def _expected(hint: Any) -> str:
    words = {bool: "on or off", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    return " or ".join(words[part] for part in _scalars(hint))


# ── objectives ──────────────────────────────────────────────────────────────────────────────────────────────────────


def objectives_of(draft: Draft, default_stopper: str) -> None:
    """Finds faulty objectives.

    These are metrics that the task does not compute, a first objective that is no score, a metric that is listed twice,
    and a stopper that cannot judge the objectives.
    """
    entries, task = draft.content.get("objectives"), _task(draft)
    if not isinstance(entries, list) or task is None:
        return
    names = [entry.get("metric") if isinstance(entry, Mapping) else entry for entry in entries]
    for index, name in enumerate(names):
        path = f"objectives.{index}"
        if not isinstance(name, str):
            continue  # pydantic says so
        if name not in (*task.metrics, *SIZES, MEMORY):
            known = (*task.metrics, *SIZES, MEMORY)
            draft.fault(path, f"no metric called {name!r}.{did_you_mean(name, known)} There are: {', '.join(known)}")
        elif index == 0 and name not in task.metrics:
            draft.fault(path, f"the first objective is the score, one of {', '.join(task.metrics)}; got {name!r}")
        elif name in names[:index]:
            draft.fault(path, f"{name!r} stands there twice")
        elif name == MEMORY and (why := _no_memory(draft.content.get("training"))):
            draft.fault(path, why)
        elif index == 0 or name in SIZES or names[0] not in task.metrics:
            continue
        elif not _judges(draft.content.get("stopper", default_stopper), name):
            draft.fault(
                path,
                f"{name!r} is not known before training, and at a rung the stopper must know all objectives but the "
                "score: choose `stopper: never` or halving, or another objective",
            )


def _no_memory(training: Any) -> str:
    """Returns why a trial's memory cannot be an objective in such a training; empty if it can, as far as is known."""
    given = training if isinstance(training, Mapping) else {}
    if given.get("device") == "cpu":
        return (
            f"{MEMORY} is of a GPU: on a CPU only the peak of the whole process is known, which other trials set, too"
        )
    if given.get("layout") == "flat":
        return f"{MEMORY} of a trial is known where nothing is kept for the next one: leave out training.layout"
    return ""


def _judges(stopper: Any, metric: str) -> bool:
    """Tries whether the stopper can judge a rung of a trial that knows its size but not this metric.

    True if there is no such stopper, or if it cannot be built: another check reports this.
    """
    name = stopper.get("name") if isinstance(stopper, Mapping) else stopper
    if not isinstance(name, str) or name not in plugins.names("stoppers"):
        return True
    report = Report(1, {"score": 0.5})
    record = Record(Trial(0, {}, 0), known=dict.fromkeys(SIZES, 1.0), reports=[report])
    try:
        judge = plugins.load("stoppers", name)(
            (Objective("score", "maximize", 0.0), Objective(metric, "maximize", 0.0))
        )
    except (TypeError, ValueError, UsageError):
        return True
    try:
        judge.report(record, report)
    except KeyError:
        return False
    return True


def _task(draft: Draft) -> Any:
    """Returns the task with its options and the user's metrics; None if no task has this name.

    If its options are faulty, it has none; if it cannot be made without options, its class is returned.
    """
    task = _without_own_metrics(draft)
    if task is None or isinstance(task, type):
        return task
    try:
        return scored_by(task, _own_metrics(draft))
    except UsageError:  # `own_metrics_of` says so
        return task


def _without_own_metrics(draft: Draft) -> Any:
    """Returns the task as `_task` does, with its own metrics alone."""
    entry = draft.content.get("task")
    options = dict(entry) if isinstance(entry, Mapping) else {"name": entry}
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in plugins.names("tasks"):
        return None
    plugin = plugins.load("tasks", name)
    for given in (options, {}):
        try:
            return plugin(**given)
        except (ConfigError, UsageError, ValueError, TypeError):  # `plugins_of` says so
            continue
    return plugin


def _own_metrics(draft: Draft) -> list[OwnMetric]:
    """Returns the metrics of the user's whose form is right. Reads no file."""
    entries = draft.content.get("metrics")
    found = []
    for name, entry in entries.items() if isinstance(entries, Mapping) else ():
        goal = entry.get("goal", "maximize") if isinstance(entry, Mapping) else "maximize"
        function = entry.get("function") if isinstance(entry, Mapping) else entry
        if isinstance(function, str) and goal in ("maximize", "minimize"):
            found.append(OwnMetric(str(name), function, "minimize" if goal == "minimize" else "maximize"))
    return found


def own_metrics_of(draft: Draft) -> None:
    """Finds metrics of the user's with a wrong name or goal, or without their function. Runs no code of the user's."""
    metrics, task = _own_metrics(draft), _without_own_metrics(draft)
    for metric in metrics:
        path = f"metrics.{metric.name}"
        if not metric.name.isidentifier() or metric.name in SIZES:
            draft.fault(path, f"expected a name of letters, digits and _ that is no size, got {metric.name!r}")
        wrong = metric_fault(metric.function) if draft.are_files_checked else None
        if wrong is not None:
            draft.fault(path, wrong)
    if task is not None and not isinstance(task, type):
        try:
            scored_by(task, metrics)
        except UsageError as fault:
            draft.fault("metrics", str(fault).removeprefix("metrics: "))


def _score(draft: Draft) -> str | None:
    """Returns the first objective's metric."""
    entries = draft.content.get("objectives")
    first = entries[0] if isinstance(entries, list) and entries else None
    name = first.get("metric") if isinstance(first, Mapping) else first
    return name if isinstance(name, str) else None


def data_keys_of(draft: Draft, known: Sequence[str]) -> None:
    """Finds keys of `data` that neither the config nor the task knows.

    Args:
        known: The config's own keys.
    """
    data, task = draft.content.get("data"), _task(draft)
    if not isinstance(data, Mapping):
        return
    keys = [*known, *(key for key in (task.columns if task is not None else ()) if key not in known)]
    for key, value in data.items():
        if key not in keys:
            message = f"there is no such key.{did_you_mean(key, keys)} There are: {', '.join(keys)}"
            draft.fault(f"data.{key}", message)
        elif key not in known and not _names_columns(value, task.columns[key]):
            several = ", or a list of names" if task.columns[key] == "targets" else ""
            draft.fault(f"data.{key}", f"expected the name of a column{several}, got {value!r}")
    if isinstance(task, ReadsForms) and not isinstance(task, type):
        for fault in task.data_faults(data):
            draft.fault(fault.path, fault.message)


def _names_columns(value: Any, kind: str) -> bool:
    """Whether a value of `data` is the name of a column; of several, each once, where the kind allows it."""
    if isinstance(value, list) and kind == "targets":
        return bool(value) and all(isinstance(name, str) for name in value) and len(set(value)) == len(value)
    return isinstance(value, str)


def default_objectives(draft: Draft) -> None:
    """Adds default objectives if none are given: the task's default metric and the number of trainable parameters."""
    task = _task(draft)
    if task is not None and "objectives" not in draft.content:
        draft.content["objectives"] = [next(iter(task.metrics)), SIZES[0]]


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def files_of(draft: Draft) -> None:
    """Finds a model, data files and columns that do not exist."""
    task, data = _task(draft), draft.content.get("data")
    brings_its_own = task is not None and hasattr(task, "bases")  # the task builds a base from its own rows
    _model_folder(draft, task.bases if brings_its_own else ())
    if not isinstance(data, Mapping):
        return
    if not brings_its_own and task is not None and not (data.get("train") or data.get("hub")):
        draft.fault("data", "names no rows: give `train` (a file or a folder) or `hub` (a data set)")
    hub = data.get("hub")
    if isinstance(hub, str) and hub.startswith("/") and not Path(hub).is_dir():
        draft.fault("data.hub", f"there is no folder {_named(draft, Path(hub), 'data.hub')}")
    for key in FILES:
        if isinstance(data.get(key), str):
            _data_file(draft, key, Path(data[key]), data, task)


def _model_folder(draft: Draft, bases: Sequence[str]) -> None:
    model = draft.content.get("model")
    at = "model.path" if isinstance(model, Mapping) else "model"
    path = model.get("path") if isinstance(model, Mapping) else model
    if not isinstance(path, str) or path in bases:
        return
    if not path.startswith("/"):
        if not path or any(character.isspace() for character in path):
            draft.fault(at, f"expected a folder or a name on the hub, got {path!r}")
    elif not Path(path).is_dir():
        draft.fault(at, f"there is no folder {_named(draft, Path(path), at)}")
    elif adapter_fault(Path(path)) is not None:
        draft.fault(at, f"{_relative(draft, Path(path), at)!r} {adapter_fault(Path(path))}")
    elif not (Path(path) / "config.json").is_file():
        draft.fault(at, f"{_relative(draft, Path(path), at)!r} has no config.json: it holds no transformers model")


def secrets_of(draft: Draft) -> bool:
    """Finds secrets, and returns whether there are any. A run keeps its config in files that people hand on."""
    before = len(draft.faults)
    for path, value in _texts({key: value for key, value in draft.content.items() if key != "space"}):
        is_given = draft.are_files_checked or any(path.startswith(known) for known in draft.lines)
        if is_given and is_secret(path.rpartition(".")[2], value):
            draft.fault(
                path, f"holds a secret, which the run's files would keep: put it into the environment ({SECRETS})"
            )
    return len(draft.faults) > before


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields the texts of JSON data, each with its path."""
    if isinstance(value, str):
        yield path, value
        return
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from _texts(item, f"{path}.{key}".lstrip("."))


def quantisation_of(draft: Draft) -> None:
    """Finds a quantisation whose library is not installed."""
    model = draft.content.get("model")
    name = model.get("quantisation") if isinstance(model, Mapping) else None
    if isinstance(name, str) and name in QUANTISATIONS:
        lacking = missing_library(name)
        if lacking is not None:
            draft.fault("model.quantisation", lacking)


def _data_file(draft: Draft, key: str, path: Path, data: Mapping[str, Any], task: Any) -> None:
    at = f"data.{key}"
    takes_folders = task is None or task.reads_folders
    if path.is_dir():
        if not takes_folders:
            known = f"expected a file, one of {EXPECTED}, got the folder {_relative(draft, path, at)!r}"
            draft.fault(at, f"{known}. A data set that was saved to disk is `data.hub`")
    elif not path.exists():
        draft.fault(at, f"there is no file {_named(draft, path, at)}")
    elif not is_known(path):
        draft.fault(at, f"{'a folder, or another file: ' if takes_folders else ''}{unknown_kind(path)}")
    else:
        columns = _columns(draft, at, path, data)
        for name, column_key in _named_columns(data, task):
            if columns is not None and name not in columns:
                draft.fault(f"data.{column_key}", no_column(name, path.name, columns, path, Format.of(data)))


def _named_columns(data: Mapping[str, Any], task: Any) -> list[tuple[str, str]]:
    """Returns the columns that the config names, each with its key. Defaults are not among them."""
    if isinstance(task, ReadsForms) and not isinstance(task, type):
        named = {**task.columns_of(data), **({data["group"]: "group"} if data.get("group") else {})}
        return [(name, key) for name, key in named.items() if isinstance(data.get(key), str)]
    keys = (*(("text", "image", "label") if task is None else task.columns), "group")
    given = {key: data.get(key) for key in keys}
    several = {key: names if isinstance(names, list) else [names] for key, names in given.items()}
    if "text" in several and isinstance(given["text"], list) and len(several["text"]) != 2:
        several["text"] = []  # pydantic says so
    return [(name, key) for key, names in several.items() for name in names if isinstance(name, str)]


def _columns(draft: Draft, at: str, path: Path, data: Mapping[str, Any]) -> list[str] | None:
    """Reads the columns of a table; None if its first line does not tell."""
    try:
        return columns_of(path, Format.of(data))
    except ConfigError as fault:
        for inner in fault.faults:
            draft.fault(at, inner.message)
    except LookupError:
        pass  # an unknown encoding: pydantic says so
    return None


def _named(draft: Draft, path: Path, at: str) -> str:
    """Describes a missing path for people: relative to its folder, with the nearest name that exists."""
    near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return f"{_relative(draft, path, at)!r}.{did_you_mean(path.name, near)}".rstrip(".")


def _relative(draft: Draft, path: Path, at: str) -> str:
    beside = draft.beside(at)
    return str(path.relative_to(beside) if path.is_relative_to(beside) else path)


def model_layers(model: Any) -> int | None:
    """Returns a model's number of layers if its config.json is at hand; else None."""
    path = model.get("path") if isinstance(model, Mapping) else model
    file = Path(str(path)) / "config.json"
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    keys = LAYER_KEYS if not values.get("is_encoder_decoder") else ()  # both stacks count: torch's model says how many
    return next((values[key] for key in keys if isinstance(values.get(key), int) and values[key] > 0), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
