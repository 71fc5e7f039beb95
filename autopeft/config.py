"""The config file: one YAML, strict pydantic models, all faults at once, each with its file, line and path.

Reading and checking imports no torch: plugins are known by their names and their constructors' signatures.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from autopeft import plugins
from autopeft.errors import ConfigError, Fault, UnknownName, UsageError, did_you_mean
from autopeft.methods import COMMON_KEYS, MODULE_KINDS
from autopeft.space import Space, parse

# What app gives a plugin by itself: no option of the user's.
GIVEN = frozenset(
    {"self", "space", "objectives", "folder", "describe", "quiet", "artifacts", "adapters", "trial_seconds"}
)
# Options of a stopper that the search reads: when it looks, and at what.
STOPPER_OPTIONS = frozenset({"rungs", "signal"})
MAY_CHANGE = ("budget", "executor", "trackers", "keep")
ASSUMED_LAYERS = 12  # of a model that is not at hand while its config is checked


class Section(BaseModel):
    """A part of the config: unknown keys are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _number(value: Any) -> Any:
    """Whole numbers are fine where a real one is asked for; `1e-4` without a dot is a number too."""
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Real = Annotated[float, BeforeValidator(_number)]
Positive = Annotated[Real, Field(gt=0)]
Share = Annotated[Real, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class Model(Section):
    """The pretrained model: a local folder, a hub name, or a base that the task builds (`digits`)."""

    path: str
    revision: str | None = None
    trust_remote_code: bool = False


class Plugin(Section):
    """A plugin by name, with its options: `tpe`, or `{name: tpe, n_startup_trials: 20}`."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class Data(Section):
    """Where rows come from: files, a folder, or a hub data set. Which keys apply is the task's to say."""

    train: str | None = None
    validation: str | None = None
    test: str | None = None
    hub: str | None = None
    name: str | None = None
    revision: str | None = None
    text: str | list[str] | None = None
    image: str | None = None
    label: str | None = None
    label_names: list[str] | None = None
    image_size: Count | None = None
    validation_share: Share = 0.1
    test_share: Share | None = None
    train_rows: Count | None = None

    @model_validator(mode="after")
    def one_source(self) -> Data:
        if self.train is not None and self.hub is not None:
            raise ValueError("give `train` (files) or `hub` (a data set), not both")
        return self


class ObjectiveEntry(Section):
    """An objective by its metric; what is left out is known: accuracy is maximised from the trivial baseline."""

    metric: str
    goal: Literal["maximize", "minimize"] | None = None
    reference: Real | None = None
    scale: Literal["linear", "log10"] | None = None


class Training(Section):
    """How each trial trains; the same for all, so that they compare."""

    epochs: Positive = 3.0
    steps: Count | None = None
    batch_size: Count = 32
    max_length: Count | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Annotated[Real, Field(ge=0, lt=1)] = 0.06
    weight_decay: Annotated[Real, Field(ge=0)] = 0.01
    clip: Positive | None = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    attention: Literal["auto", "eager", "sdpa"] = "auto"
    micro_batch_size: Count | None = None
    threads: Count = 1
    device: str = "auto"
    trial_seconds: Positive | None = None
    prefix_cache_gib: Annotated[Real, Field(ge=0)] = 8.0


class Budget(Section):
    """When the search ends, and what is too large to try."""

    trials: Count | None = None
    hours: Positive | None = None
    parameters: Count | None = None

    @model_validator(mode="after")
    def bounded(self) -> Budget:
        if self.trials is None and self.hours is None:
            raise ValueError("a search needs an end: give `trials`, `hours`, or both")
        return self


def _plugin(value: Any) -> Any:
    """`tpe` → `{name: tpe}`; keys beside `name` are options."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping) and "options" not in value and "name" in value:
        return {"name": value["name"], "options": {k: v for k, v in value.items() if k != "name"}}
    return value


def _each(wrap: Any) -> Any:
    return BeforeValidator(lambda value: [wrap(entry) for entry in value] if isinstance(value, list) else value)


def _objective(value: Any) -> Any:
    return {"metric": value} if isinstance(value, str) else value


def _model(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


PluginEntry = Annotated[Plugin, BeforeValidator(_plugin)]


class Config(Section):
    """One search.

    Attributes:
        space: The space's content; a name or a path in the file is replaced by what it names.
        stem: Name of the config file without its ending; names run folders.
    """

    model: Annotated[Model, BeforeValidator(_model)]
    task: PluginEntry
    data: Data
    space: dict[str, Any]
    objectives: Annotated[list[ObjectiveEntry], _each(_objective), Field(min_length=1)] = [
        ObjectiveEntry(metric="accuracy"),
        ObjectiveEntry(metric="trainable_parameters"),
    ]
    training: Training = Training()
    sampler: PluginEntry = Plugin(name="tpe")
    stopper: PluginEntry = Plugin(name="dominated")
    executor: PluginEntry = Plugin(name="ray_tune")
    trackers: Annotated[list[Plugin], _each(_plugin)] = [Plugin(name="console"), Plugin(name="mlflow")]
    budget: Budget
    keep: Literal["front", "all", "none"] = "front"
    seed: Annotated[int, Field(ge=0)] = 0
    name: str | None = None
    runs: str = "runs"
    stem: str | None = None


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def load(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """A config from a file or a mapping, with `key=value` overrides.

    Raises:
        ConfigError: All its faults.
    """
    if isinstance(source, Mapping):
        content, folder, label, stem = _plain(source), Path.cwd(), "config", None
        lines: dict[str, int] = {}
    else:
        path = Path(source)
        content, lines = _read_yaml(path)
        folder, label, stem = path.resolve().parent, str(source), path.stem
    faults = _override(content, lines, overrides)
    if stem is not None:
        content.setdefault("stem", stem)
    _resolve_paths(content, folder)
    return _build(content, lines, faults, folder, label)


def from_resolved(content: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """A config from what `resolve` gave, with overrides. Its files need not be there any more."""
    copy = _plain(content)
    faults = _override(copy, {}, overrides)
    return _build(copy, {}, faults, Path.cwd(), "the run's config", check_files=False)


def resolve(config: Config) -> dict[str, Any]:
    """The config as plain JSON data, every default filled in, paths absolute, the space in full."""
    data: dict[str, Any] = json.loads(config.model_dump_json())
    for section in ("task", "sampler", "stopper", "executor"):
        data[section] = {"name": data[section]["name"], **data[section]["options"]}
    data["trackers"] = [{"name": entry["name"], **entry["options"]} for entry in data["trackers"]]
    return data


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two resolved configs, a line each.

    Raises:
        UsageError: Something differs that would make earlier trials those of another search.
    """
    different = {key for key in {*old, *new} if old.get(key) != new.get(key)}
    lines = [f"{key}: {json.dumps(old.get(key))} → {json.dumps(new.get(key))}" for key in sorted(different)]
    forbidden = sorted(different - set(MAY_CHANGE))
    if forbidden:
        shown = "\n".join(f"  {line}" for line in lines if line.split(":")[0] in forbidden)
        raise UsageError(
            f"a resumed search keeps its config, all but {', '.join(MAY_CHANGE)}; this would change\n{shown}\n"
            "Start a new search for that"
        )
    return lines


def build_space(config: Config, n_layers: int, kinds: Sequence[str]) -> Space:
    """The config's space for a model of so many layers, with modules of these kinds.

    Raises:
        ConfigError: The space does not fit the model: a default names a layer that it lacks.
    """
    space, faults = _parse_space(config.space, n_layers, [kind for kind in MODULE_KINDS if kind in kinds])
    if space is None:
        raise ConfigError([Fault(f"space.{f.path}", f.message) for f in faults], f"the space, for {n_layers} layers")
    return space


def _parse_space(
    spec: Mapping[str, Any], n_layers: int, kinds: Sequence[str] = MODULE_KINDS
) -> tuple[Space | None, list[Fault]]:
    known: dict[str, set[str]] = {}
    for name in plugins.names("methods"):
        known[name] = {*COMMON_KEYS, *plugins.load("methods", name).keys}
    known["shared"] = set().union(*known.values())
    return parse(spec, {"layers": range(n_layers), "modules": kinds}, known)


def find_space(name: str, folder: Path) -> Path:
    """The file of a space: a path beside the config, or a name under search_spaces/.

    Raises:
        UnknownName: Neither.
    """
    beside = folder / name
    if beside.is_file():
        return beside
    shipped = {path.stem: path for path in spaces_folder().glob("*.yaml")}
    if name not in shipped:
        raise UnknownName("search space", name, shipped)
    return shipped[name]


def spaces_folder() -> Path:
    """search_spaces/: inside the package when installed, at the root of a checkout."""
    package = Path(__file__).parent
    inside = package / "search_spaces"
    return inside if inside.is_dir() else package.parent / "search_spaces"


# ── helpers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The mapping in a YAML file, and the line of each key path."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    if not path.is_file():
        raise ConfigError([Fault("", "there is no such file")], str(path))
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        node = YAML(typ="safe", pure=True).compose(text)
        content = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as fault:
        mark = fault.problem_mark
        line = mark.line + 1 if mark is not None else None
        raise ConfigError([Fault("", f"is no YAML: {fault.problem}", line)], str(path)) from None
    except YAMLError as fault:
        raise ConfigError([Fault("", f"is no YAML: {str(fault).splitlines()[0]}")], str(path)) from None
    if not isinstance(content, dict):
        raise ConfigError([Fault("", f"expected a mapping of sections, got {type(content).__name__}")], str(path))
    lines: dict[str, int] = {}
    _note_lines(node, "", lines)
    return content, lines


def _note_lines(node: Any, path: str, lines: dict[str, int]) -> None:
    if type(node).__name__ == "MappingNode":
        for key, value in node.value:
            inner = f"{path}.{key.value}" if path else str(key.value)
            lines[inner] = key.start_mark.line + 1
            _note_lines(value, inner, lines)
    elif type(node).__name__ == "SequenceNode":
        for index, value in enumerate(node.value):
            lines[f"{path}.{index}"] = value.start_mark.line + 1
            _note_lines(value, f"{path}.{index}", lines)


def _plain(source: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy as plain JSON data."""
    copy: dict[str, Any] = json.loads(json.dumps(source, default=str))
    return copy


def _override(content: dict[str, Any], lines: dict[str, int], overrides: Sequence[str]) -> list[Fault]:
    """Sets `a.b=value` in place; the value is YAML."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    faults = []
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            faults.append(Fault("--set", f"expected key=value such as budget.trials=60, got {text!r}"))
            continue
        keys = path.strip().split(".")
        try:
            parsed = YAML(typ="safe", pure=True).load(value)
        except YAMLError:
            faults.append(Fault("--set", f"the value of {text!r} is no YAML"))
            continue
        at: Any = content
        for key in keys[:-1]:
            if isinstance(at.get(key), str):  # a plugin or model given by its bare name gains options
                at[key] = {"path" if key == "model" else "name": at[key]}
            if not isinstance(at.get(key), dict):
                at[key] = {}
            at = at[key]
        at[keys[-1]] = parsed
        for known in [known for known in lines if known == path or known.startswith(f"{path}.")]:
            del lines[known]
    return faults


def _resolve_paths(content: dict[str, Any], folder: Path) -> None:
    """Paths in a config are relative to its file."""
    data = content.get("data")
    if isinstance(data, dict):
        for key in ("train", "validation", "test"):
            if isinstance(data.get(key), str):
                data[key] = str((folder / Path(data[key]).expanduser()).resolve())
        if isinstance(data.get("hub"), str) and (folder / data["hub"]).is_dir():
            data["hub"] = str((folder / data["hub"]).resolve())
    model = content.get("model")
    path = model.get("path") if isinstance(model, dict) else model
    if isinstance(path, str) and (folder / Path(path).expanduser()).is_dir():
        absolute = str((folder / Path(path).expanduser()).resolve())
        content["model"] = {**model, "path": absolute} if isinstance(model, dict) else absolute


def _build(
    content: dict[str, Any],
    lines: dict[str, int],
    faults: list[Fault],
    folder: Path,
    label: str,
    check_files: bool = True,
) -> Config:
    """Validates everything, collects all faults."""
    if isinstance(content.get("space"), str):
        try:
            content["space"] = _read_yaml(find_space(content["space"], folder))[0]
        except UnknownName as fault:
            faults.append(Fault("space", str(fault), lines.get("space")))
            content["space"] = {}
        except ConfigError as fault:
            faults += [Fault("space", f"{fault.source}: {inner}", lines.get("space")) for inner in fault.faults]
            content["space"] = {}
    space = content.get("space")
    if isinstance(space, dict) and space:
        found = _parse_space(space, _layers(content))[1]
        faults += [Fault(f"space.{f.path}".rstrip("."), f.message, _line(lines, f"space.{f.path}")) for f in found]
    faults += _plugin_faults(content, lines)
    if check_files:
        faults += _file_faults(content, lines)
    config: Config | None = None
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        faults += [_fault(detail, content, lines) for detail in error.errors()]
    if faults or config is None:
        order = dict(lines.items())
        unique = {(fault.path, fault.message): fault for fault in faults}.values()
        raise ConfigError(sorted(unique, key=lambda f: (order.get(f.path, f.line or 0), f.path)), label)
    return config


def _fault(detail: Any, content: Mapping[str, Any], lines: dict[str, int]) -> Fault:
    """A pydantic error in our words."""
    location = [str(part) for part in detail["loc"]]
    path = ".".join(location)
    kind, got = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        section = _section(location[:-1])
        near = did_you_mean(location[-1], section)
        message = f"there is no such key.{near} There are: {', '.join(section)}"
    elif kind == "missing":
        message = "is missing"
    elif kind == "value_error":
        message = str(detail["ctx"]["error"])
    elif kind == "literal_error":
        message = (
            f"expected {detail['ctx']['expected']}, got {got!r}.{did_you_mean(got, _quoted(detail['ctx']['expected']))}"
        )
    else:
        text = detail["msg"][0].lower() + detail["msg"][1:]
        message = f"{text.replace('input should be', 'expected')}, got {got!r}"
    return Fault(path, message, _line(lines, path))


def _section(location: Sequence[str]) -> list[str]:
    """The keys of a section of the config."""
    model: Any = Config
    for part in location:
        if part.isdigit():
            continue
        annotation = model.model_fields[part].annotation
        inner = [annotation, *getattr(annotation, "__args__", ())]
        model = next((kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    return [name for name in model.model_fields if name != "stem"]


def _quoted(expected: str) -> list[str]:
    return [part.strip(" '") for part in expected.replace(" or ", ",").split(",")]


def _line(lines: Mapping[str, int], path: str) -> int | None:
    """The line of a path, or of the nearest part of it that stands in the file."""
    parts = path.split(".")
    while parts:
        if ".".join(parts) in lines:
            return lines[".".join(parts)]
        parts.pop()
    return None


def _plugin_faults(content: Mapping[str, Any], lines: dict[str, int]) -> list[Fault]:
    """Names that no plugin has, and options that none of it takes."""
    entries = [
        (f"{kind}s", kind, content[kind]) for kind in ("task", "sampler", "stopper", "executor") if kind in content
    ]
    trackers = content.get("trackers")
    if isinstance(trackers, list):
        entries += [("trackers", f"trackers.{index}", entry) for index, entry in enumerate(trackers)]
    faults = []
    for kind, path, entry in entries:
        wrapped = _plugin(entry)
        if not isinstance(wrapped, Mapping) or not isinstance(wrapped.get("name"), str):
            continue  # pydantic says so
        try:
            plugin = plugins.load(kind, wrapped["name"])
        except UnknownName as fault:
            faults.append(Fault(path, str(fault), _line(lines, path)))
            continue
        takes = set(inspect.signature(plugin).parameters) - GIVEN
        if kind == "stoppers":
            takes |= STOPPER_OPTIONS
        for option in wrapped.get("options", {}):
            if option not in takes:
                known = ", ".join(sorted(takes)) or "none"
                message = f"{wrapped['name']} has no option {option!r}.{did_you_mean(option, takes)} It has: {known}"
                faults.append(Fault(f"{path}.{option}", message, _line(lines, f"{path}.{option}")))
    return faults


def _file_faults(content: Mapping[str, Any], lines: dict[str, int]) -> list[Fault]:
    """Files that are not there."""
    data = content.get("data")
    faults = []
    if isinstance(data, Mapping):
        for key in ("train", "validation", "test"):
            if isinstance(data.get(key), str) and not Path(data[key]).exists():
                faults.append(Fault(f"data.{key}", f"there is no {data[key]}", _line(lines, f"data.{key}")))
    model = content.get("model")
    path = model.get("path") if isinstance(model, Mapping) else model
    if isinstance(path, str) and path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
        faults.append(Fault("model", f"there is no folder {path}", _line(lines, "model")))
    return faults


def _layers(content: Mapping[str, Any]) -> int:
    """The model's number of layers where its config.json is at hand; else one assumed for checking."""
    model = content.get("model")
    path = model.get("path") if isinstance(model, Mapping) else model
    file = Path(str(path)) / "config.json"
    if file.is_file():
        values = json.loads(file.read_text())
        for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
            if isinstance(values.get(key), int):
                return int(values[key])
    return ASSUMED_LAYERS
