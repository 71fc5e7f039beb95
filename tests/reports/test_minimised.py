"""A score that is minimised (an error, a perplexity): everything stands as for its mirror image that is maximised."""

from __future__ import annotations

import json
from functools import lru_cache

import pytest

from autopeft.history import History, Record
from autopeft.objectives import with_signal
from autopeft.redact import Redactor
from autopeft.reports import figure, html, leaderboard, markdown, table
from autopeft.reports.facts import Facts
from autopeft.reports.importance import importances
from autopeft.reports.leaderboard import Entry
from autopeft.reports.plot import front_plot
from autopeft.stoppers.dominated import DominatedStopper
from autopeft.stoppers.halving import HalvingStopper
from autopeft.trackers._layout import Layout
from autopeft.trackers._progress import Progress
from autopeft.trial import Report, Trial
from tests.reports import histories as h

ERROR = "mean_absolute_error"


def mirrored(event):
    """The event with `mean_absolute_error` = 8 - 8 × accuracy in accuracy's place."""
    text = json.loads(json.dumps(event).replace('"accuracy"', f'"{ERROR}"'))

    def turn(value):
        if not isinstance(value, dict):
            return value
        return {key: 8 - 8 * inner if key == ERROR else turn(inner) for key, inner in value.items()}

    out = turn(text)
    if out["event"] == "search":
        out["dataset"]["label_names"] = []
        for objective in out["objectives"]:
            if objective["metric"] == ERROR:
                objective |= {"goal": "minimize", "reference": 8 - 8 * objective["reference"]}
    return out


@lru_cache
def both(seed: int) -> tuple[History, History]:
    events = h.confirmed(h.search(40, seed=seed))
    return History(events), History([mirrored(event) for event in events])


@pytest.mark.parametrize("seed", range(3))
def test_front_knee_baselines_and_drops(seed):
    one, other = (Facts(history, h.describe) for history in both(seed))
    assert [r.number for r in one.front] == [r.number for r in other.front]
    assert one.knee.number == other.knee.number
    assert [(b.kind, b.record and b.record.number) for b in one.baselines] == [
        (b.kind, b.record and b.record.number) for b in other.baselines
    ]
    for name, found in one.confirmed.items():
        if found.drop is not None:
            assert other.confirmed[name].drop == pytest.approx(8 * found.drop)
    spreads = [(m.method, m.n) for m in importances(one).methods]
    assert spreads == [(m.method, m.n) for m in importances(other).methods]
    assert all(m.best <= m.median <= m.worst for m in importances(other).methods)
    assert other.trivial_title == "trivial baseline", "there are no classes"


def test_leaderboard():
    one, other = (leaderboard.boards([Entry("a", history, h.describe)], by="all")[0] for history in both(0))
    assert other.goal == "minimize"
    # By the spread over seeds alone: of accuracy the test rows count, too, so that groups may differ.
    assert [row.trial for row in one.rows if row.confirmed] == [row.trial for row in other.rows if row.confirmed]
    means = [row.confirmed.interval.mean for row in other.rows if row.confirmed]
    assert means == sorted(means)
    groups = [row.group for row in other.rows if row.confirmed]
    assert groups == sorted(groups) and groups[0] == 1


@pytest.mark.parametrize("make", [DominatedStopper, HalvingStopper])
def test_stoppers(make):
    verdicts = []
    for history in both(1):
        score = history.objectives[0].metric
        stopper = make(with_signal(history.objectives, score))
        for record in history.trials:
            seen = Record(Trial(record.number, record.params, 0), record.known)
            for report in record.reports:
                seen.reports.append(Report(report.step, report.metrics))
                verdicts.append((record.number, report.step, stopper.report(seen, seen.reports[-1])))
    assert verdicts[: len(verdicts) // 2] == verdicts[len(verdicts) // 2 :]
    assert {stops for *_, stops in verdicts} == {True, False}


def test_figures_and_trackers():
    one, other = both(2)
    plots = [front_plot(Facts(history, h.describe)) for history in (one, other)]
    assert not plots[1].is_maximized
    assert [mark.number for mark in plots[0].marks if mark.is_front] == [m.number for m in plots[1].marks if m.is_front]
    low, high = plots[1].y_limits
    assert (low, high) == pytest.approx(tuple(8 - 8 * y for y in reversed(plots[0].y_limits)))
    progress = Progress()
    progress.update(other)
    assert progress.curve[-1].best == min(r.metrics[ERROR] for r in other.records if r.is_complete)
    layout = Layout(other, h.describe, Redactor())
    assert layout.charts()["orderByAsc"]
    assert layout.experiment_tags()["mlflow.experiment.primaryMetric.greaterIsBetter"] == "False"


def test_words():
    facts = Facts(both(0)[1], h.describe)
    assert "better than the frozen head" in facts.verdict
    assert " more with" in facts.verdict, "the knee has more of the error, and fewer parameters"
    for shown in (markdown.render(facts.history, h.describe), html.render(facts.history, h.describe)):
        assert "better than frozen head" in shown
        assert "majority class" not in shown
    assert table.baselines(facts).rows[0]["title"] == "trivial baseline"
    assert figure.front_data(facts)["baselines"][0]["kind"] == "trivial"


def test_the_task_says_what_its_trivial_baseline_is():
    events = [mirrored(event) for event in h.search(12)]
    events[0]["baseline_names"] = {"majority": "mean of the training values"}
    facts = Facts(History(events), h.describe)
    assert facts.baseline("trivial").title == "mean of the training values"
    assert "mean of the training values" in html.render(facts.history, h.describe)
