"""The rows that a trial gets most wrong: their texts, labels and losses, and where they are kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from autopeft.run_folder import worst_rows
from autopeft.tasks import Raw
from autopeft.training.loop import Worker
from autopeft.training.setup import Setup
from autopeft.training.worst import LONGEST, MOST, kinds_of, quotes
from autopeft.trial import Trial
from tests.models import bert, text_setup, write_words

ABOUT = {"label_names": ["no", "yes"]}


def test_a_kept_trial_has_its_most_wrong_rows(tmp_path):
    worker = Worker(text_setup(tmp_path).but(keep="all"))
    trial = Trial(4, {"method": "head", "head.lr": 1e-2}, 0)
    *_, result = worker.evaluate(trial)
    assert not result.error
    found = worst_rows(Path(worker.setup.folder) / "trials" / "00004")
    network = worker.network(trial)
    from safetensors.torch import load_file

    from autopeft.training.recipe import load_trained

    load_trained(network.attached, load_file(Path(worker.setup.folder) / "trials" / "00004" / "trained.safetensors"))
    answers = worker.answers(network, "validation")
    order = np.argsort(-answers.losses, kind="stable")[:MOST]
    assert [row["loss"] for row in found] == [float(answers.losses[at]) for at in order]
    assert [row["row"] for row in found] == worker.data.rows["validation"][order].tolist()
    names = worker.data.about["label_names"]
    labels = np.asarray(worker.data.splits["validation"].targets["label"])[order]
    assert [row["expected"] for row in found] == [names[label] for label in labels]
    predicted = np.asarray(answers.kept["logits"]).argmax(axis=1)[order]
    assert [row["predicted"] for row in found] == [names[label] for label in predicted]
    with open(worker.setup.task.data["train"]) as file:
        lines = file.read().splitlines()[1:]
    assert all(row["input"] in lines[row["row"]] for row in found)


def test_what_a_reader_sees_of_a_row():
    raw = Raw(
        {"text": ["a" * 1000, "ü"], "image": ["/home/me/cats/1.png", b"bytes"], "words": [["New", "York"], ["x"]]},
        {"label": np.array([1, 0]), "stars": np.array([2.5, 1.0])},
        np.array([3, 9]),
    )
    first, second = map(json.loads, quotes(raw, {"text": "text", "image": "picture", "words": "text"}, ABOUT))
    assert first == {"row": 3, "input": "a" * LONGEST + "… | 1.png | New York", "expected": "yes, 2.5"}
    assert second == {"row": 9, "input": "ü | x", "expected": "no, 1"}


def test_several_labels_and_files_are_named():
    labels = {"labels": np.array([[1, 0], [0, 0], [1, 1]])}
    raw = Raw({"audio": [{"bytes": None, "path": f"/home/me/{at}.wav"} for at in range(3)]}, labels, np.arange(3))
    for about, expected in (
        ({"labels": ["rude", "loud"]}, ["rude", "none", "rude, loud"]),
        ({"outputs": {"mood": ["bad", "good"], "topic": ["day", "film"]}}, ["good, day", "bad, day", "good, film"]),
    ):
        found = [json.loads(quote) for quote in quotes(raw, {"audio": "sound"}, about)]
        assert [row["expected"] for row in found] == expected
        assert [row["input"] for row in found] == ["0.wav", "1.wav", "2.wav"]


def test_kinds_go_by_the_columns_of_the_data():
    from autopeft.tasks.text_classification import TextClassification

    assert kinds_of(TextClassification(), {"text": ["question", "answer"]}) == {"question": "texts", "answer": "texts"}


def test_a_documents_windows_are_of_its_row(tmp_path):
    """Rows of a carved split, of which some are several windows: numbers in the file are no places in the split."""
    (tmp_path / "model").mkdir()
    data = {
        "train": str(write_words(tmp_path / "train.csv", 60)),
        "tokens": "words",
        "tags": "tags",
        "validation_share": 0.3,
    }
    setup = Setup.of(
        model=bert(tmp_path / "model"), task="token_classification", data=data, folder=str(tmp_path / "run"),
        cache=str(tmp_path / "cache"), steps=2, batch_size=8, keep="all",
    )  # fmt: skip
    worker = Worker(setup)
    *_, result = worker.evaluate(Trial(0, {"method": "head", "head.lr": 1e-2}, 0))
    assert not result.error
    found = worst_rows(tmp_path / "run" / "trials" / "00000")
    assert len(worker.data.splits["validation"]) > len(worker.data.rows["validation"]), "a document has windows"
    texts = [line.rpartition(",")[0] for line in (tmp_path / "train.csv").read_text().splitlines()[1:]]
    assert {row["row"] for row in found} <= set(worker.data.rows["validation"].tolist())
    for row in found:
        assert texts[row["row"]].startswith(row["input"].removesuffix("…"))
