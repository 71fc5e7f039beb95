"""Several labels a row: how they are read, what is at fault in them, and their scores by hand."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from models import bert, write_columns

from autopeft.config import load
from autopeft.errors import ConfigError
from autopeft.tasks.multilabel_classification import MultilabelClassification, of_chances
from autopeft.tasks.multioutput_classification import MultioutputClassification
from tests.conftest import shared_path

SETS = [["b", "a"], [], ["a"], ["c"], ["a", "c"], ["b"]]


def read_sets(folder, cells, separator=";", **data):
    rows = [{"text": f"text {row}", "labels": cell} for row, cell in enumerate(cells)]
    (folder / "train.json").write_text(json.dumps(rows))
    file = str(folder / "train.json")
    data = {"train": file, "validation": file, "test": file, **data}
    return MultilabelClassification(separator).read(data, 0)


@pytest.mark.parametrize(
    ("cells", "options"),
    [
        (SETS, {}),
        ([";".join(cell) for cell in SETS], {}),
        ([" , ".join(cell) for cell in SETS], {"separator": ","}),
        ([["abc".index(label) for label in cell] for cell in SETS], {"label_names": ["a", "b", "c"]}),
    ],
    ids=["lists", "semicolons", "commas", "codes"],
)
def test_sets_of_labels(tmp_path, cells, options):
    dataset = read_sets(tmp_path, cells, **options)
    assert dataset.about == {"labels": ["a", "b", "c"], "n_outputs": 3}
    expected = [[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 1], [1, 0, 1], [0, 1, 0]]
    assert dataset.splits["train"].targets["labels"].tolist() == expected
    assert dataset.splits["train"].strata.tolist() == [1, -1, 0, 2, 2, 1], "the rarest label of each row"


def test_codes_without_names_are_labels_in_order_of_value(tmp_path):
    assert read_sets(tmp_path, [[10], [9, 2], [2]]).about["labels"] == ["2", "9", "10"]


def test_yes_and_no_columns(tmp_path):
    frame = pd.DataFrame({"text": ["x", "y", "z"], "rude": [1, 0, 0], "loud": ["yes", "no", "YES"]})
    frame.to_csv(tmp_path / "train.csv", index=False)
    file = str(tmp_path / "train.csv")
    data = {"train": file, "validation": file, "test": file, "labels": ["rude", "loud"]}
    dataset = MultilabelClassification().read(data, 0)
    assert dataset.about["labels"] == ["rude", "loud"]
    assert dataset.splits["train"].targets["labels"].tolist() == [[1, 1], [0, 0], [0, 1]]
    frame.assign(rude=[1, 2, None]).to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(ConfigError, match=r"'2\.0' in row 1 of 'rude'; expected 1 or 0, yes or no"):
        MultilabelClassification().read(data, 0)
    frame.assign(rude=[1, 0, None]).to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(ConfigError, match="1 row without 'rude': row 2"):
        MultilabelClassification().read(data, 0)


def test_faults_of_sets(tmp_path):
    with pytest.raises(ConfigError, match="two labels or more; train has none"):
        read_sets(tmp_path, [[], [], []])
    with pytest.raises(ConfigError, match=r"labels that label_names has not: 'c' \(row 3\)"):
        read_sets(tmp_path, SETS, label_names=["a", "b"])


def test_scores_by_hand():
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]])
    chances = np.array([[0.9, 0.6, 0.1], [0.8, 0.4, 0.2], [0.5, 0.7, 0.3], [0.2, 0.1, 0.4]])
    found = of_chances(chances, labels, ["a", "b", "c"])
    assert found.metrics["exact_match"] == 0.25
    assert found.metrics["micro_f1"] == pytest.approx(2 * 3 / (4 + 5))
    assert found.metrics["macro_f1"] == pytest.approx((2 * 2 / 5 + 2 * 1 / 4 + 0) / 3)
    # Precision at each true row, from the likeliest on: a 1, 1; b 1, then 2 of 3. No row has c.
    assert found.metrics["mean_average_precision"] == pytest.approx((1 + (1 + 2 / 3) / 2) / 2)
    assert found.detail == {
        "of": "label", "names": ["a", "b", "c"], "rows": [2, 2, 0], "predicted": [3, 2, 0], "correct": [2, 1, 0],
    }  # fmt: skip


def test_a_label_is_a_matter_of_its_own():
    """The loss is that of independent logistic regressions; a probability of one half is a yes."""
    task = MultilabelClassification()
    outputs, labels = torch.tensor([[0.0, 2.0], [-1.0, 3.0]]), torch.tensor([[1, 0], [0, 1]])
    expected = [np.mean([np.log(2), np.log1p(np.exp(2))]), np.mean([np.log1p(np.exp(-1)), np.log1p(np.exp(-3))])]
    assert task.loss(outputs, {"labels": labels}).numpy() == pytest.approx(np.array(expected))
    answers = task.answers({"logits": outputs.numpy()}, {"labels": ["a", "b"]})
    assert answers["labels"] == ["a;b", "b"]
    assert answers["p(a)"] == pytest.approx([0.5, 1 / (1 + np.e)])


def test_trivial_knows_the_shares_of_train():
    train = {"labels": np.array([[1, 0], [1, 0], [1, 1], [0, 0]])}
    scored = {"labels": np.array([[1, 0], [0, 1]])}
    found = MultilabelClassification().trivial(train, scored, {"labels": ["a", "b"]}, dict)
    assert found.metrics["micro_f1"] == pytest.approx(2 * 1 / (2 + 2)), "always a, never b"
    assert found.metrics["mean_average_precision"] == 0.5
    chances = np.array([4, 2]) / 6
    assert found.metrics["loss"] == pytest.approx(
        -np.log([chances[0], 1 - chances[1], 1 - chances[0], chances[1]]).mean()
    )


def columns_of(folder):
    data = {"train": str(write_columns(folder / "train.csv", 40)), "labels": ["mood", "topic"], "test_share": 0.2}
    return MultioutputClassification().read(data, 0)


def test_each_column_has_a_slice_of_the_outputs(tmp_path):
    dataset, task = columns_of(tmp_path), MultioutputClassification()
    assert dataset.about == {
        "outputs": {"mood": ["bad", "good"], "topic": ["day", "film", "night", "song"]}, "n_outputs": 6,
    }  # fmt: skip
    logits = np.array([[0, 1, 9, 0, 0, 0], [3, 0, 0, 0, 0, 5]], dtype=np.float32)
    answers = task.answers({"logits": logits}, dataset.about)
    assert (answers["mood"], answers["topic"]) == (["good", "bad"], ["day", "song"])
    assert answers["p(mood=good)"][0] + answers["p(mood=bad)"][0] == pytest.approx(1)
    assert sum(answers[f"p(topic={name})"][1] for name in ("day", "film", "night", "song")) == pytest.approx(1)
    found = task.score({"logits": logits}, {"labels": np.array([[1, 0], [1, 3]])}, dataset.about)
    assert found.metrics == {"mean_accuracy": 0.75, "exact_match": 0.5, "mean_macro_f1": pytest.approx((1 / 3 + 1) / 2)}
    assert found.detail["columns"]["mood"]["accuracy"] == 0.5
    assert found.detail["names"][found.detail["rows"].index(2)] == "mood=good"


def test_the_loss_is_the_mean_of_the_columns(tmp_path):
    from torch.nn.functional import cross_entropy

    from autopeft.tasks import Source
    from autopeft.training.batches import collate_targets

    (tmp_path / "model").mkdir()
    dataset, task = columns_of(tmp_path), MultioutputClassification()
    split = task.encoder(Source(bert(tmp_path / "model"), data={}), dataset.about)(dataset.splits["train"])
    targets = collate_targets(split, np.arange(5))
    outputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    mood, topic = targets["labels"].T
    expected = (cross_entropy(outputs[:, :2], mood) + cross_entropy(outputs[:, 2:], topic)) / 2
    assert float(task.loss(outputs, targets).mean()) == pytest.approx(float(expected))


def test_trec_has_a_coarse_and_a_fine_label():
    folder = shared_path("data", "trec")
    data = {split: str(folder / f"{split}.parquet") for split in ("train", "validation", "test")}
    dataset = MultioutputClassification().read({**data, "labels": ["label", "fine_label"]}, 0)
    assert [len(names) for names in dataset.about["outputs"].values()] == [6, 50]
    assert dataset.about["outputs"]["label"][:2] == ["ABBR", "DESC"], "names that came with the data, for its codes"
    train = {"labels": dataset.splits["train"].targets["labels"]}
    found = MultioutputClassification().trivial(
        train, {"labels": dataset.splits["test"].targets["labels"]}, dataset.about, dict
    )
    assert found.detail["columns"]["label"]["accuracy"] == pytest.approx(0.188), "as the data's own README says"


def test_the_config_takes_several_columns(tmp_path):
    (tmp_path / "model").mkdir()
    config = {"model": bert(tmp_path / "model"), "task": "multioutput_classification", "space": "small",
              "data": {"train": str(write_columns(tmp_path / "train.csv", 40)), "labels": ["mood", "topic"]},
              "budget": {"trials": 1}}  # fmt: skip
    assert load(config).data.labels == ["mood", "topic"]
    for wrong, expected in [(["mood", "topics"], "no column 'topics'"), (3, "or a list of names, got 3")]:
        config["data"]["labels"] = wrong
        with pytest.raises(ConfigError, match=expected):
            load(config)
    config["data"]["labels"] = ["mood"]
    with pytest.raises(ConfigError, match="expected two columns or more"):
        MultioutputClassification().read(config["data"], 0)


def test_faulty_rows_of_several_labels_may_be_left_out(tmp_path):
    rows = [{"text": f"t{at}", "topic": "ab"[at % 2], "mood": "xyz"[at % 3]} for at in range(60)]
    rows[4]["topic"] = None
    (tmp_path / "train.json").write_text(json.dumps(rows))
    (tmp_path / "test.json").write_text(json.dumps([*rows[:3], {"text": "new", "topic": "c", "mood": "x"}]))
    files = {split: str(tmp_path / f"{split}.json") for split in ("train", "test")}
    data = {**files, "text": "text", "labels": ["topic", "mood"]}
    with pytest.raises(ConfigError, match=r"'topic': train has 1 row without a label: row 4"):
        MultioutputClassification().read(data, 0)
    found = MultioutputClassification().read({**data, "on_fault": "skip"}, 0)
    assert len(found.splits["test"]) == 3
    assert sum(map(len, found.splits.values())) == 59 + 3
