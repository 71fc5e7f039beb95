"""The config: what a right one becomes, overrides, resolving, and what a resume may change."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft import checks, plugins
from autopeft.config import (
    Config,
    Data,
    Section,
    Training,
    build_space,
    changes,
    from_resolved,
    load,
    resolve,
)
from autopeft.errors import ConfigError, UsageError

HEAVY = ("torch", "transformers", "peft", "ray", "optuna", "mlflow", "sklearn", "pandas", "datasets")
SMALLEST: dict[str, Any] = {
    "model": "digits",
    "task": "digits",
    "data": {},
    "space": {"method": ["head"], "head": {"lr": {"float": [1e-3, 1e-1], "log": True, "default": 1e-2}}},
    "trackers": ["console"],
    "budget": {"trials": 4},
}


def write(folder: Path, text: str, name: str = "my.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def faults(source: Any, *overrides: str) -> dict[str, str]:
    """Path → message."""
    with pytest.raises(ConfigError) as caught:
        load(source, overrides)
    return {fault.path: fault.message for fault in caught.value.faults}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a table and a model's config."""
    (tmp_path / "train.csv").write_text("text,label\nfine,1\nbad,0\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"num_hidden_layers": 3}))
    return tmp_path


TEXT = "model: model\ntask: text_classification\ndata: {train: train.csv}\nspace: small\nbudget: {trials: 4}\n"


# ── a right one ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_defaults() -> None:
    config = load({key: value for key, value in SMALLEST.items() if key != "trackers"})
    assert [objective.metric for objective in config.objectives] == ["accuracy", "trainable_parameters"]
    assert (config.sampler.name, config.stopper.name, config.executor.name) == ("tpe", "dominated", "auto")
    assert [tracker.name for tracker in config.trackers] == ["console", "mlflow"]
    assert (config.training.epochs, config.training.steps, config.seed, config.keep) == (3.0, None, 0, "front")


def test_the_demo_has_no_fault() -> None:
    from autopeft.app import DEMO

    demo = load(DEMO, ["trackers=[console]"])
    assert demo.stem == "demo"
    assert len(demo.space["method"]) >= 5


def test_a_peft_adapter_in_the_models_folder_is_a_fault_of_the_config(folder: Path) -> None:
    (folder / "model" / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"model: 'model' holds a peft adapter beside the model"):
        load(write(folder, TEXT))


def test_kinds_of_layers_are_named(folder: Path) -> None:
    text = TEXT.replace("model: model", "model: {path: model, kinds: {up: mlp.Wi, down: [mlp.Wo, mlp.W2]}}")
    assert load(write(folder, text)).model.kinds == {"up": ["mlp.Wi"], "down": ["mlp.Wo", "mlp.W2"]}
    for wrong, said in (("{upp: mlp.Wi}", "expected a kind of module, one of query"), ("{up: 3}", r"model\.kinds\.up")):
        with pytest.raises(ConfigError, match=said):
            load(write(folder, TEXT.replace("model: model", f"model: {{path: model, kinds: {wrong}}}")))


def test_paths_are_relative_to_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    config = load(write(folder, TEXT))
    assert config.data.train == str(folder / "train.csv")
    assert config.model.path == str(folder / "model")
    assert config.stem == "my"


def test_a_path_of_an_override_is_relative_to_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "here").mkdir()
    (folder / "here" / "more.csv").write_text("text,label\nfine,1\n")
    monkeypatch.chdir(folder / "here")
    assert load(write(folder, TEXT), ["data.train=more.csv"]).data.train == str(folder / "here" / "more.csv")


def test_a_name_that_is_no_folder_is_a_hub_name(folder: Path) -> None:
    assert load(write(folder, TEXT.replace("model: model", "model: org/name"))).model.path == "org/name"
    assert load(write(folder, TEXT), ["model=bert-base-uncased"]).model.path == "bert-base-uncased"


@pytest.mark.parametrize("written", ["1e-4", "'1e-4'", "0.0001", "1.0e-4"])
def test_ways_to_write_a_number(folder: Path, written: str) -> None:
    assert load(write(folder, TEXT + f"training: {{weight_decay: {written}}}\n")).training.weight_decay == 1e-4


@pytest.mark.parametrize(("written", "read"), [("off", False), ("no", False), ("on", True), ("true", True)])
def test_ways_to_write_a_switch(folder: Path, written: str, read: bool) -> None:
    text = TEXT.replace("model: model", f"model: {{path: model, trust_remote_code: {written}}}")
    assert load(write(folder, text)).model.trust_remote_code is read


@pytest.mark.parametrize(("written", "read"), [("50k", 50_000), ("1.5M", 1_500_000), ("1e5", 100_000), ("77", 77)])
def test_ways_to_write_a_number_of_parameters(written: str, read: int) -> None:
    assert load(SMALLEST, [f"budget.parameters={written}"]).budget.parameters == read


def test_steps_in_place_of_epochs() -> None:
    training = load(SMALLEST, ["training.steps=100"]).training
    assert (training.epochs, training.steps) == (None, 100)


def test_every_default_of_training_is_a_value_that_may_be_written() -> None:
    given = json.loads(Training(epochs=3).model_dump_json())
    assert load({**SMALLEST, "training": given}).training == Training(epochs=3)


# ── overrides ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_overrides() -> None:
    config = load(
        SMALLEST,
        ["budget.trials=60", "seed=7", "sampler.n_startup_trials=5", "trackers=[console]", "objectives=[macro_f1]"],
    )
    assert (config.budget.trials, config.seed) == (60, 7)
    assert (config.sampler.name, config.sampler.options) == ("tpe", {"n_startup_trials": 5})  # of the default sampler
    assert [tracker.name for tracker in config.trackers] == ["console"]
    assert [objective.metric for objective in config.objectives] == ["macro_f1"]


def test_a_bare_name_gains_options() -> None:
    config = load({**SMALLEST, "stopper": "dominated", "model": "digits"}, ["stopper.k=3", "model.revision=main"])
    assert (config.stopper.name, config.stopper.options) == ("dominated", {"k": 3})
    assert (config.model.path, config.model.revision) == ("digits", "main")


def test_an_entry_of_a_list_is_overridden_by_its_index() -> None:
    config = load({**SMALLEST, "objectives": ["accuracy", "trainable_parameters"]}, ["objectives.0=macro_f1"])
    assert [objective.metric for objective in config.objectives] == ["macro_f1", "trainable_parameters"]


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("budget.trials", "--set"),
        ("=4", "--set"),
        ("seed=[1", "--set seed"),
        ("seed.more=1", "--set seed.more"),
        ("objectives.7=f1", "--set objectives.7"),
        ("traning.epochs=1", "traning"),
        ("training.epochs=many", "training.epochs"),
    ],
)
def test_wrong_overrides(override: str, path: str) -> None:
    source = {**SMALLEST, "seed": 0, "objectives": ["accuracy"]}
    assert list(faults(source, override)) == [path]


def test_a_fault_of_an_override_has_no_line(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(folder, TEXT + "training: {epochs: 2}\nseed: -1\n"), ["training.epochs=0"])
    assert [(fault.path, fault.line) for fault in caught.value.faults] == [("seed", 7), ("training.epochs", None)]


# ── faults that golden files do not show ────────────────────────────────────────────────────────────────────────────


def test_files_that_are_no_config(tmp_path: Path) -> None:
    write(tmp_path, TEXT)
    with pytest.raises(ConfigError, match=r"no such file\. Did you mean 'my\.yaml'\?"):
        load(tmp_path / "may.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        load(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"model: x\n\xff\xfe")
    with pytest.raises(ConfigError, match="line 2: is not UTF-8"):
        load(tmp_path / "binary.yaml")
    with pytest.raises(ConfigError, match="alias of something that holds it"):
        load(write(tmp_path, "model: &a {path: *a}\n", "loop.yaml"))


UNSAFE = "model: !!python/object/apply:os.system [ls]"


@pytest.mark.parametrize("text", [UNSAFE, "a: 1\n---\nb: 2", "\tmodel: x", "a: *b"])
def test_yaml_that_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="is no YAML"):
        load(write(tmp_path, text))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_config_or_a_config_error(text: str) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = Path(folder) / "any.yaml"
        path.write_text(text, encoding="utf-8", errors="replace", newline="")
        with pytest.raises(ConfigError):
            load(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70) | st.floats(allow_nan=False) | st.text("ablr.", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abler_.", max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([*Config.model_fields]), JSON)
def test_any_value_of_a_section_is_a_config_or_a_config_error(section: str, value: Any) -> None:
    """Whatever stands there, what is wrong is said; nothing else flies. What is right resolves to the same."""
    try:
        config = load({**SMALLEST, section: value})
    except ConfigError as error:
        assert error.faults
    else:
        assert from_resolved(resolve(config)) == config


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["method", "head", "lora", "shared"]), JSON, JSON)
def test_any_value_in_a_space_is_a_space_or_a_config_error(component: str, key: Any, value: Any) -> None:
    inner = value if component == "method" else {str(key): value}
    spec = {"method": ["head", "lora"], "lora": {"rank": 8}, component: inner}
    try:
        build_space(load({**SMALLEST, "space": spec}), 4, ["query", "value"])
    except ConfigError as error:
        assert error.faults


def test_a_parquet_file_shows_its_columns(folder: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": ["fine"], "label": [1]}), folder / "train.parquet")
    text = TEXT.replace("{train: train.csv}", "{train: train.parquet, text: txt}")
    assert "Did you mean 'text'?" in faults(write(folder, text))["data.text"]


def test_objectives_with_a_metric_of_the_task() -> None:
    assert load(SMALLEST, ["objectives=[matthews_correlation, adapter_parameters]"]).objectives[0].goal is None


def test_an_objective_that_the_stopper_cannot_judge() -> None:
    objectives = "objectives=[accuracy, macro_f1]"
    assert "choose `stopper: never`" in faults(SMALLEST, objectives)["objectives.1"]
    assert len(load(SMALLEST, [objectives, "stopper=never"]).objectives) == 2
    assert len(load(SMALLEST, [objectives, "stopper=halving"]).objectives) == 2


def test_a_default_that_names_a_layer_which_the_model_lacks(folder: Path) -> None:
    """The layers are the model's own where its config.json is at hand."""
    space = "space: {method: [bias], bias: {lr: 1e-3, layers: {subset: layers, default: [0, 3]}}}"
    text = TEXT.replace("space: small", space)
    assert "space.bias.layers" in faults(write(folder, text))  # three layers
    assert load(write(folder, text.replace("model: model", "model: org/name")))  # not at hand: twelve are assumed


def test_a_sampler_hears_of_the_space(folder: Path) -> None:
    text = TEXT + "sampler: {name: fixed, params: [{method: head, head.lr: 5}]}\n"
    assert "head.lr 5 is not in" in faults(write(folder, text))["sampler"]


def test_off_is_false_for_an_option_that_is_a_bool(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plugin:
        def __init__(self, is_eager: bool = True, share: float | None = 0.5, names: list[str] | None = None) -> None:
            pass

    monkeypatch.setattr(plugins, "names", lambda kind: ("serial",))
    monkeypatch.setattr(plugins, "load", lambda kind, name: Plugin)
    draft = checks.Draft({"executor": {"name": "serial", "is_eager": "off", "share": "1e-2", "names": ["a"]}}, "x")
    checks.plugins_of(draft, None)
    assert not draft.faults
    assert draft.content["executor"] == {"name": "serial", "is_eager": False, "share": 1e-2, "names": ["a"]}


def test_a_plugin_whose_types_are_not_at_hand_is_still_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plugin:
        def __init__(self, device: SomethingHeavy = None) -> None:  # type: ignore[name-defined]  # noqa: F821
            pass

    monkeypatch.setattr(plugins, "names", lambda kind: ("serial",))
    monkeypatch.setattr(plugins, "load", lambda kind, name: Plugin)
    draft = checks.Draft({"executor": {"name": "serial", "device": "x", "devise": 1}}, "x")
    checks.plugins_of(draft, None)
    assert [fault.path for fault in draft.faults] == ["executor.devise"]


def test_an_option_that_a_plugin_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plugin:
        def __init__(self, address: str) -> None:
            pass

    monkeypatch.setattr(plugins, "names", lambda kind: ("far",))
    monkeypatch.setattr(plugins, "load", lambda kind, name: Plugin)
    draft = checks.Draft({"executor": "far"}, "x")
    checks.plugins_of(draft, None)
    assert [(fault.path, fault.message) for fault in draft.faults] == [("executor", "far needs its option 'address'")]


# ── resolved configs ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_resolved_config_is_json_and_comes_back(folder: Path) -> None:
    text = TEXT + "trackers: [console]\nstopper: {name: dominated, k: 3, rungs: [0.2]}\ntraining: {steps: 9}\n"
    config = load(write(folder, text))
    resolved = resolve(config)
    assert resolved == json.loads(json.dumps(resolved, allow_nan=False))
    assert resolved["stopper"] == {"name": "dominated", "k": 3, "rungs": [0.2]}
    assert resolved["space"]["method"] == config.space["method"]
    (folder / "train.csv").unlink()  # its files need not be there any more
    assert from_resolved(resolved) == config
    assert resolve(from_resolved(resolved)) == resolved


def test_changes_are_named_by_their_leaf() -> None:
    old = resolve(load(SMALLEST))
    new = resolve(from_resolved(old, ["budget.trials=60", "executor=serial", "keep=all"]))
    assert changes(old, old) == []
    assert changes(old, new) == [
        'executor.name: "auto" → "serial"',
        "budget.trials: 4 → 60",
        'keep: "front" → "all"',
    ]


@pytest.mark.parametrize("override", ["seed=1", "training.epochs=4", "space.head.lr.default=0.05", "stopper=never"])
def test_what_a_resume_may_not_change(override: str) -> None:
    old = resolve(load(SMALLEST))
    with pytest.raises(UsageError, match=override.split("=")[0].replace(".", r"\.")):
        changes(old, resolve(from_resolved(old, [override])))


def test_a_resume_may_have_another_disk() -> None:
    old = resolve(load(SMALLEST))
    new = resolve(from_resolved(old, ["training.prefix_cache_gib=2"]))
    assert changes(old, new) == ["training.prefix_cache_gib: 8.0 → 2.0"]


def test_a_config_of_an_older_autopeft_resumes() -> None:
    """A key that came since has its default on both sides."""
    old = resolve(load(SMALLEST))
    del old["training"]["prefix_cache_gib"]
    assert changes(old, resolve(from_resolved(old, ["budget.trials=60"]))) == ["budget.trials: 4 → 60"]


def test_sections_are_strict() -> None:
    def every(model: type[Section]) -> list[type[Section]]:
        return [model, *(inner for child in model.__subclasses__() for inner in every(child))]

    for model in every(Section):
        assert model.model_config["extra"] == ("allow" if model is Data else "forbid")  # the task's columns: checks
        assert model.model_config["strict"] is True


# ── speed ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_checking_loads_no_heavy_library(folder: Path) -> None:
    code = (
        "import sys; from autopeft.config import load; load(sys.argv[1]);"
        f"sys.exit(' '.join(name for name in {HEAVY!r} if name in sys.modules) or 0)"
    )
    command = [sys.executable, "-c", code, str(write(folder, TEXT))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("separator", ";;", "expected one character, or tab"),
        ("encoding", "utf-99", "expected an encoding such as utf-8, cp1252"),
        ("encoding", "base64", "expected an encoding such as"),
        ("quoting", "off", "expected auto, standard or none, got 'off'"),
        ("on_fault", "ignore", "expected error or skip, got 'ignore'"),
        ("group", "user", r"no column 'user' in train\.csv"),
    ],
)
def test_keys_of_how_data_is_read(tmp_path, key, value, said):
    (tmp_path / "train.csv").write_text("text,label\na,b\n")
    data = {"train": str(tmp_path / "train.csv"), "text": "text", "label": "label", key: value}
    with pytest.raises(ConfigError, match=said):
        load({"model": "m", "task": "text_classification", "data": data, "space": "small", "budget": {"trials": 2}})


def test_check_names_the_separator_and_the_encoding_that_a_file_seems_to_have(tmp_path):
    rest = {"model": "m", "task": "text_classification", "space": "small", "budget": {"trials": 2}}
    data = {"train": str(tmp_path / "train.csv"), "text": "text", "label": "label"}
    (tmp_path / "train.csv").write_text("text;label\na;b\n")
    with pytest.raises(ConfigError, match="seems to be separated by ';': say `separator: \";\"`"):
        load({**rest, "data": data})
    assert load({**rest, "data": {**data, "separator": ";"}}).data.separator == ";"
    (tmp_path / "train.csv").write_bytes("text,label\na,b\n".encode("utf-16"))
    with pytest.raises(ConfigError, match="seems to be utf-16: say `encoding: utf-16`"):
        load({**rest, "data": data})
    load({**rest, "data": {**data, "encoding": "utf-16"}})
