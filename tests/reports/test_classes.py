"""The report by class against scikit-learn's own, and where it is shown."""

import json

import numpy as np
import pytest
from sklearn.metrics import classification_report

from autopeft.history import History
from autopeft.reports import html, markdown
from autopeft.reports.classes import class_scores, class_table, class_tables
from autopeft.reports.facts import Facts
from autopeft.tasks._classification import Classification
from autopeft.trial import Result, Status, Trial
from tests.reports.histories import ask, confirm, header, tell

LABELS = ["no", "yes", "maybe", "other"]


def scores_of(logits, labels):
    counts = Classification().score({"logits": logits}, {"label": labels}, {"n_outputs": logits.shape[1]}).detail
    return class_scores(*(np.array(counts[name]) for name in ("rows", "predicted", "correct")))


@pytest.mark.parametrize(("seed", "n_labels"), [(0, 2), (1, 4), (2, 30), (3, 151)])
def test_against_scikit_learn(seed, n_labels):
    """30 and more labels of 60 rows: some have no row, some are never predicted."""
    rng = np.random.default_rng(seed)
    labels, logits = rng.integers(0, n_labels, 60), rng.normal(size=(60, n_labels))
    names = list(map(str, range(n_labels)))
    theirs = classification_report(
        labels, logits.argmax(axis=1), labels=range(n_labels), target_names=names, zero_division=0, output_dict=True
    )
    occur = classification_report(labels, logits.argmax(axis=1), zero_division=0, output_dict=True)
    theirs |= {average: occur[average] for average in ("macro avg", "weighted avg")}  # of the labels that occur
    expected = [
        [theirs[name][key] for key in ("precision", "recall", "f1-score")]
        for name in (*names, "macro avg", "weighted avg")
    ]
    np.testing.assert_allclose(scores_of(logits, labels), expected, atol=1e-12)


def history(with_counts=True, confirmed=0, labels=4):
    head = header()
    names = LABELS[:labels] if labels <= 4 else [f"class {i}" for i in range(labels)]
    head["dataset"] |= {"label_names": names, "label_rows": {"validation": [4] * labels, "test": [8] * labels}}
    counts = {"by_class": {"predicted": [4] * labels, "correct": [index % 5 for index in range(labels)]}}
    told = tell(0, {"accuracy": 0.5, "trainable_parameters": 1000.0}) | (counts if with_counts else {})
    events = [head, ask(0, {"method": "head", "head.lr": 1e-3}, 1000), told]
    for seed in range(confirmed):
        given = {"by_class": {"predicted": [8] * labels, "correct": [2 * seed] * labels}}
        events.append(confirm("trial 0", 0, {"method": "head"}, seed, 0.4) | given)
    return History(json.loads(json.dumps(events)))


def facts(**given):
    return Facts(history(**given), lambda params: params["method"])


def test_validation_and_the_mean_of_the_seeds_on_test():
    found = facts(confirmed=3)
    table = class_table(found, found.front[0], "best")
    assert table.title == "By class: best, trial 0"
    yes = next(row for row in table.rows if row["class"] == "yes")
    assert (yes["validation_rows"], yes["validation_precision"], yes["validation_f1"]) == (4, 0.25, 0.25)
    assert (yes["test_rows"], yes["test_recall"]) == (8, pytest.approx((0 + 2 + 4) / 3 / 8))
    assert table.note == "Validation: one seed. Test: the mean of 3 fresh seeds."


def test_without_counts_nothing_is_said():
    assert class_tables(facts(with_counts=False)) == []
    assert "By class" not in markdown.render(history(with_counts=False), str)


def test_reports_show_it_once_where_best_is_the_knee():
    assert markdown.render(history(), str).count("By class: best and knee, trial 0") == 1
    assert html.render(history(), str).count("By class: best and knee, trial 0") == 1


def test_of_many_classes_a_text_has_those_with_the_lowest_f1():
    (whole,) = class_tables(facts(labels=40))
    (short,) = class_tables(facts(labels=40), most=8)
    assert len(whole) == 42
    assert [row["class"] for row in short.rows] == [
        *(f"class {index}" for index in range(0, 40, 5)), "macro average", "weighted average"
    ]  # fmt: skip
    assert "Of 40 classes, the 8 with the lowest F1 on validation." in short.note


def test_counts_travel_as_json():
    result = Result(Trial(3, {"method": "head"}, 7), Status.COMPLETE, {"accuracy": 0.5}, detail={"correct": [1, 2]})
    assert Result.from_json(json.loads(json.dumps(result.to_json()))) == result
