"""A search in static shapes finds what it finds in padded batches: the same trials, and their scores up to rounding."""

import pytest
import torch
import transformers
from models import bert, write_completions, write_texts, write_words, writer

from autopeft import app
from autopeft import ledger as ledgers
from autopeft.config import load
from autopeft.trial import WEATHER


def tagger(folder):
    bert(folder)
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(folder)
    transformers.BertForTokenClassification(config).save_pretrained(folder)
    return str(folder)


# Task → (the task, its model, its data and columns, its space)
SUBJECTS = {
    "text": ("text_classification", bert, write_texts, {"text": "text", "label": "label"}, "small"),
    "tokens": ("token_classification", tagger, write_words, {"tokens": "words", "tags": "tags"}, "small"),
    "language model": (
        {"name": "causal_language_modelling", "generate_rows": 4}, lambda folder: writer(folder, "llama"),
        write_completions, {}, "language_model",
    ),
}  # fmt: skip


def config(folder, subject, layout, executor):
    given = {
        "runs": str(folder), "executor": executor, "trackers": [], "sampler": "random", "stopper": "never",
        "training": {"steps": 8, "precision": "fp32", "attention": "eager", "layout": layout}, "budget": {"trials": 5},
    }  # fmt: skip
    if subject == "pictures":
        return {"model": "digits", "task": "digits", "data": {}, "space": "small", **given}
    task, make, write, columns, space = SUBJECTS[subject]
    (folder / "model").mkdir()
    data = {"train": str(write(folder / "train.csv", 100)), **columns}
    return {"model": make(folder / "model"), "task": task, "data": data, "space": space, **given}


def search(folder, subject, layout, executor):
    """(the first line, the told trials) of a search."""
    folder.mkdir()
    app.search(load(config(folder, subject, layout, executor)), folder / "run", quiet=True)
    events = list(ledgers.read(folder / "run" / ledgers.NAME))
    return events[0], {event["number"]: event for event in events if event["event"] == "tell"}


@pytest.mark.parametrize(
    ("subject", "executor"),
    [("text", "packed"), ("tokens", "serial"), ("language model", "packed"), ("pictures", "packed")],
)
def test_a_search_in_static_shapes_has_the_scores_of_the_padded_one(tmp_path, subject, executor):
    first, padded = search(tmp_path / "padded", subject, "padded", "serial")
    then, flat = search(tmp_path / "flat", subject, "flat", executor)
    assert (first["chosen"]["layout"], then["chosen"]["layout"]) == ("padded", "flat")
    assert flat.keys() == padded.keys() and len(flat) == 5
    for number, told in padded.items():
        assert flat[number]["status"] == told["status"] == "COMPLETE", flat[number]
        own = {name: value for name, value in told["metrics"].items() if name not in WEATHER}
        for name, value in own.items():
            assert flat[number]["metrics"][name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
