"""Texts as token ids: one padding for all, the longest input that a model takes, control tokens in texts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from architectures import TEXT
from models import write_tokenizer
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from autopeft.errors import UsageError
from autopeft.tasks import Split
from autopeft.tasks._text import (
    POSITIONS_BEHIND_PADDING,
    READS_END,
    encode_rows,
    longest_input,
    model_config,
    padding,
    tokenizer,
)
from autopeft.training.batches import collate
from autopeft.training.loop import Worker
from autopeft.training.model import load_model
from autopeft.training.setup import ModelSpec, Setup
from autopeft.trial import Trial

DECODERS = ("gpt2", "llama", "qwen2", "opt", "gpt_neox")
SEQUENCE = "AutoModelForSequenceClassification"


def rows_of(folder, texts, max_length=None):
    found = encode_rows(tokenizer(str(folder), {}), model_config(str(folder), {}), [texts], max_length)
    return Split(found, {})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Architecture → a folder with its model."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            model = TEXT[name]()
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(8)  # as drawn, what a text says is lost among roundings
            model.save_pretrained(made[name])
        return made[name]

    return folder


def logits_alone_and_together(folder, texts):
    split, model = rows_of(folder, texts), load_model(ModelSpec(str(folder)), SEQUENCE, 3)
    with torch.no_grad():
        together = model(**collate(split, np.arange(len(texts)))).logits
        alone = torch.cat([model(**collate(split, np.array([row]))).logits for row in range(len(texts))])
    return together, alone


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("special", [("pad", "eos", "bos"), ("eos", "bos"), ("pad", "bos"), ()])
@pytest.mark.parametrize("name", sorted(TEXT))
def test_a_row_has_the_same_logits_alone_and_in_a_batch(folders, tmp_path, name, special, side):
    config = json.loads((folders(name) / "config.json").read_text())
    decoder = name in DECODERS
    for file in folders(name).glob("*.safetensors"):
        (tmp_path / file.name).symlink_to(file)
    if decoder:
        config["pad_token_id"] = None
        if "eos" not in special:
            config["eos_token_id"] = None
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_tokenizer(tmp_path, special, side, template=not decoder)
    texts = ["a b c d e", "b", "a f", "c c"]
    if not special and name in (*DECODERS, "funnel") and name != "qwen2":  # its tokenizer class brings one
        for fails in (lambda: rows_of(tmp_path, texts), lambda: load_model(ModelSpec(str(tmp_path)), SEQUENCE, 3)):
            with pytest.raises(UsageError, match="no padding token and no end token"):
                fails()
    else:
        together, alone = logits_alone_and_together(tmp_path, texts)
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5)
        assert not torch.allclose(alone[0], alone[1], atol=1e-4), "the model tells its rows apart"


# ── the longest input ───────────────────────────────────────────────────────────────────────────────────────────────

BOUNDED = {"bert": 8, "roberta": 10, "xlm-roberta": 10, "camembert": 10, "mpnet": 10, "longformer": 10, "esm": 10,
           "opt": 8, "bart": 8, "gpt2": 8, "deberta": 8}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TEXT))
def test_a_long_text_is_cut_to_what_the_model_takes(folders, tmp_path, name):
    """Its special tokens stay. The tokenizer names no maximum, as those of MPNet and Longformer."""
    for file in folders(name).iterdir():
        (tmp_path / file.name).symlink_to(file)
    write_tokenizer(tmp_path, template=name != "t5")
    split = rows_of(tmp_path, ["a b c " * 20, "a"])
    row = split.inputs["input_ids"].values[: split.lengths[0]]
    assert split.lengths[0] == BOUNDED.get(name, 62 if name == "t5" else 64) or name not in BOUNDED
    assert row[-1] == (9 if name == "t5" else 2)
    logits = load_model(ModelSpec(str(tmp_path)), SEQUENCE, 3)(**collate(split, np.arange(2))).logits
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", ["bert", "roberta", "mpnet", "longformer", "esm", "opt", "bart", "gpt2"])
def test_one_token_more_is_more_than_the_model_takes(folders, name):
    class Endless:
        model_max_length = 10**30

    longest = longest_input(Endless, model_config(str(folders(name)), {}))
    model = load_model(ModelSpec(str(folders(name))), SEQUENCE, 3)
    rows = torch.full((1, longest + 1), 4)
    rows[0, -1] = 2
    if name == "longformer":  # pads to its window, and clamps nothing
        rows = torch.cat([rows, rows, rows[:, :1]], dim=1)
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        model(input_ids=rows)


@pytest.mark.parametrize("cut", [5, 64])
def test_control_tokens_in_a_text_are_text(folders, tmp_path, cut):
    """BART reads its last end token, and wants as many in each row."""
    for name in ("bart", "t5"):
        (tmp_path / name).mkdir()
        for file in folders(name).iterdir():
            (tmp_path / name / file.name).symlink_to(file)
        write_tokenizer(tmp_path / name)
        together, alone = logits_alone_and_together(
            tmp_path / name, ["a </s> b </s> c", "</s>", "<s> a", "b c d e f a b"]
        )
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5)


def test_a_maximum_without_room_for_a_text_is_said(folders, tmp_path):
    (tmp_path / "config.json").write_text((folders("bert") / "config.json").read_text())
    write_tokenizer(tmp_path)
    assert rows_of(tmp_path, ["a b"], 3).lengths.tolist() == [3]
    with pytest.raises(UsageError, match="no room"):
        rows_of(tmp_path, ["a b"], 2)


def test_rows_are_padded_on_the_left_for_a_model_that_reads_the_last_place(folders, tmp_path):
    (tmp_path / "config.json").write_text((folders("xlnet") / "config.json").read_text())
    write_tokenizer(tmp_path)
    made = collate(rows_of(tmp_path, ["a b c", "a"]), np.arange(2))
    assert made["attention_mask"][0].all()
    assert made["attention_mask"][1].tolist() == sorted(made["attention_mask"][1].tolist())
    assert made["input_ids"][1, 0] == 5 != made["input_ids"][1, -1]  # the model's own padding, 5
    assert tokenizer(str(tmp_path), {}).padding_side == "left"


def test_padding_is_the_models_own_then_the_tokenizers_then_the_end():
    class Config:
        vocab_size, pad_token_id, eos_token_id, name_or_path = 10, 3, [7, 8], "x"

        def get_text_config(self):
            return self

    class Names:
        pad_token_id, eos_token_id = 4, 5

    config = Config()
    assert padding(Names, config) == 3
    config.pad_token_id = -1  # Llama's first
    assert padding(Names, config) == 4
    assert padding(None, config) == 7
    Names.pad_token_id = 10  # added to a tokenizer whose model has no row for it
    assert padding(Names, config) == 7
    config.eos_token_id = None
    assert padding(Names, config) == 5
    with pytest.raises(UsageError, match="no padding token and no end token"):
        padding(None, config)


def test_the_tables_have_all_of_transformers_classifiers_that_they_speak_of():
    """By their source: whose positions begin behind the padding's, and who reads the end tokens."""
    root = Path(transformers.__file__).parent / "models"
    source = {
        name: "".join(file.read_text() for file in (root / model_type_to_module_name(name)).glob("modeling_*.py"))
        for name in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    }
    behind = {name for name, text in source.items() if "create_position_ids_from_input_ids" in text}
    assert behind == POSITIONS_BEHIND_PADDING
    assert {name for name, text in source.items() if "eos_mask" in text} - {"esm"} <= READS_END  # ESM: of its folding


def test_a_worker_scores_a_row_as_it_is_alone(tmp_path):
    """Through the cached activations, and in a batch, on a decoder that names no padding."""
    model = TEXT["gpt2"]()
    model.config.pad_token_id = None
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(8)
    model.save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model", ("eos",), "left", template=False)
    rng = np.random.default_rng(0)
    lines = [f"{' '.join(rng.choice(list('abcdef'), rng.integers(1, 8)))},{'xy'[row % 2]}" for row in range(40)]
    (tmp_path / "rows.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    data = {"train": str(tmp_path / "rows.csv"), "text": "text", "label": "label", "validation_share": 0.25}
    setup = Setup.of(model=str(tmp_path / "model"), task="text_classification", data=data, folder=str(tmp_path / "run"),
                     cache=str(tmp_path / "cache"))  # fmt: skip
    plain = Worker(setup.but(prefix_cache_bytes=0))
    trial = Trial(0, {"method": "lora", "lora.modules": ["qkv"], "lora.layers": [1]}, 3)
    network, split = plain.network(trial), plain.data.splits["validation"]
    network.eval()
    with torch.no_grad():
        alone = torch.cat([network.model(**collate(split, np.array([row]))).logits for row in range(len(split))])
    cached = Worker(setup).network(trial)
    assert cached.depth == 1
    cached.eval()
    for each in (network, cached):
        with torch.no_grad():
            torch.testing.assert_close(each.logits("validation", np.arange(len(split))), alone, rtol=1e-3, atol=1e-5)
