"""What is decided when a config meets its machine."""

import json
import shutil
from types import SimpleNamespace

import architectures
import pytest
import torch
from models import bert, write_tokenizer

from autopeft.config import build_space, load
from autopeft.errors import EnvironmentFault, Refused, UsageError
from autopeft.tasks.text_classification import TextClassification
from autopeft.training.data import prepare as encode
from autopeft.wiring import (
    as_it_began,
    make_executor,
    make_objective,
    model_name,
    prepare,
    ready_executor,
    reopen_setup,
    require_gpu,
    typical,
)


def config(gpus, device):
    demo = {"model": "digits", "task": "digits", "data": {}, "space": "digits", "budget": {"trials": 1}}
    options = {"name": "ray_tune", "gpus_per_trial": gpus}
    return load({**demo, "executor": options, "training": {"device": device}})


def test_gpus_a_trial_that_no_device_would_use_are_a_fault(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentFault, match=r"executor\.gpus_per_trial is 0\.5, .* torch sees no GPU"):
        require_gpu(config(0.5, "auto"))


@pytest.mark.parametrize(("gpus", "device", "sees_gpu"), [(0.5, "auto", True), (0, "auto", False), (1, "cuda", False)])
def test_what_is_meant_is_let_through(monkeypatch, gpus, device, sees_gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: sees_gpu)
    require_gpu(config(gpus, device))


@pytest.mark.parametrize("reference", [None, 0.1])
def test_a_metric_that_the_data_does_not_give_is_said_before_the_search(reference):
    entry = SimpleNamespace(metric="f1", goal=None, scale=None, reference=reference)
    with pytest.raises(UsageError, match=r"gives no f1, only accuracy, macro_f1 \(f1 is of two labels\)"):
        make_objective(entry, TextClassification(), {"accuracy": 0.4, "macro_f1": 0.2}, 100)


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "model").mkdir()
    rows = "".join(f"word {index},{'ab'[index % 2]}\n" for index in range(40))
    (tmp_path / "rows.csv").write_text(f"text,label\n{rows}")
    return load(
        {
            "model": bert(tmp_path / "model"),
            "task": "text_classification",
            "data": {"train": str(tmp_path / "rows.csv"), "text": "text", "label": "label", "test_share": 0.25},
            "space": "small",
            "budget": {"trials": 1},
        }
    )


def test_the_rows_of_each_split_stand_in_the_run(texts, tmp_path):
    prepare(texts, tmp_path, make_executor(texts), measure=False)
    splits = json.loads((tmp_path / "splits.json").read_text())
    assert {name: len(split["rows"]) for name, split in splits.items()} == {"train": 27, "validation": 3, "test": 10}
    assert sorted(row for split in splits.values() for row in split["rows"]) == list(range(40))
    assert splits["test"]["made"] == "0.25 of train, stratified, by seed"
    assert splits["train"]["made"] == "what is left of train"


def test_data_that_changed_since_the_search_began_is_refused(texts, tmp_path):
    header = prepare(texts, tmp_path, make_executor(texts), measure=False).header
    as_it_began(reopen_setup(texts, header, tmp_path), header)
    rows = (tmp_path / "rows.csv").read_text()
    (tmp_path / "rows.csv").write_text(rows + "one more,a\n")
    with pytest.raises(UsageError, match=r"has changed since this search began .*put back what it was"):
        as_it_began(reopen_setup(texts, header, tmp_path), header)
    (tmp_path / "rows.csv").write_text(rows)
    as_it_began(reopen_setup(texts, header, tmp_path), header)


def test_a_run_goes_on_where_its_files_are_gone_as_it_has_encoded_them(texts, tmp_path, capsys):
    header = prepare(texts, tmp_path, make_executor(texts), measure=False).header
    (tmp_path / "rows.csv").unlink()
    kept = as_it_began(reopen_setup(texts, header, tmp_path), header)
    assert "rows.csv: gone; going on with what the run has encoded of it" in capsys.readouterr().err
    sizes = {name: len(split) for name, split in encode(kept[0]).splits.items()}
    assert sizes == header["dataset"]["sizes"]
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UsageError, match=r"rows\.csv"):
        as_it_began(reopen_setup(texts, header, tmp_path), header)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("models/bert-tiny", "bert-tiny"),
        ("bert-tiny/model", "bert-tiny/model"),
        ("bert-tiny/checkpoint-500", "bert-tiny/checkpoint-500"),
        ("hub/models--prajjwal1--bert-tiny/snapshots/6f75de8b60a9", "prajjwal1/bert-tiny"),
    ],
)
def test_a_model_is_called_by_what_tells_it_from_others(tmp_path, folder, name):
    (tmp_path / folder).mkdir(parents=True)
    assert model_name(str(tmp_path / folder)) == name
    assert model_name("prajjwal1/bert-tiny") == "prajjwal1/bert-tiny"


def test_a_model_that_changed_since_the_search_began_is_refused(texts, tmp_path):
    header = prepare(texts, tmp_path, make_executor(texts), measure=False).header
    as_it_began(reopen_setup(texts, header, tmp_path), header)
    weights = tmp_path / "model" / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-4] + b"1234")
    with pytest.raises(UsageError, match=r"the model at .* has changed since this search began \(files:\w+ → files:"):
        as_it_began(reopen_setup(texts, header, tmp_path), header)
    weights.write_bytes(kept)
    as_it_began(reopen_setup(texts, header, tmp_path), header)
    (tmp_path / "model").rename(tmp_path / "moved")
    with pytest.raises(
        UsageError, match=r"there is no folder .*model, where the model of this search was: put it back"
    ):
        as_it_began(reopen_setup(texts, header, tmp_path), header)


def test_a_model_without_padding_and_end_token_is_said_before_training(texts, tmp_path):
    model = architectures.gpt2()
    model.config.pad_token_id = model.config.eos_token_id = None
    shutil.rmtree(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model", (), template=False)
    with pytest.raises(UsageError, match="names no padding token and no end token"):
        prepare(texts, tmp_path, make_executor(texts), measure=False)


@pytest.mark.parametrize(("executor", "is_noted"), [({"name": "packed", "slots": 4}, True), ("serial", False)])
def test_packs_on_a_cpu_are_noted(capsys, executor, is_noted):
    given = {"model": "digits", "task": "digits", "data": {}, "space": "digits", "budget": {"trials": 4}}
    ready_executor(load({**given, "executor": executor, "training": {"device": "cpu"}}))
    assert ("take longer than one after another" in capsys.readouterr().err) == is_noted


def test_a_search_in_packs_measures_on_the_method_that_is_packed():
    given = {"model": "digits", "task": "digits", "data": {}, "space": "digits", "budget": {"trials": 4}}
    space = build_space(load(given), 4, ["query", "key", "value", "output", "up", "down"])
    assert typical(space, 1, dict)["method"] != "lora", "else this tests nothing"
    assert typical(space, 16, dict)["method"] == "lora"


def test_a_stock_default_that_may_not_run_is_passed_over():
    space = build_space(config(0, "cpu"), 4, ["query", "key", "value", "output", "up", "down"])
    refused = typical(space, 1, dict)["method"]

    def check(params):
        if params["method"] == refused:
            raise Refused("not this one")

    assert typical(space, 1, check)["method"] not in (refused, "head")

    def only_draws(params):
        if params in space.defaults():
            raise Refused("too large")

    assert space.contains(typical(space, 1, only_draws))

    def nothing(params):
        raise Refused("over the budget of 3")

    with pytest.raises(UsageError, match=r"no stock default .* may run, and none of .* over the budget of 3"):
        typical(space, 1, nothing)


class TestModel:
    """Counting: any exception of a method or of peft is one configuration's, not the search's."""

    @pytest.fixture
    def model(self):
        from autopeft.wiring import Model

        model = object.__new__(Model)
        model.meta, model.view, model.most_parameters, model._counts = None, None, None, {}
        return model

    @pytest.mark.parametrize(
        "fault", [AttributeError("no such thing"), IndexError("9"), AssertionError(), KeyError("x")]
    )
    def test_what_goes_wrong_is_a_refusal(self, model, fault):
        def count(*_):
            raise fault

        model.count = count
        for _ in range(2):
            with pytest.raises(Refused, match=type(fault).__name__):
                model.check({"method": "lora"})

    def test_what_the_user_does_wrong_flies(self, model):
        def count(*_):
            raise UsageError("no")

        model.count = count
        with pytest.raises(UsageError):
            model.check({"method": "lora"})
