"""Numbers: correlations against scipy, a constant's by definition, errors and answers in the data's units."""

from __future__ import annotations

import json

import numpy as np
import pytest
from models import bert, write_numbers
from scipy import stats

from autopeft.errors import ConfigError
from autopeft.tasks import Source
from autopeft.tasks.regression import Regression, of_numbers

ABOUT = {"n_outputs": 1, "mean": 10.0, "deviation": 4.0}


def test_correlations_are_those_of_scipy():
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.integers(0, 6, 30).astype(float)  # with ties
        predicted = np.round(values + rng.normal(0, 3, 30), 1)
        found = of_numbers(predicted, values).metrics
        assert found["pearson"] == pytest.approx(stats.pearsonr(predicted, values).statistic)
        assert found["spearman"] == pytest.approx(stats.spearmanr(predicted, values).statistic)
        assert found["mean_absolute_error"] == pytest.approx(np.abs(predicted - values).mean())
        assert found["root_mean_squared_error"] == pytest.approx(np.sqrt(((predicted - values) ** 2).mean()))


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_a_constant_correlates_with_nothing(noise):
    predicted = 3.0 + noise * np.array([0, 1, 2, 3])
    found = of_numbers(predicted, np.array([1.0, 2.0, 3.0, 4.0])).metrics
    assert (found["pearson"], found["spearman"]) == (0.0, 0.0)
    assert found["mean_absolute_error"] == pytest.approx(1.0)


def test_scores_and_answers_are_in_the_units_of_the_data():
    task, kept = Regression(), {"value": np.array([0.0, 1.0], dtype=np.float32)}
    assert task.answers(kept, ABOUT)["value"].tolist() == [10.0, 14.0]
    assert task.score(kept, {"value": np.array([1.0, 1.0])}, ABOUT).metrics["mean_absolute_error"] == 2.0


def test_trivial_is_the_mean_of_the_training_split():
    train, scored = {"value": np.array([0.0, 1.0])}, {"value": np.array([0.5, 1.5])}
    found = Regression().trivial(train, scored, ABOUT, dict).metrics
    assert found == {
        "pearson": 0.0, "spearman": 0.0, "mean_absolute_error": 2.0, "root_mean_squared_error": pytest.approx(8**0.5),
        "loss": 0.5,
    }  # fmt: skip


def test_the_model_learns_deviations_from_the_mean(tmp_path):
    (tmp_path / "model").mkdir()
    data = {"train": str(write_numbers(tmp_path / "train.csv", 60)), "label": "score", "test_share": 0.2}
    dataset = Regression().read(data, 0)
    encode = Regression().encoder(Source(bert(tmp_path / "model"), data=data), dataset.about)
    values = encode(dataset.splits["train"]).targets["value"]  # of these rows alone: the others are not looked at
    assert (values.mean(), values.std()) == (pytest.approx(0.0, abs=1e-9), pytest.approx(1.0))
    assert dataset.about["mean"] == dataset.splits["train"].targets["value"].mean()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1.0, "high", 2.0], "no finite number: 'high' in row 1"),
        ([1.0, None, 2.0], "1 row without a number: row 1"),
        ([2.0, 2.0, 2.0], "is 2 in each row of train"),
    ],
)
def test_faults_of_data(tmp_path, labels, expected):
    rows = [{"text": "a", "label": label} for label in labels]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ConfigError, match=expected):
        Regression().read({"train": str(tmp_path / "train.jsonl"), "test_share": 0.3}, 0)
