"""The config file: one YAML, strict pydantic models, all faults at once, each with its file, line and path.

Reading and checking imports no torch: plugins are known by their names, attributes and constructors' signatures.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from autopeft import checks, spaces, yaml_file
from autopeft.draft import Draft, check_space, override, place_paths, read_space
from autopeft.errors import ConfigError, Fault, UsageError, did_you_mean
from autopeft.methods import MODULE_KINDS
from autopeft.quantisations import QUANTISATIONS
from autopeft.space import Space
from autopeft.spaces import SWITCHES
from autopeft.tasks._format import NAMED

# Settings that a resume may change. Earlier trials must still belong to the same search.
MAY_CHANGE = ("budget", "executor", "trackers", "keep", "training.prefix_cache_gib")
EPOCHS = 3.0  # if neither epochs nor steps are given


# ── the schema ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Section(BaseModel):
    """A part of the config: unknown keys are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _number(value: Any) -> Any:
    """Accepts whole numbers as real numbers, and text such as `"1e-4"`, which some tools write."""
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _whole(value: Any) -> Any:
    """Accepts `1e4` as a whole number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _count(value: Any) -> Any:
    """Accepts `50k` and `1.5M` as numbers of parameters."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMbB])", value) if isinstance(value, str) else None
    if match is None:
        return _whole(value)
    return round(float(match[1]) * {"k": 1e3, "m": 1e6, "b": 1e9}[match[2].lower()])


def _switch(value: Any) -> Any:
    """Accepts `on` and `off`, which YAML 1.2 reads as text."""
    return SWITCHES.get(value.lower(), value) if isinstance(value, str) else value


def _on_off(value: Any) -> Any:
    """Takes true and false for `on` and `off`, as YAML 1.1 reads them."""
    return ("on" if value else "off") if isinstance(value, bool) else value


def _columns(value: Any) -> Any:
    """One column's name, or two of a pair."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and len(value) == 2 and all(isinstance(name, str) for name in value):
        return value
    raise ValueError(f"expected the name of a column, or [a, b] for pairs of texts, got {value!r}")


def _names(value: Any) -> Any:
    """Labels by name; numbers become text."""
    if value is None:
        return None
    if not isinstance(value, list) or len({str(name) for name in value}) != len(value) or len(value) < 2:
        raise ValueError(f"expected a list of two labels or more, each once, got {value!r}")
    return [str(name) for name in value]


def _separator(value: Any) -> Any:
    """One character, or the name of one that YAML makes hard to write."""
    if value is None or (isinstance(value, str) and (len(value) == 1 or value in NAMED)):
        return value
    raise ValueError(f"expected one character, or {', '.join(NAMED)}; got {value!r}")


def _encoding(value: Any) -> Any:
    """An encoding that Python knows."""
    try:
        if isinstance(value, str) and isinstance(codecs.decode(b"", value), str):
            return value
    except LookupError:
        pass
    raise ValueError(f"expected an encoding such as utf-8, cp1252, gb18030 or utf-16, got {value!r}")


def _kind_name(value: Any) -> Any:
    """A kind of module."""
    if value not in MODULE_KINDS:
        raise ValueError(f"expected a kind of module, one of {', '.join(MODULE_KINDS)}, got {value!r}")
    return value


def _quantisation(value: Any) -> Any:
    """How the frozen base is stored."""
    if value is None or value in QUANTISATIONS:
        return value
    raise ValueError(f"expected null, or one of {', '.join(QUANTISATIONS)}, got {value!r}")


def _layer_names(value: Any) -> Any:
    """One name of layers, or several."""
    return [value] if isinstance(value, str) else value


Real = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Positive = Annotated[Real, Field(gt=0)]
Share = Annotated[Real, Field(gt=0, lt=1)]
Count = Annotated[int, BeforeValidator(_whole), Field(ge=1)]
Switch = Annotated[bool, BeforeValidator(_switch)]

KindName = Annotated[str, BeforeValidator(_kind_name)]
LayerNames = Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_layer_names), Field(min_length=1)]


class Model(Section):
    """The pretrained model: a local folder, a hub name, or a base that the task builds (`digits`)."""

    path: str
    revision: str | None = None
    trust_remote_code: Switch = False
    kinds: dict[KindName, LayerNames] = Field(default_factory=dict)
    quantisation: Annotated[str | None, BeforeValidator(_quantisation)] = None


class Plugin(Section):
    """A plugin by name, with its options: `tpe`, or `{name: tpe, n_startup_trials: 20}`."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class Data(Section):
    """Where rows come from: files, a folder, or a hub data set. Further keys name the columns of the task's own."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    train: str | None = None
    validation: str | None = None
    test: str | None = None
    hub: str | None = None
    name: str | None = None
    revision: str | None = None
    text: Annotated[str | list[str] | None, PlainValidator(_columns)] = None
    image: str | None = None
    label: str | None = None
    label_names: Annotated[list[str] | None, PlainValidator(_names)] = None
    image_size: Count | None = None
    validation_share: Share = 0.1
    test_share: Share | None = None
    train_rows: Count | None = None
    group: str | None = None
    on_fault: Literal["error", "skip"] = "error"
    separator: Annotated[str | None, PlainValidator(_separator)] = None
    quoting: Literal["auto", "standard", "none"] = "auto"
    encoding: Annotated[str, PlainValidator(_encoding)] = "utf-8"

    @model_validator(mode="after")
    def one_source(self) -> Data:
        if self.train is not None and self.hub is not None:
            raise ValueError("give `train` (files) or `hub` (a data set), not both")
        if self.train is None and (self.validation is not None or self.test is not None):
            raise ValueError("has no `train`: validation and test are files beside it")
        if self.test is not None and self.test_share is not None:
            raise ValueError("give `test` or `test_share`, not both")
        if self.test_share is not None and self.test_share + self.validation_share >= 1:
            raise ValueError("`validation_share` and `test_share` leave nothing to train on")
        return self


class ObjectiveEntry(Section):
    """An objective by its metric; what is left out is known: accuracy is maximised from the trivial baseline."""

    metric: str
    goal: Literal["maximize", "minimize"] | None = None
    reference: Real | None = None
    scale: Literal["linear", "log10"] | None = None


class MetricEntry(Section):
    """A metric of the user's: `scores.py:function`, or `{function, goal}`."""

    function: str
    goal: Literal["maximize", "minimize"] = "maximize"


class Training(Section):
    """How each trial trains; the same for all, so that they compare."""

    epochs: Positive | None = None
    steps: Count | None = None
    batch_size: Count = 32
    max_length: Count | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Annotated[Real, Field(ge=0, lt=1)] = 0.06
    weight_decay: Annotated[Real, Field(ge=0)] = 0.01
    clip: Positive | None = 1.0
    precision: Literal["auto", "fp32", "bf16", "bf16_frozen"] = "auto"
    attention: Literal["auto", "eager", "sdpa"] = "auto"
    layout: Literal["auto", "padded", "flat"] = "auto"
    compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_off)] = "auto"
    micro_batch_size: Count | None = None
    gradient_checkpointing: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_off)] = "auto"
    threads: Count = 1
    device: str = "auto"
    trial_seconds: Positive | None = None
    prefix_cache_gib: Annotated[Real, Field(ge=0)] = 8.0

    @model_validator(mode="before")
    @classmethod
    def one_length(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("epochs") is None and data.get("steps") is None:
            return {**data, "epochs": EPOCHS}
        return data

    @model_validator(mode="after")
    def consistent(self) -> Training:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give `epochs` or `steps`, not both")
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} is above batch_size {self.batch_size}")
        if self.compile == "on" and self.layout != "flat":
            raise ValueError("what is compiled has static shapes: with `compile: on` give `layout: flat`")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"device is auto, cpu, cuda or cuda:0, not {self.device!r}")
        return self


class Budget(Section):
    """When the search ends, and what is too large to try."""

    trials: Count | None = None
    hours: Positive | None = None
    parameters: Annotated[int, BeforeValidator(_count), Field(ge=1)] | None = None

    @model_validator(mode="after")
    def bounded(self) -> Budget:
        if self.trials is None and self.hours is None:
            raise ValueError("a search needs an end: give `trials`, `hours`, or both")
        return self


def _plugin(value: Any) -> Any:
    """`tpe` → `{name: tpe}`; keys beside `name` are options."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping):
        options = {key: entry for key, entry in value.items() if key != "name"}
        return {**({"name": value["name"]} if "name" in value else {}), "options": options}
    return value


def _each(wrap: Any) -> Any:
    return BeforeValidator(lambda value: [wrap(entry) for entry in value] if isinstance(value, list) else value)


def _objective(value: Any) -> Any:
    return {"metric": value} if isinstance(value, str) else value


def _model(value: Any) -> Any:
    if value is None:
        raise ValueError("expected a folder or a name on the hub, got null")
    return {"path": value} if isinstance(value, str) else value


def _metric_entry(value: Any) -> Any:
    return {"function": value} if isinstance(value, str) else value


PluginEntry = Annotated[Plugin, BeforeValidator(_plugin)]


class Config(Section):
    """One search.

    Attributes:
        space: The space's content. If the file has a name or a path, the content of that space file.
        stem: Name of the config file without its ending; part of run folders' names. Not a key of the file.
    """

    model: Annotated[Model, BeforeValidator(_model)]
    task: PluginEntry
    data: Data
    space: dict[str, Any]
    # If none are given, `checks.default_objectives` adds the task's.
    objectives: Annotated[list[ObjectiveEntry], _each(_objective), Field(min_length=1)] = []
    metrics: dict[str, Annotated[MetricEntry, BeforeValidator(_metric_entry)]] = {}
    training: Training = Training()
    sampler: PluginEntry = Plugin(name="tpe")
    stopper: PluginEntry = Plugin(name="dominated")
    executor: PluginEntry = Plugin(name="auto")
    trackers: Annotated[list[Plugin], _each(_plugin)] = [Plugin(name="console"), Plugin(name="mlflow")]
    budget: Budget
    keep: Literal["front", "all", "none"] = "front"
    seed: Annotated[int, Field(ge=0)] = 0
    name: Annotated[str, Field(pattern=r"^[^/\\]*[^/\\.][^/\\]*$")] | None = None
    runs: str = "runs"
    stem: str | None = None


# Sections that are a plugin → the default plugin, for `--set sampler.n_startup_trials=5` without a `sampler` section.
DEFAULTS = {key: Config.model_fields[key].default.name for key in ("sampler", "stopper", "executor")}


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def load(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Loads a config from a file or a mapping, with `key=value` overrides.

    Paths in a file are relative to the file, paths in a mapping or an override to the working folder.

    Raises:
        ConfigError: All its faults.
    """
    if isinstance(source, Mapping):
        return _build(Draft(yaml_file.plain(source), "config"), overrides)
    path = Path(source)
    document = yaml_file.read(path, str(source))
    draft = Draft(document.content, str(source), path.resolve().parent, dict(document.lines), path.stem)
    return _build(draft, overrides)


def from_resolved(content: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Makes a config from the result of `resolve`, with overrides. Its files need not exist any more."""
    draft = Draft(yaml_file.plain(content), "the run's config", are_files_checked=False)
    draft.stem = draft.content.pop("stem", None)
    return _build(draft, overrides)


def resolve(config: Config) -> dict[str, Any]:
    """Returns the config as plain JSON data: with all defaults, absolute paths, and the whole space."""
    data: dict[str, Any] = json.loads(config.model_dump_json())
    for section in ("task", "sampler", "stopper", "executor"):
        data[section] = {"name": data[section]["name"], **data[section]["options"]}
    data["trackers"] = [{"name": entry["name"], **entry["options"]} for entry in data["trackers"]]
    return data


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lists the differences of two resolved configs, a line each: `budget.trials: 40 → 60`.

    Raises:
        UsageError: A setting differs that a resume may not change.
    """
    old = resolve(from_resolved(old))  # adds defaults of keys that are newer than the ledger
    lines = {path: f"{path}: {_json(before)} → {_json(after)}" for path, before, after in _differences(old, new)}
    forbidden = [
        line for path, line in lines.items() if not f"{path}.".startswith(tuple(f"{key}." for key in MAY_CHANGE))
    ]
    if forbidden:
        shown = "\n".join(f"  {line}" for line in forbidden)
        raise UsageError(
            f"a resumed search keeps its config, all but {', '.join(MAY_CHANGE)}; this would change\n{shown}\n"
            "Start a new search for that"
        )
    return list(lines.values())


def build_space(config: Config, n_layers: int, kinds: Sequence[str]) -> Space:
    """Makes the config's space for a model with `n_layers` layers and modules of these kinds.

    Raises:
        ConfigError: The space does not fit the model: a default names a layer that the model lacks.
    """
    space, faults = spaces.read(config.space, n_layers, [kind for kind in MODULE_KINDS if kind in kinds])
    if space is None:
        raise ConfigError([Fault(f"space.{f.path}", f.message) for f in faults], f"the space, for {n_layers} layers")
    return space


# ── helpers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _build(draft: Draft, overrides: Sequence[str]) -> Config:
    """Validates the whole config, and collects all faults."""
    for text in overrides:
        override(draft, text, DEFAULTS)
    if checks.secrets_of(draft):
        draft.raise_faults()  # before any fault that shows a value
    content = draft.content
    if "stem" in content:
        draft.fault("stem", f"there is no such key. There are: {', '.join(_section([]))}")
        del content["stem"]
    place_paths(draft)
    read_space(draft)
    n_layers = checks.model_layers(content.get("model"))
    space = check_space(draft, n_layers)
    checks.default_objectives(draft)
    checks.plugins_of(draft, space if n_layers else None)
    checks.data_keys_of(draft, list(Data.model_fields))
    checks.own_metrics_of(draft)
    checks.objectives_of(draft, DEFAULTS["stopper"])
    if draft.are_files_checked:
        checks.files_of(draft)
        checks.quantisation_of(draft)
    config: Config | None = None
    try:
        config = Config.model_validate({**content, "stem": draft.stem})
    except ValidationError as error:
        for detail in error.errors():
            path = ".".join(_location(detail["loc"]))
            draft.fault(path, _message(detail))
    draft.raise_faults()
    assert config is not None, "what does not validate has faults"
    return config


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (path, before, after) of each value that differs. A section that one side lacks is one value."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield path, old, new


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# ── pydantic's faults in our words ──────────────────────────────────────────────────────────────────────────────────

BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}
EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "bool": "on or off (true or false)",
    "list": "a list",
    "dict": "a mapping of keys",
    "model": "a mapping of keys",
    "finite": "a finite number",
}


def _location(location: Sequence[int | str]) -> list[str]:
    """Returns the keys of a fault, without the parts that pydantic adds for unions and for our `options`."""
    return [str(part) for part in location if part != "options" and not str(part).startswith("function-")]


def _message(detail: Any) -> str:
    kind, got, context = detail["type"], detail["input"], detail.get("ctx", {})
    location = _location(detail["loc"])
    if kind == "extra_forbidden":
        section = _section(location[:-1])
        return f"there is no such key.{did_you_mean(location[-1], section)} There are: {', '.join(section)}"
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        return f"expected {', '.join(known[:-1])} or {known[-1]}, got {got!r}.{did_you_mean(got, known)}".rstrip(".")
    if kind in BOUNDS:
        word, key = BOUNDS[kind]
        return f"expected {word} {context[key]:g}, got {got!r}"
    if kind == "too_short":
        return f"expected {context['min_length']} or more, got {_json(got)}"
    if kind == "string_pattern_mismatch":
        return f"expected one folder's name, got {got!r}"
    expected = EXPECTED.get(kind.split("_")[0])
    assert expected is not None, f"no words for pydantic's {kind}"
    return f"expected {expected}, got {_json(got)}"


def _section(location: Sequence[str]) -> list[str]:
    """The keys of a section of the config."""
    model: Any = Config
    is_named = False  # whether the next part is a name of the user's
    for part in location:
        if is_named or part.isdigit():
            is_named = False
            continue
        annotation = model.model_fields[part].annotation
        is_named = get_origin(annotation) is dict
        inner = [annotation, *get_args(annotation)]
        inner += [kind for each in inner for kind in get_args(each)]
        model = next((kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    return [name for name in model.model_fields if name != "stem"]
