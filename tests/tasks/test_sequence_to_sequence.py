"""Sequence to sequence: labels and losses as transformers has them, cut texts counted, completions as stock code writes."""

import re

import numpy as np
import pytest
import torch
from models import write_completions, write_translator

from autopeft.errors import ConfigError
from autopeft.tasks import Batch, Ragged, Raw, Source
from autopeft.tasks.sequence_to_sequence import SequenceToSequence
from autopeft.training.batches import collate, collate_targets
from autopeft.training.export import export, load, verify
from autopeft.training.loop import Worker
from autopeft.training.model import load_model
from autopeft.training.setup import ModelSpec, Setup
from autopeft.trial import Trial

PROMPTS = ["good fine day", "bad", "awful song night dull"]
ANSWERS = ["yes it is", "no", "no no not"]


@pytest.fixture(scope="module", params=["t5", "bart"])
def folder(request, tmp_path_factory):
    return write_translator(tmp_path_factory.mktemp(request.param), request.param)


def encoded(folder, prompts=PROMPTS, answers=ANSWERS, **options):
    source = Source(folder, max_length=options.pop("max_length", None), data=options.pop("data", {}))
    raw = Raw({"prompt": prompts}, {"completion": answers} if answers else {}, np.arange(len(prompts)))
    return SequenceToSequence(**options).encoder(source, {})(raw)


def rows(column):
    assert isinstance(column, Ragged)
    return [column[row].tolist() for row in range(len(column))]


def test_loss_and_decoder_inputs_are_transformers_own(folder):
    split, task = encoded(folder), SequenceToSequence()
    model = load_model(ModelSpec(folder), task.auto_class, 0)
    inputs, targets = collate(split, np.arange(3)), collate_targets(split, np.arange(3))
    assert set(inputs) == {"input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask"}
    # A row at a time, as BART's own shift puts padding into the labels of shorter rows.
    for row, labels in enumerate(rows(split.targets["labels"])):
        wanted = torch.tensor([labels])
        stock = model.prepare_decoder_input_ids_from_labels(labels=wanted)
        assert rows(split.inputs["decoder_input_ids"])[row] == stock[0].tolist()
        alone = {name: inputs[name][row : row + 1] for name in ("input_ids", "attention_mask")}
        expected = model(**alone, labels=wanted).loss * len(labels)
        found = task.loss(model(**inputs).logits, targets)[row]
        assert torch.allclose(found, expected, rtol=1e-5)
    assert task.weights(split.targets).tolist() == [len(labels) for labels in rows(split.targets["labels"])]
    assert all(labels[-1] == 2 for labels in rows(split.targets["labels"])), "an end token is learned"
    assert all(ids[-1] == 2 for ids in rows(split.inputs["input_ids"])), "the encoder reads an end token"


def test_without_targets_the_decoder_has_its_start_token(folder):
    split = encoded(folder, answers=None)
    start = load_model(ModelSpec(folder), "AutoModelForSeq2SeqLM", 0).config.decoder_start_token_id
    assert rows(split.inputs["decoder_input_ids"]) == [[start]] * 3
    assert not split.targets


@pytest.mark.parametrize("too_long", ["cut", "drop"])
def test_what_is_too_long_loses_its_end_and_is_counted(folder, too_long):
    given = ["good " * 40 + "bad", "bad", "good"], ["no", "yes " * 40, "no"]
    split = encoded(folder, *given, max_length=8, too_long=too_long)
    assert max(map(len, rows(split.inputs["input_ids"]))) <= 8
    assert max(map(len, rows(split.targets["labels"]))) <= 8
    done = {"cut": "cut", "drop": "dropped"}[too_long]
    assert split.notes == {f"longer than 8 tokens: {done}": 2}
    assert (len(split), list(split.left_out)) == ((3, []) if too_long == "cut" else (1, [0, 1]))
    if too_long == "cut":
        assert split.targets["cut"].tolist() == [1, 2, 0]
        assert all(ids[-1] == 2 for ids in rows(split.inputs["input_ids"])), "its end token stays"


def test_completions_are_those_of_stock_code_row_by_row(folder):
    split, task = encoded(folder), SequenceToSequence(generate_rows=2, new_tokens=6)
    model = load_model(ModelSpec(folder), task.auto_class, 0)
    tokens = task.processor(Source(folder))
    inputs, targets = collate(split, np.arange(3)), collate_targets(split, np.arange(3))
    with torch.no_grad():
        kept = task.keep(model(**inputs).logits, Batch(np.arange(3), inputs, targets), model)
    assert kept["wanted"] == [*ANSWERS[:2], None]
    for row, ids in enumerate(rows(split.inputs["input_ids"])[:2]):
        stock = model.generate(torch.tensor([ids]), do_sample=False, num_beams=1, max_new_tokens=6)
        assert kept["completion"][row] == tokens.decode(stock[0], skip_special_tokens=True).strip()
    assert kept["completion"][2] is None


def test_templates_and_keys_of_other_tasks():
    task = SequenceToSequence()
    assert task.columns_of({"prompt": "sums: {a} {b}", "completion": "c"}) == {
        "a": "prompt",
        "b": "prompt",
        "c": "completion",
    }
    for data, said in (
        ({"text": "a"}, "data.text: expected `prompt` and `completion`"),
        ({"messages": "a"}, "data.messages: expected `prompt` and `completion`"),
        ({"text": "a", "prompt": "b"}, "a row is a prompt and its completion, or"),
        ({"prompt": "{a"}, "has a single '{'"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            task.read({"train": "x.csv", **data}, 0)


def setup(tmp_path, model, **values):
    data = {"train": str(write_completions(tmp_path / "train.csv", 120)), "validation_share": 0.2}
    return Setup.of(
        model=model, task="sequence_to_sequence", options={"generate_rows": 4, "new_tokens": 5}, data=data,
        folder=str(tmp_path), cache=str(tmp_path / "cache"), steps=20, batch_size=16, keep="all", **values,
    )  # fmt: skip


PARAMS = {"method": "lora", "lora.modules": "all", "lora.rank": 4, "lora.alpha": 32, "lora.lr": 3e-2}


def test_a_trial_learns_and_its_export_is_stock_peft(folder, tmp_path):
    """T5 as an adapter, BART merged; both load in a fresh process, and autopeft's own answers are theirs."""
    worker = Worker(setup(tmp_path, folder))
    trial = Trial(0, PARAMS, 3)
    split, task = worker.data.splits["validation"], worker.task
    untouched = task.trivial({}, split.targets, {}, lambda: worker.base_answers(split, task).kept)
    result = list(worker.evaluate(trial))[-1]
    assert not result.error
    assert result.metrics["perplexity"] < 0.9 * untouched.metrics["perplexity"]
    assert {"token_accuracy", "exact_match", "contains", "loss"} <= set(result.metrics)
    tensors = tmp_path / "trials" / "00000" / "trained.safetensors"
    is_merged = "bart" in folder
    made = export(
        setup=worker.setup, params=PARAMS, seed=3, tensors=tensors, about={"n_outputs": 0}, to=tmp_path / "to",
        card=lambda about: "", facts={}, merged=is_merged,
    )  # fmt: skip
    assert verify(made, *worker.sample(trial, tensors)) <= 1e-5
    found = load(made).predict({"prompt": PROMPTS})
    assert list(found.columns) == ["completion"] and len(found) == 3


def test_static_shapes_give_the_same_trial(tmp_path):
    """Rows of the decoder have widths of their own."""
    folder = write_translator(tmp_path / "t5")
    params = {**PARAMS, "lora.lr": 1e-3}  # so low that rounding does not grow
    results = [
        list(Worker(setup(tmp_path, folder, layout=layout)).evaluate(Trial(0, params, 3)))[-1]
        for layout in ("padded", "flat")
    ]
    for name in ("perplexity", "token_accuracy", "loss"):
        assert results[0].metrics[name] == pytest.approx(results[1].metrics[name], rel=1e-5)
