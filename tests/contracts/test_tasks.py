"""Every task keeps its family's contract by existing: a new one needs a line in `SUBJECTS` that makes its data."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from models import (
    bert,
    vit,
    wav2vec2,
    write_columns,
    write_completions,
    write_intents,
    write_numbers,
    write_ratings,
    write_sets,
    write_texts,
    write_tones,
    write_translator,
    write_words,
    writer,
)

from autopeft import plugins, testing
from autopeft.tasks.text_classification import TextClassification


def texts(folder):
    (folder / "model").mkdir()
    data = {"train": str(write_texts(folder / "train.csv", 80)), "text": "text", "label": "label",
            "validation_share": 0.25, "test_share": 0.25}  # fmt: skip
    return data, bert(folder / "model")


def numbers(folder):
    (folder / "model").mkdir()
    data = {"train": str(write_numbers(folder / "train.csv", 80)), "text": "text", "label": "score",
            "validation_share": 0.25, "test_share": 0.25}  # fmt: skip
    return data, bert(folder / "model")


def words(folder):
    (folder / "model").mkdir()
    data = {"train": str(write_words(folder / "train.csv", 60)), "tokens": "words", "tags": "tags",
            "validation_share": 0.25, "test_share": 0.25}  # fmt: skip
    return data, bert(folder / "model")


def sets(folder):
    (folder / "model").mkdir()
    data = {"train": str(write_sets(folder / "train.csv", 80)), "text": "text", "labels": "labels",
            "validation_share": 0.25, "test_share": 0.25}  # fmt: skip
    return data, bert(folder / "model")


def intents(folder):
    (folder / "model").mkdir()
    data = {"train": str(write_intents(folder / "train.csv", 80)), "validation_share": 0.25, "test_share": 0.25}
    return data, bert(folder / "model")


def ratings(folder):
    (folder / "model").mkdir()
    data = {"train": str(write_ratings(folder / "train.csv", 80)), "text": ["profile", "dish"],
            "validation_share": 0.25, "test_share": 0.25}  # fmt: skip
    return data, bert(folder / "model")


def columns(folder):
    (folder / "model").mkdir()
    data = {"train": str(write_columns(folder / "train.csv", 80)), "text": "text", "labels": ["mood", "topic"],
            "validation_share": 0.25, "test_share": 0.25}  # fmt: skip
    return data, bert(folder / "model")


def pictures(folder):
    from PIL import Image

    rng = np.random.default_rng(0)
    for index in range(48):
        of_class = folder / "pictures" / ("dark", "light", "grey")[index % 3]
        of_class.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(of_class / f"{index}.png")
    (folder / "model").mkdir()
    data = {"train": str(folder / "pictures"), "validation_share": 0.25, "test_share": 0.25}
    return data, vit(folder / "model")


def sounds(folder):
    (folder / "model").mkdir()
    data = {"train": str(write_tones(folder / "train.csv", 48)), "validation_share": 0.25, "test_share": 0.25}
    return data, wav2vec2(folder / "model")


def digits(folder):
    return {}, str(plugins.load("tasks", "digits")().base("digits"))


def completions(folder):
    (folder / "model").mkdir()
    data = {"train": str(write_completions(folder / "train.csv", 80)), "validation_share": 0.25, "test_share": 0.25}
    return data, writer(folder / "model")


def translations(folder):
    (folder / "model").mkdir()
    data = {"train": str(write_completions(folder / "train.csv", 80)), "validation_share": 0.25, "test_share": 0.25}
    return data, write_translator(folder / "model")


SUBJECTS = {
    "sequence_to_sequence": translations,
    "text_classification": texts,
    "audio_classification": sounds,
    "image_classification": pictures,
    "digits": digits,
    "ranking": ratings,
    "regression": numbers,
    "intent_classification": intents,
    "multilabel_classification": sets,
    "multioutput_classification": columns,
    "token_classification": words,
    "causal_language_modelling": completions,
}


@pytest.fixture(scope="module", params=plugins.names("tasks"))
def subject(request, tmp_path_factory):
    data, model = SUBJECTS[request.param](tmp_path_factory.mktemp(request.param))
    return testing.TaskSubject(request.param, data, model)


@pytest.mark.parametrize("check", testing.TASK_CHECKS, ids=lambda check: check.__name__.removeprefix("check_task_"))
def test_contract(subject, check):
    check(subject)


# ── the contract finds what it is there to find ─────────────────────────────────────────────────────────────────────


class Leaks(TextClassification):
    def read(self, data, seed):
        dataset = super().read(data, seed)
        dataset.splits["validation"] = dataset.splits["train"]
        return dataset


class LooksAtTheOthers(TextClassification):
    def encoder(self, source, about):
        encode = super().encoder(source, about)

        def padded(raw):
            longest = max(len(text) for text in raw.inputs["text"])
            texts = {"text": [text + " good" * (longest - len(text)) for text in raw.inputs["text"]]}
            return encode(replace(raw, inputs=texts))

        return padded


class TakesTheMean(TextClassification):
    def loss(self, outputs, targets):
        return super().loss(outputs, targets).mean()


class CountsItsNeighbours(TextClassification):
    def loss(self, outputs, targets):
        losses = super().loss(outputs, targets)
        return losses + losses.mean()


class HasNoGoal(TextClassification):
    metrics: ClassVar = {"accuracy": "up", "loss": "minimize"}


class ScoresByOrder(TextClassification):
    def score(self, kept, targets, about):
        found = super().score(kept, targets, about)
        return replace(found, metrics={**found.metrics, "accuracy": float(np.asarray(kept["logits"])[0, 0])})


class NeedsTargets(TextClassification):
    def encoder(self, source, about):
        encode = super().encoder(source, about)
        return lambda raw: encode(raw) if raw.targets else 1 / 0


@pytest.mark.parametrize(
    ("wrong", "check"),
    [
        (HasNoGoal, testing.check_task_describes_itself),
        (Leaks, testing.check_task_reads_by_seed),
        (LooksAtTheOthers, testing.check_task_encodes_chunk_by_chunk),
        (TakesTheMean, testing.check_task_fits_its_model),
        (CountsItsNeighbours, testing.check_task_fits_its_model),
        (ScoresByOrder, testing.check_task_scores),
        (NeedsTargets, testing.check_task_answers_without_targets),
    ],
)
def test_contract_finds(wrong, check, monkeypatch, tmp_path):
    data, model = texts(tmp_path)
    monkeypatch.setattr(plugins, "load", lambda kind, name: wrong)
    with pytest.raises((AssertionError, ZeroDivisionError)):
        check(testing.TaskSubject("wrong", data, model))
