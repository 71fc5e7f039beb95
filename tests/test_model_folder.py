"""A folder that holds a model: its digest, and a peft adapter in it."""

import json

import pytest
import torch
from models import bert

from autopeft.errors import UsageError
from autopeft.model_folder import digest, digest_as
from autopeft.training.model import load_model
from autopeft.training.setup import ModelSpec

SEQUENCE = "AutoModelForSequenceClassification"


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    bert(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json", "code.py"])
def test_a_change_of_what_a_model_is_read_from_is_another_digest(model, name):
    (model / "code.py").write_text("x = 1\n")
    before, content = digest(str(model)), (model / name).read_bytes()
    (model / "README.md").write_text("of no concern")
    (model / "training_args.bin").write_bytes(b"nor this")
    assert digest(str(model)) == before
    (model / name).write_bytes(content[:-1] + b"?")
    assert digest(str(model)) != before
    (model / name).unlink()
    assert digest(str(model)) != before


def test_weights_in_a_bin_count(model):
    weights = {"x": torch.zeros(3)}
    torch.save(weights, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    before = digest(str(model))
    torch.save({"x": torch.ones(3)}, model / "pytorch_model.bin")
    assert digest(str(model)) != before


def test_a_ledger_of_before_is_compared_by_its_own_rule(model):
    assert digest_as(str(model), digest(str(model))) == digest(str(model))
    old = digest_as(str(model), "sha256:0000")
    assert old.startswith("sha256:")
    (model / "config.json").write_text("{}")  # was not looked at then
    assert digest_as(str(model), "sha256:0000") == old
    (model / "model.safetensors").write_bytes(b"other")
    assert digest_as(str(model), "sha256:0000") != old


def test_a_hub_name_has_no_digest():
    assert digest("bert-base-uncased") is None
    assert digest_as("bert-base-uncased", "sha256:1") is None


def test_an_adapter_beside_a_model_is_said(model):
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    with pytest.raises(UsageError, match=r"holds a peft adapter beside the model .*merge it into the model"):
        load_model(ModelSpec(str(model)), SEQUENCE, 3)


@pytest.mark.parametrize("content", ['{"base_model_name_or_path": "some/base"}', "no JSON", "[]"])
def test_an_adapter_alone_is_said(tmp_path, content):
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(UsageError, match=r"is a peft adapter and no model .*or give the base") as caught:
        load_model(ModelSpec(str(tmp_path)), SEQUENCE, 3)
    assert ("'some/base'" in str(caught.value)) == ("some/base" in content)
