"""What a trial gets wrong: the matrix of few classes, the pairs of many, the rows with the largest loss."""

import json

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from autopeft.history import History
from autopeft.reports import html, markdown
from autopeft.reports.facts import Facts
from autopeft.reports.mistakes import MOST_PAIRS, confusions, mistake_tables, worst_rows
from autopeft.tasks._classification import Classification
from tests.reports.histories import ask, header, tell


def history(n_labels, seed=0):
    """One trial, with the counts of 400 random predictions."""
    rng = np.random.default_rng(seed)
    labels, logits = rng.integers(0, n_labels, 400), rng.normal(size=(400, n_labels))
    detail = Classification().score({"logits": logits}, {"label": labels}, {"n_outputs": n_labels}).detail
    head = header(schema=2)
    head["dataset"]["label_names"] = [f"<{index}>" for index in range(n_labels)]
    told = tell(0, {"accuracy": 0.5, "trainable_parameters": 1000.0}) | {"detail": detail}
    events = [head, ask(0, {"method": "head", "head.lr": 1e-3}, 1000), told]
    return History(json.loads(json.dumps(events))), labels, logits.argmax(axis=1)


def facts(given):
    return Facts(given, lambda params: params["method"])


@pytest.mark.parametrize("n_labels", [2, 4, 12])
def test_few_classes_have_a_whole_matrix_that_is_scikit_learn_s(n_labels):
    given, labels, predicted = history(n_labels)
    table = confusions(facts(given), given.records[0], "best, trial 0")
    found = [[row[str(at)] for at in range(n_labels)] for row in table.rows]
    np.testing.assert_array_equal(found, confusion_matrix(labels, predicted, labels=range(n_labels)))


def test_many_classes_have_their_most_confused_pairs():
    given, labels, predicted = history(151)
    table = confusions(facts(given), given.records[0], "best, trial 0")
    matrix = confusion_matrix(labels, predicted, labels=range(151))
    np.fill_diagonal(matrix, 0)
    assert [row["count"] for row in table.rows] == sorted(matrix.ravel(), reverse=True)[:MOST_PAIRS]
    for row in table.rows:
        true, other = int(row["true"][1:-1]), int(row["predicted"][1:-1])
        assert row["count"] == matrix[true, other]
        assert row["share"] == pytest.approx(row["count"] / (labels == true).sum())


ROWS = [{"row": 7, "input": "<script>a | b", "expected": "<1>", "predicted": "<0>", "loss": 3.25}]


def test_both_reports_show_them_and_escape_what_came_from_the_data():
    given, *_ = history(3)
    page = html.render(given, lambda params: "head", worst={0: ROWS})
    assert "What it gets wrong" in page and "&lt;script&gt;a | b" in page and "<script>a" not in page
    text = markdown.render(given, lambda params: "head", worst={0: ROWS})
    assert "## Confused: best and knee, trial 0" in text
    assert "## Most wrong: best and knee, trial 0" in text
    assert "3.25" in text and "<script>" not in text


def test_nothing_is_shown_of_an_older_ledger_or_a_task_without_classes():
    given, *_ = history(3)
    del given.records[0].detail["confused"]
    assert mistake_tables(facts(given), {}) == []
    assert [table.title for table in mistake_tables(facts(given), {0: ROWS})] == ["Most wrong: best and knee, trial 0"]
    assert len(worst_rows([], "best")) == 0
