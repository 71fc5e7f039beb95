"""Every task keeps its family's contract by existing: a new one needs a line in `SUBJECTS` that makes its data."""

from __future__ import annotations

import numpy as np
import pytest
from models import bert, vit, write_texts

from autopeft import plugins, testing
from autopeft.tasks import Raw
from autopeft.tasks.text_classification import TextClassification


def texts(folder):
    (folder / "model").mkdir()
    data = {"train": str(write_texts(folder / "train.csv", 80)), "text": "text", "label": "label",
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


def digits(folder):
    return {}, str(plugins.load("tasks", "digits")().base("digits"))


SUBJECTS = {"text_classification": texts, "image_classification": pictures, "digits": digits}


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
    def encode(self, raw, model_path, options):
        longest = max(len(text) for text in raw.inputs["text"])
        padded = {"text": [text + " good" * (longest - len(text)) for text in raw.inputs["text"]]}
        return super().encode(Raw(padded, raw.labels, raw.rows), model_path, options)


class AddsUpTheLoss(TextClassification):
    def loss(self, logits, labels):
        return super().loss(logits, labels) * len(labels)


class ScoresTheWrongWay(TextClassification):
    def score(self, logits, labels):
        return {name: -value for name, value in super().score(logits, labels).items()}


class CountsTwice(TextClassification):
    def by_class(self, logits, labels):
        return {name: [2 * count for count in counts] for name, counts in super().by_class(logits, labels).items()}


@pytest.mark.parametrize(
    ("wrong", "check"),
    [
        (Leaks, testing.check_task_reads_by_seed),
        (LooksAtTheOthers, testing.check_task_encodes_row_by_row),
        (AddsUpTheLoss, testing.check_task_fits_its_model),
        (ScoresTheWrongWay, testing.check_task_scores),
        (CountsTwice, testing.check_task_counts_by_class),
    ],
)
def test_contract_finds(wrong, check, monkeypatch, tmp_path):
    data, model = texts(tmp_path)
    monkeypatch.setattr(plugins, "load", lambda kind, name: wrong)
    with pytest.raises(AssertionError):
        check(testing.TaskSubject("wrong", data, model))
