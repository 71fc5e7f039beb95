"""What is worked out of a history, on small ones whose answers are known."""

from __future__ import annotations

import pytest

from autopeft.errors import UsageError
from autopeft.history import History
from autopeft.redact import Redactor
from autopeft.reports import content
from autopeft.reports.facts import Facts
from tests.reports import histories as h

HEAD = {"method": "head", "head.lr": 1e-3}
LORA = {"method": "lora", "lora.rank": 8, "lora.lr": 1e-3}
FULL = {"method": "full", "full.lr": 1e-4}


def events(**changes):
    return [
        h.header(**changes),
        h.ask(0, HEAD, 1540),
        h.tell(0, {"accuracy": 0.70, "trainable_parameters": 1540}),
        h.ask(1, LORA, 20_000),
        h.tell(1, {"accuracy": 0.85, "trainable_parameters": 20_000}),
        h.ask(2, FULL, 22_700_000),
        h.tell(2, {"accuracy": 0.88, "trainable_parameters": 22_700_000}),
        h.ask(3, {**LORA, "lora.rank": 4}, 10_000),
        h.tell(3, {"accuracy": 0.99}, "STOPPED"),
        h.refuse(4, LORA, "the same as trial 1"),
        h.refuse(5, HEAD, "the same as trial 0"),
        h.ask(6, {**LORA, "lora.rank": 2}, 6000),
        h.tell(6, {}, "FAILED", "the training loss is nan at step 3 of 9"),
    ]


def test_front_knee_counts_and_refusals():
    facts = Facts(History(events()), h.describe)
    assert [record.number for record in facts.front] == [2, 1, 0]
    assert facts.knee.number == 1
    assert facts.counts == {"COMPLETE": 3, "STOPPED": 1, "FAILED": 1, "REFUSED": 2}
    assert facts.refusals == [("the same as an earlier trial", 2)]
    assert [record.number for record in facts.failures] == [6]


def test_baselines_are_those_that_are_known():
    facts = Facts(History(events(stock=[0, 1, 2])), h.describe)
    found = {baseline.kind: (baseline.score, baseline.size) for baseline in facts.baselines}
    assert found == {
        "trivial": (0.26, 0.0),
        "head": (0.70, 1540),
        "stock": (0.88, 22_700_000),
        "full": (0.88, 22_700_000),
    }
    without = Facts(History(events(baselines={"majority": {"f1": 0.1}})[:1]), h.describe)
    assert without.baselines == []


def test_the_verdict_names_best_knee_size_gain_and_label():
    verdict = Facts(History(events()), h.describe).verdict
    assert verdict.startswith("Full fine-tuning (trial 2) reaches accuracy 0.880 (validation, one seed)")
    assert "22,700,000 trainable parameters, 100 % of the model, 0.180 over the frozen head" in verdict
    assert "(trial 1), has 0.030 less with 20,000 trainable parameters, 0.088 % of the model." in verdict


def test_confirmed_numbers_take_over_with_their_label():
    confirmed = events()
    for seed, (full, lora, head) in enumerate([(0.87, 0.83, 0.69), (0.86, 0.84, 0.70), (0.88, 0.85, 0.71)]):
        confirmed += [
            h.confirm("trial 2", 2, FULL, seed, full),
            h.confirm("trial 1", 1, LORA, seed, lora),
            h.confirm("trial 0", 0, HEAD, seed, head),
        ]
    confirmed.append({**h.confirm("trial 1", 1, LORA, 9, 0.0), "status": "FAILED", "metrics": {}, "error": "nan"})
    facts = Facts(History(confirmed), h.describe)
    found = facts.confirmation(facts.history.records[1])
    assert found.interval.mean == pytest.approx(0.84)
    assert found.drop == pytest.approx(0.01)
    assert found.label == "confirmed on test, 3 of 4 seeds, mean ± 95 % CI"
    assert facts.confirm_failures == [("trial 1", "FAILED, seed 9: nan")]
    assert "accuracy 0.870 ± 0.025 (confirmed on test, 3 seeds, mean ± 95 % CI)" in facts.verdict
    assert "0.170 over the frozen head" in facts.verdict
    assert found.sample.rows == 872


def test_a_seed_confirmed_twice_counts_once():
    confirmed = [*events(), h.confirm("trial 1", 1, LORA, 5, 0.8), h.confirm("trial 1", 1, LORA, 5, 0.82)]
    facts = Facts(History(confirmed), h.describe)
    assert facts.confirmed["trial 1"].interval.n == 1
    assert facts.confirmed["trial 1"].label == "test, 1 seed"


def test_who_was_confirmed_again_is_said():
    events = h.confirmed(h.search(), seeds=2)
    name = next(event["name"] for event in events if event["event"] == "confirm")
    again = {"event": "confirming", "seeds": {name: 2}, "seconds": 400.0}
    once = Facts(History([*events, again, again]), h.describe)  # one that went on is no second look
    assert once.seen_before == []
    assert not any("more than once" in note for note in content.score_notes(once))
    twice = Facts(History([*events, again, {**again, "seeds": {name: 4}}]), h.describe)
    assert twice.seen_before == [name]
    assert f"Confirmed more than once: {name}." in " ".join(content.score_notes(twice))


def test_drop_is_positive_when_worse_also_for_minimized_scores():
    objectives = [{"metric": "error", "goal": "minimize", "reference": 0.75, "scale": "linear"}, h.OBJECTIVES[1]]
    changed = [
        h.header(objectives=objectives, baselines={"majority": {"error": 0.74}}),
        h.ask(0, HEAD, 1540),
        h.tell(0, {"error": 0.30, "trainable_parameters": 1540}),
        h.ask(1, LORA, 20_000),
        h.tell(1, {"error": 0.15, "trainable_parameters": 20_000}),
        {**h.confirm("trial 1", 1, LORA, 0, 0), "metrics": {"error": 0.18}},
    ]
    facts = Facts(History(changed), h.describe)
    assert facts.confirmed["trial 1"].drop == pytest.approx(0.03)
    assert facts.confirmed["trial 1"].sample.rows is None
    assert "0.150 better than the frozen head on validation" in facts.verdict


def test_no_header_is_a_usage_error():
    with pytest.raises(UsageError, match="search has not begun"):
        Facts(History([]), h.describe)


def test_nothing_complete_has_a_verdict():
    assert Facts(History([h.header()]), h.describe).verdict == "Nothing was asked for yet."
    failed = [h.header(), h.ask(0, HEAD), h.tell(0, {}, "FAILED", "x")]
    assert Facts(History(failed), h.describe).verdict == "No trial completed (1 FAILED), so there is no front."


def test_three_objectives_have_one_knee_for_reports_trackers_and_export(tmp_path):
    from autopeft.runs import Run
    from autopeft.trackers._layout import Layout

    objectives = [*h.OBJECTIVES, {"metric": "train_seconds", "goal": "minimize", "reference": 100.0, "scale": "linear"}]
    history = History(h.search(20, objectives=objectives))
    facts, layout = Facts(history, h.describe), Layout(history, h.describe, Redactor())
    layout.progress.update(history)
    layout.rank()
    marked = [number for number, place in layout.places.items() if place.is_selected]
    assert marked == [facts.knee.number] == [Run(tmp_path, history).pick("knee").number]
    assert facts.size_metric == "trainable_parameters"
