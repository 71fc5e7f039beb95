"""Ask, report, tell; and that any prefix of a ledger resumes."""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft import ahead, ledger, plugins, search
from autopeft.errors import EnvironmentFault, Refused, UsageError
from autopeft.history import History
from autopeft.ledger import NAME, Ledger
from autopeft.search import Ending, Search
from autopeft.space import Choice, Dimension, Float, Int, Space
from autopeft.testing import example_sizes
from autopeft.trial import Report, Result, Status, Trial, derive_seed
from tests.executors.conversations import (
    HEADER,
    OBJECTIVES,
    SPACE,
    Climber,
    Rung3,
    Toy,
    check,
    events,
    front,
    lines,
    make_search,
    outcome,
)
from tests.test_ledger import no_files_beyond


def finish(conversation: Search, make) -> None:
    """Runs a search to its end, one trial after another: the shortest executor."""
    evaluate = make(lambda: False)
    while (trial := conversation.ask()) is not None:
        for event in evaluate(trial):
            if isinstance(event, Result):
                conversation.tell(event)
                break
            if conversation.report(trial, event):
                conversation.tell(Result(trial, Status.STOPPED, event.metrics))
                break
    conversation.ledger.close()


def complete(conversation: Search, accuracy: float = 0.5):
    trial = conversation.ask()
    conversation.tell(Result(trial, Status.COMPLETE, {"accuracy": accuracy}))
    return trial


# ── ask ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_asks_for_the_stock_defaults_first_and_then_the_sampler(tmp_path):
    asked = []

    class Spy(Climber):
        def ask(self, number, seed):
            asked.append((number, seed))
            return super().ask(number, seed)

    conversation = make_search(tmp_path, trials=4, sampler=Spy(), seed=5)
    trials = [complete(conversation) for _ in range(4)]
    assert [trial.params for trial in trials[:2]] == SPACE.defaults()
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert [trial.seed for trial in trials] == [derive_seed(5, number) for number in range(4)]
    assert asked == [(number, derive_seed(5, number, "ask")) for number in (2, 3)]


def test_ends_with_its_budget_of_trials_and_says_so(tmp_path):
    conversation = make_search(tmp_path, trials=2)
    complete(conversation), complete(conversation)
    assert conversation.ask() is None
    assert conversation.why_ended == "the budget of 2 trials is spent"
    assert conversation.ending is Ending.TRIALS


def test_ends_with_its_budget_of_time_while_trials_run_on(tmp_path):
    conversation = make_search(tmp_path, trials=None, most_seconds=3600.0)
    trial = conversation.ask()
    conversation.ledger._offset += 3600
    assert conversation.ask() is None
    assert conversation.why_ended == "the budget of 1 hours is spent"
    assert conversation.ending is Ending.TIME
    conversation.tell(Result(trial, Status.COMPLETE, {"accuracy": 0.5}))
    assert conversation.running == 0


def test_search_time_goes_on_counting_after_a_resume(tmp_path):
    conversation = make_search(tmp_path, trials=None)
    conversation.ledger._offset += 3599.5
    complete(conversation)
    conversation.ledger.close()
    conversation = make_search(tmp_path, trials=None, most_seconds=3599.0)
    assert conversation.ask() is None


def test_ends_when_the_sampler_has_no_more(tmp_path):
    class Empty(Climber):
        def ask(self, number, seed):
            return None

    conversation = make_search(tmp_path, trials=9, sampler=Empty())
    complete(conversation), complete(conversation)
    assert conversation.ask() is None
    assert conversation.why_ended == "the sampler has no more configurations"


# ── ahead ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Slow(Climber):
    """Thinks for longer than a search takes as quick."""

    def ask(self, number, seed):
        time.sleep(1.2 * ahead.SLOW_SECONDS)
        return super().ask(number, seed)


def kinds(folder):
    return [event["event"] for event in events(folder)]


def test_a_slow_sampler_proposes_ahead_and_the_first_proposed_goes_first(tmp_path):
    conversation = make_search(tmp_path, trials=50, sampler=Slow())
    for _ in range(3):
        complete(conversation)
    for _ in range(5):
        conversation.prepare(slots=3)
    suggested = [event["params"] for event in events(tmp_path) if event["event"] == "suggest"]
    assert len(suggested) == 3, "as many as there are slots, at most"
    assert [complete(conversation).params for _ in range(3)] == suggested
    complete(conversation)
    assert kinds(tmp_path).count("suggest") == 3, "then it is asked again"


def test_a_quick_sampler_is_asked_when_a_slot_is_free(tmp_path):
    conversation = make_search(tmp_path, trials=50)
    for _ in range(3):
        complete(conversation)
    conversation.prepare(slots=3)
    assert "suggest" not in kinds(tmp_path)


def test_the_stock_defaults_are_not_proposed_ahead(tmp_path):
    conversation = make_search(tmp_path, trials=3, sampler=Slow())
    conversation.prepare(slots=8)
    complete(conversation)
    conversation.prepare(slots=8)
    assert "suggest" not in kinds(tmp_path)


def timed(conversation, seconds):
    """One trial that says that it took so long."""
    trial = conversation.ask()
    conversation.tell(Result(trial, Status.COMPLETE, {"accuracy": 0.5, "train_seconds": seconds(trial.params)}))
    return trial


def by_rank(params):
    return 1.0 + params.get("lora.rank", 0)


def test_the_last_trials_of_a_budget_go_longest_first(tmp_path):
    conversation = make_search(tmp_path, trials=24)
    for _ in range(20):
        timed(conversation, by_rank)
    for _ in range(9):
        conversation.prepare(slots=4)
    ready = [event["params"] for event in events(tmp_path) if event["event"] == "suggest"]
    assert len(ready) == 4, "no more than the budget has left"
    forecasts = [conversation.forecast.seconds(params, check(params)) for params in ready]
    asked = [timed(conversation, by_rank).params for _ in range(4)]
    assert asked[0] == ready[forecasts.index(max(forecasts))]
    assert sorted(map(str, asked)) == sorted(map(str, ready))
    assert conversation.ask() is None


@pytest.mark.parametrize("left", [30.0, 3.0, 0.5])
def test_near_the_end_of_a_budget_of_time_what_still_ends_in_time_goes_first(tmp_path, left):
    conversation = make_search(tmp_path, trials=None, most_seconds=3600.0)
    for _ in range(30):
        timed(conversation, by_rank)
    conversation.ledger._offset += 3600.0 - left - conversation.ledger.seconds
    asked = conversation.ask().params
    ready = [event["params"] for event in events(tmp_path) if event["event"] == "suggest"]
    assert asked in ready
    assert len(ready) <= ahead.CHOICES
    forecasts = {str(params): conversation.forecast.seconds(params, check(params)) for params in ready}
    in_time = [seconds for seconds in forecasts.values() if seconds <= left]
    assert forecasts[str(asked)] == (max(in_time) if in_time else min(forecasts.values()))
    assert bool(in_time) == (left > 1), "the case is what it says"


def test_what_was_proposed_ahead_is_asked_for_after_a_resume(tmp_path):
    conversation = make_search(tmp_path, trials=50, sampler=Slow())
    for _ in range(3):
        complete(conversation)
    for _ in range(3):
        conversation.prepare(slots=3)
    suggested = [event["params"] for event in events(tmp_path) if event["event"] == "suggest"]
    complete(conversation)
    conversation.ledger.close()
    resumed = make_search(tmp_path, trials=50, sampler=Slow())
    assert [complete(resumed).params for _ in range(2)] == suggested[1:]


def test_a_sampler_may_ask_for_sizes_and_refused_ones_have_none(tmp_path):
    class Smallest(Climber):
        """The smallest of ten draws that may run."""

        def __init__(self, sizes):
            super().__init__()
            self.sizes = sizes

        def ask(self, number, seed):
            draws = [self.space.draw(np.random.default_rng((seed, index))) for index in range(10)]
            counted = [(self.sizes(params), params) for params in draws]
            return min((known["trainable_parameters"], str(p), p) for known, p in counted if known is not None)[-1]

    def not_the_head(params):
        if params["method"] == "head":
            raise Refused("not here")
        return check(params)

    sampler = Smallest(search.sizes_by(not_the_head))
    conversation = make_search(tmp_path, trials=6, first=(), sampler=sampler, check=not_the_head)
    ranks = [complete(conversation).params["lora.rank"] for _ in range(6)]
    assert max(ranks) <= 8, "of ten draws from 1 to 64"
    assert len(conversation.history.records) == 6, "none of them was refused"


# ── lost ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def lose(conversation: Search):
    trial = conversation.ask()
    conversation.tell(Result(trial, Status.FAILED, error="its worker died", fault="machine"))
    return trial


def test_what_the_machine_cost_runs_again_once_after_a_resume(tmp_path):
    conversation = make_search(tmp_path, trials=4)
    complete(conversation)
    lost = lose(conversation)
    complete(conversation), complete(conversation)
    assert conversation.ask() is None, "not in the session that lost it: its machine may be the same"
    conversation.ledger.close()
    for status in ("lost", "failed"):
        resumed = make_search(tmp_path, trials=4)
        again = resumed.ask()
        if status == "failed":
            assert again is None, "lost twice it has failed"
            break
        assert (again.number, dict(again.params), again.seed) == (lost.number, dict(lost.params), lost.seed)
        assert resumed.running == 1
        resumed.tell(Result(again, Status.FAILED, error="its worker died", fault="machine"))
        assert resumed.ask() is None
        resumed.ledger.close()
    assert resumed.history.counts() == {"COMPLETE": 3, "FAILED": 1}


def test_a_trial_that_was_lost_and_completes_is_told_once(tmp_path):
    conversation = make_search(tmp_path, trials=3)
    complete(conversation), lose(conversation), complete(conversation)
    conversation.ledger.close()
    resumed = make_search(tmp_path, trials=3)
    resumed.history.front()
    complete(resumed, accuracy=0.99)
    replayed = History.read(tmp_path / NAME)
    assert resumed.history.told == replayed.told == [0, 2, 1]
    assert resumed.history.records == replayed.records
    assert [record.number for record in resumed.history.front()] == [r.number for r in replayed.front()]
    assert 1 in [record.number for record in resumed.history.front()]


def test_the_reports_of_a_lost_trial_are_dropped_for_its_rerun(tmp_path):
    heard = []

    class Ear(Rung3):
        def report(self, record, report):
            heard.append((record.number, report.metrics["accuracy"]))
            return False

    conversation = make_search(tmp_path, trials=2, stopper=Ear())
    complete(conversation)
    trial = conversation.ask()
    conversation.report(trial, Report(3, {"accuracy": 0.3}))
    conversation.tell(Result(trial, Status.FAILED, error="its worker died", fault="machine"))
    conversation.ledger.close()
    heard.clear()
    resumed = make_search(tmp_path, trials=2, stopper=Ear())
    again = resumed.ask()
    resumed.report(again, Report(3, {"accuracy": 0.4}))
    resumed.tell(Result(again, Status.COMPLETE, {"accuracy": 0.5}))
    resumed.ledger.close()
    live = list(heard)
    heard.clear()
    make_search(tmp_path, trials=2, stopper=Ear())
    assert heard == live == [(1, 0.4)]


def test_a_trial_that_diverged_does_not_run_again(tmp_path):
    conversation = make_search(tmp_path, trials=2)
    complete(conversation)
    conversation.tell(Result(conversation.ask(), Status.FAILED, error="the training loss is nan"))
    conversation.ledger.close()
    assert make_search(tmp_path, trials=2).ask() is None


# ── refuse ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Listed(Climber):
    """Proposes a list, and keeps what it is told."""

    def __init__(self, params):
        super().__init__()
        self.params = list(params)

    def ask(self, number, seed):
        return self.params.pop(0)


HEAD = {"method": "head", "head.lr": 1e-3}


def test_a_refused_configuration_takes_a_number_and_no_budget(tmp_path):
    def dear(params):
        if params.get("lora.rank", 0) > 32:
            raise Refused("over the budget of 3,210 trainable parameters")
        return check(params)

    sampler = Listed(
        [
            HEAD,
            HEAD,  # a duplicate
            {"method": "lora", "lora.rank": 64, "head.lr": 1e-3},  # over budget
            {"method": "head", "head.lr": 5.0},  # not in the space
            {"method": "head", "head.lr": 2e-3},
        ]
    )
    conversation = make_search(tmp_path, trials=2, sampler=sampler, first=(), check=dear)
    assert complete(conversation).number == 0
    assert complete(conversation).number == 4
    assert conversation.ask() is None
    reasons = [record.refusal for record in conversation.history.records]
    assert reasons[0] == reasons[4] == ""
    assert reasons[1] == "the same as trial 0"
    assert reasons[2] == "over the budget of 3,210 trainable parameters"
    assert reasons[3].startswith("not in the space: head.lr")
    assert [record.number for record in sampler.told] == [0, 2, 3, 4], "it hears of the refused, not of twins"
    assert conversation.history.counts() == {"COMPLETE": 2, "REFUSED": 3}


def test_a_space_that_is_refused_whole_is_wrong_input(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda fd: None)

    def refuse(params):
        raise Refused("no room")

    with pytest.raises(UsageError, match=r"all 30 configurations of the space were refused, the last .*: no room"):
        begin_finite(tmp_path, check=refuse).ask()


def test_one_is_one_learning_rate_however_it_is_written(tmp_path):
    space = Space({"method": Dimension(Choice(("head",)), "head"), "head.lr": Dimension(Float(0.5, 2.0), 1.0)})
    proposals = [{"method": "head", "head.lr": value} for value in (1, 1.0, 1.5)]
    conversation = make_search(tmp_path, trials=2, space=space, first=(), sampler=Listed(proposals))
    complete(conversation), complete(conversation)
    assert [record.refusal for record in conversation.history.records] == ["", "the same as trial 0", ""]


def test_the_same_params_in_another_order_are_a_duplicate_also_after_a_resume(tmp_path):
    conversation = make_search(tmp_path, trials=3, sampler=Listed([HEAD]), first=())
    complete(conversation)
    conversation.ledger.close()
    again = [dict(reversed(HEAD.items())), {"method": "head", "head.lr": 2e-3}]
    conversation = make_search(tmp_path, trials=3, sampler=Listed(again), first=())
    assert conversation.ask().number == 2
    assert conversation.history.records[1].refusal == "the same as trial 0"


def test_a_thousand_refusals_in_a_row_end_the_search_and_the_next_session_too(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda fd: None)

    def refuse(params):
        raise Refused("no room")

    conversation = make_search(tmp_path, check=refuse)
    with pytest.raises(UsageError, match=r"1,000 configurations in a row were refused, the last .*: no room"):
        conversation.ask()
    assert len(conversation.history.records) == search.MOST_REFUSALS_IN_A_ROW == 1000
    conversation.ledger.close()
    conversation = make_search(tmp_path, check=refuse)
    with pytest.raises(UsageError, match="1,001 configurations in a row"):
        conversation.ask()


def test_refusals_are_counted_in_a_row_and_end_a_search_that_has_trials(tmp_path, monkeypatch):
    """An end, no error: trials may be running, and the front of those that were told is worth its money."""
    monkeypatch.setattr(search, "MOST_REFUSALS_IN_A_ROW", 3)
    other = [{"method": "head", "head.lr": lr} for lr in (2e-3, 3e-3, 4e-3)]
    proposals = [HEAD, HEAD, HEAD, other[0], HEAD, HEAD, other[1], HEAD, HEAD, HEAD]
    conversation = make_search(tmp_path, sampler=Listed(proposals), first=())
    for _ in range(3):
        complete(conversation)
    assert conversation.ask() is None
    assert conversation.why_ended == (
        "3 configurations in a row were refused, the last one because: the same as trial 0"
    )
    assert conversation.ask() is None, "and is not asked again"


FINITE = Space(
    {
        "method": Dimension(Choice(("head", "lora")), "head"),
        "lora.rank": Dimension(Choice((1, 2, 4)), 2),
        "lora.dora": Dimension(Choice((False, True)), False),
        "lora.magnitude": Dimension(Int(1, 2), 1, when={"lora.dora": (True,)}),
        "head.lr": Dimension(Choice((1, 1.0, True)), 1),
    }
)  # (1 + 3 × (1 + 2)) × 3: thirty


def no_rank_4(params):
    if params.get("lora.rank") == 4:
        raise Refused("over the budget")
    return check(params)


def begin_finite(folder, sampler="random", check=no_rank_4):
    """A search of all of FINITE: its budget is larger than the space."""
    made = plugins.load("samplers", sampler)(FINITE, OBJECTIVES, example_sizes)
    return make_search(folder, 99, sampler=made, space=FINITE, first=FINITE.defaults(), check=check)


def complete_all(conversation):
    """Trains until the search is over; the params of each trial, as text."""
    trained = []
    while (trial := conversation.ask()) is not None:
        conversation.tell(Result(trial, Status.COMPLETE, {"accuracy": 0.5}))
        trained.append(json.dumps(trial.params, sort_keys=True))
    conversation.ledger.close()
    return trained


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_a_space_that_was_tried_whole_ends_the_search(tmp_path, monkeypatch, sampler):
    monkeypatch.setattr("os.fsync", lambda fd: None)
    conversation = begin_finite(tmp_path, sampler)
    trained = complete_all(conversation)
    assert conversation.why_ended == "all 30 configurations of the space were tried"
    assert len(trained) == len(set(trained)) == 21
    if sampler != "random":
        assert len(conversation.history.records) < 60, "what was told is not proposed again and again"
    again = begin_finite(tmp_path, sampler)
    assert again.ask() is None
    assert again.why_ended == conversation.why_ended
    assert len(again.history.records) == len(conversation.history.records) + 1


def test_what_was_refused_for_a_budget_that_has_grown_since_is_untried(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda fd: None)
    complete_all(begin_finite(tmp_path))
    larger = begin_finite(tmp_path, check=check)
    assert len(complete_all(larger)) == 9
    assert larger.why_ended == "all 30 configurations of the space were tried"
    assert larger.history.counts()["COMPLETE"] == 30


@pytest.mark.parametrize("larger", [False, True])
def test_a_sampler_is_not_told_of_a_refusal_that_a_larger_budget_takes_back(tmp_path, larger):
    def dear(params):
        known = check(params)
        if params.get("lora.rank", 0) > 32:
            raise Refused("over the budget of 3,210 trainable parameters", known)
        if params["head.lr"] == 2e-3:
            raise Refused("empty: whatever the budget")
        return known

    large = {"method": "lora", "lora.rank": 64, "head.lr": 1e-3}
    proposals = [large, {"method": "head", "head.lr": 2e-3}, HEAD]
    conversation = make_search(tmp_path, trials=1, sampler=Listed(proposals), first=(), check=dear)
    complete(conversation)
    conversation.ledger.close()
    assert [record.number for record in conversation.sampler.told] == [0, 1, 2]
    assert conversation.history.records[0].known == check(large)

    again = make_search(tmp_path, trials=2, sampler=Listed([large]), first=(), check=check if larger else dear)
    assert [record.number for record in again.sampler.told] == ([1, 2] if larger else [0, 1, 2])
    if larger:
        assert again.ask().params == large


def test_one_and_true_proposed_ahead_are_two_configurations(tmp_path, monkeypatch):
    """1 == 1.0 == True, and yet they are three options: the one that is asked for leaves the queue, no other."""
    proposals = [{"method": "head", "head.lr": value} for value in (True, 1.0, 1)]
    conversation = make_search(tmp_path, trials=3, space=FINITE, first=(), sampler=Listed(proposals))
    conversation.prepare(slots=3)
    assert kinds(tmp_path).count("suggest") == 3
    monkeypatch.setattr(
        conversation.ahead, "takes", lambda params: {"True": 1, "1.0": 3, "1": 2}[repr(params["head.lr"])]
    )
    assert [repr(complete(conversation).params["head.lr"]) for _ in range(3)] == ["1.0", "1", "True"]


# ── report and tell ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_told_trial_carries_what_was_known_before_training(tmp_path):
    conversation = make_search(tmp_path)
    complete(conversation, 0.75)
    assert conversation.history.records[0].metrics == {"trainable_parameters": 10.0, "accuracy": 0.75}


def test_the_stopper_is_asked_at_each_report(tmp_path):
    conversation = make_search(tmp_path, trials=9)
    verdicts = []
    for accuracy in (0.5, 0.6, 0.7, 0.1, 0.9):
        trial = conversation.ask()
        assert conversation.report(trial, Report(1, {"accuracy": accuracy})) is False
        verdicts.append(conversation.report(trial, Report(3, {"accuracy": accuracy})))
        conversation.tell(Result(trial, Status.STOPPED, {"accuracy": accuracy}))
    assert verdicts == [False, False, False, True, False]


def test_the_stock_defaults_are_never_stopped(tmp_path):
    class Harsh(Rung3):
        def report(self, record, report):
            return True

    conversation = make_search(tmp_path, stopper=Harsh())
    stops = []
    for _ in range(4):
        trial = conversation.ask()
        stops.append(conversation.report(trial, Report(3, {"accuracy": 0.1})))
    assert len(conversation.first) == 2
    assert stops == [False, False, True, True]


def test_a_trial_is_told_once_and_reports_before(tmp_path):
    conversation = make_search(tmp_path, sampler=Listed([HEAD, HEAD]), first=(), trials=1)
    trial = complete(conversation)
    later = Result(trial, Status.FAILED, error="again")
    with pytest.raises(ValueError, match="trial 0 is not running"):
        conversation.tell(later)
    with pytest.raises(ValueError, match="trial 0 is not running"):
        conversation.report(trial, Report(3, {"accuracy": 0.5}))
    unknown = type(trial)(7, trial.params, 0)
    with pytest.raises(ValueError, match="trial 7 is not running"):
        conversation.tell(Result(unknown, Status.COMPLETE, {"accuracy": 0.5}))
    assert [event["event"] for event in events(tmp_path)] == ["search", "ask", "tell"]


def test_a_trial_whose_counts_are_not_those_foretold_has_failed(tmp_path):
    conversation = make_search(tmp_path, trials=2)
    for off in (0, 1):
        trial = conversation.ask()
        (record,) = [record for record in conversation.history.records if record.number == trial.number]
        counts = {name: value + off for name, value in record.known.items()}
        conversation.tell(Result(trial, Status.COMPLETE, {"accuracy": 0.5, **counts}))
        assert record.status is (Status.FAILED if off else Status.COMPLETE)
        assert ("trainable_parameters is" in record.error) == bool(off)


def test_a_report_that_is_not_finite_cannot_be_made():
    for wrong in (float("inf"), float("nan"), 1e308, -1e200):  # the squares of the last two are not
        with pytest.raises(ValueError, match=r"metrics of a report are finite, up to 1e\+100; step 3 came with"):
            Report(3, {"train_loss": wrong})
        with pytest.raises(ValueError, match=r"metrics of a result are finite, up to 1e\+100; trial 0 came with"):
            Result(Trial(0, {}, 0), Status.COMPLETE, {"accuracy": wrong})


def test_listeners_hear_each_event_once_it_is_on_the_disk_and_no_replayed_one(tmp_path):
    finish(make_search(tmp_path, trials=2), Toy(tmp_path))
    heard = []

    def listen(event):
        assert ledger.read(tmp_path / NAME)[-1] == event
        assert conversation.history.records, "the history has it already"
        heard.append(event["event"])

    conversation = make_search(tmp_path, trials=3, listeners=[listen])
    assert heard == []
    finish(conversation, Toy(tmp_path))
    assert heard == ["ask", "report", "report", "tell"]


def test_a_full_disk_ends_the_search_and_nothing_that_was_told_is_lost(tmp_path):
    conversation = make_search(tmp_path, trials=6)
    complete(conversation)
    trial = conversation.ask()
    size = (tmp_path / NAME).stat().st_size
    with no_files_beyond(size + 10), pytest.raises(EnvironmentFault, match="make room, then resume"):
        conversation.tell(Result(trial, Status.COMPLETE, {"accuracy": 0.5}))
    assert conversation.running == 1, "what is not on the disk was not told"
    conversation.ledger.close()
    finish(make_search(tmp_path, trials=6), Toy(tmp_path))
    assert [number for number, _ in lines(tmp_path, "started")] == [1, 2, 3, 4, 5]


# ── replay ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def frozen(record):
    return json.dumps(
        [record.trial.to_json(), dict(record.known), record.status, dict(record.metrics), record.refusal, record.error]
    )


def test_a_refilled_sampler_and_stopper_were_told_what_the_live_ones_were(tmp_path):
    class Heard(Climber):
        def __init__(self):
            super().__init__()
            self.heard = []

        def begin(self, record):
            super().begin(record)
            self.heard.append(("begin", frozen(record)))

        def tell(self, record):
            super().tell(record)
            self.heard.append(("tell", frozen(record)))

    class Judged(Rung3):
        def __init__(self):
            super().__init__()
            self.heard = []

        def report(self, record, report):
            self.heard.append((record.number, report.to_json(), len(record.reports)))
            return super().report(record, report)

        def tell(self, record):
            self.heard.append(frozen(record))

    live = make_search(tmp_path, trials=10, sampler=Heard(), stopper=Judged())
    finish(live, Toy(tmp_path))
    again = make_search(tmp_path, trials=10, sampler=Heard(), stopper=Judged())
    assert [verb for verb, _ in live.sampler.heard].count("begin") == 10, "before it is told, in the ledger's order"
    assert again.sampler.heard == live.sampler.heard
    assert again.stopper.heard == live.stopper.heard
    assert again.ask() is None


def test_a_sampler_hears_again_of_what_begins_again(tmp_path):
    begun = []

    class Ear(Climber):
        def begin(self, record):
            super().begin(record)
            begun.append((record.number, dict(record.known), record.status))

    conversation = make_search(tmp_path, trials=2, sampler=Ear())
    complete(conversation), conversation.ask()
    live = list(begun)
    conversation.ledger.close()
    begun.clear()
    resumed = make_search(tmp_path, trials=2, sampler=Ear())
    assert begun == live
    assert resumed.ask().number == 1
    assert begun == [*live, live[-1]]
    assert resumed.sampler.running == {1}


def test_an_unfinished_trial_runs_again_first_with_its_number_params_and_seed(tmp_path):
    conversation = make_search(tmp_path, trials=5)
    complete(conversation)
    lost = [conversation.ask(), conversation.ask()]
    conversation.report(lost[0], Report(3, {"accuracy": 0.9}))
    conversation.ledger.close()

    stopper = Rung3()
    conversation = make_search(tmp_path, trials=5, stopper=stopper)
    assert conversation.running == 2
    assert stopper.seen == [], "the reports of a trial that was never told are dropped"
    assert [conversation.ask(), conversation.ask()] == lost
    assert conversation.history.records[1].reports == []
    assert conversation.ask().number == 3
    reruns = [event["number"] for event in events(tmp_path) if event["event"] == "rerun"]
    assert reruns == [1, 2]


def test_the_stopper_hears_the_reports_of_the_rerun_only(tmp_path):
    conversation = make_search(tmp_path)
    trial = conversation.ask()
    conversation.report(trial, Report(3, {"accuracy": 0.1}))
    conversation.ledger.close()
    conversation = make_search(tmp_path)
    assert conversation.ask() == trial
    conversation.report(trial, Report(3, {"accuracy": 0.2}))
    conversation.tell(Result(trial, Status.COMPLETE, {"accuracy": 0.3}))
    conversation.ledger.close()
    stopper = Rung3()
    make_search(tmp_path, stopper=stopper)
    assert stopper.seen == [0.2]


def test_a_live_trial_is_what_its_rerun_will_be(tmp_path):
    """A sampler may well hand out tuples; JSON knows lists."""
    from autopeft.space import Choice, Dimension, Float, Space, Subset

    space = Space(
        {
            "method": Dimension(Choice(("lora",)), "lora"),
            "lora.layers": Dimension(Subset((0, 1, 2)), [0, 1]),
            "head.lr": Dimension(Float(1e-4, 1e-1), 1e-3),
        }
    )
    params = {"method": "lora", "lora.layers": [0, 2], "head.lr": np.float64(0.01)}
    options = {"space": space, "first": (), "sampler": Listed([params])}
    conversation = make_search(tmp_path, **options)
    live = conversation.ask()
    conversation.ledger.close()
    again = make_search(tmp_path, **options).ask()
    assert live == again
    assert [type(value) for value in live.params.values()] == [type(value) for value in again.params.values()]


def test_twenty_more_trials_are_a_larger_budget(tmp_path):
    finish(make_search(tmp_path / "in one go", trials=12), Toy(tmp_path / "in one go"))
    finish(make_search(tmp_path / "twice", trials=7), Toy(tmp_path / "twice"))
    finish(make_search(tmp_path / "twice", trials=12), Toy(tmp_path / "twice"))
    assert events(tmp_path / "twice") == events(tmp_path / "in one go")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted search: its folder, and its ledger's bytes."""
    folder = tmp_path_factory.mktemp("whole")
    finish(make_search(folder, trials=12), Toy(folder))
    statuses = History.read(folder / NAME).counts()
    assert set(statuses) == {"COMPLETE", "STOPPED"}, f"a search that exercises too little: {statuses}"
    return folder, (folder / NAME).read_bytes()


@settings(max_examples=60)
@given(data=st.data())
def test_any_prefix_of_a_ledger_resumes_to_the_same_end(whole, data):
    """Cut at any byte after the header, as a driver that dies at any moment leaves it; once, or again and again."""
    folder, content = whole
    start = content.index(b"\n") + 1
    with tempfile.TemporaryDirectory() as again, pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda fd: None)
        share = data.draw(st.floats(0, 1), label="cut at")  # of the bytes: their number varies with the times
        (Path(again) / NAME).write_bytes(content[: start + int(share * (len(content) - start))])
        for _ in range(data.draw(st.integers(0, 2), label="more deaths")):
            told = told_numbers(again)
            finish(make_search(again, trials=12), Toy(again))
            assert_trained_none_of(told, again)
            grown = (Path(again) / NAME).read_bytes()
            share = data.draw(st.floats(0, 1), label="cut again at")
            (Path(again) / NAME).write_bytes(grown[: start + int(share * (len(grown) - start))])
        told = told_numbers(again)
        finish(make_search(again, trials=12), Toy(again))
        assert_trained_none_of(told, again)
        assert outcome(again) == outcome(folder)
        assert front(again) == front(folder)
        assert sorted(told_numbers(again)) == list(range(12))


def told_numbers(folder):
    return [event["number"] for event in ledger.read(Path(folder) / NAME) if event["event"] == "tell"]


def assert_trained_none_of(told, folder):
    trained = [number for number, _ in lines(folder, "started")]
    assert not set(trained) & set(told), "a told trial was trained again"
    assert len(trained) == len(set(trained))
    (Path(folder) / "started").unlink(missing_ok=True)


@settings(max_examples=60)
@given(data=st.data())
def test_any_prefix_of_a_parallel_search_resumes_with_each_trial_told_once(data):
    """Four slots, advanced in any order, and dead at any event; proposals ahead throughout, or for the last trials."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda fd: None)
        clock = itertools.count()  # the last trials go out longest first: on a real clock, not the same way twice
        patch.setattr(ledger.time, "monotonic", lambda: float(next(clock)))
        patch.setattr(ahead, "SLOW_SECONDS", data.draw(st.sampled_from([0.0, 60.0]), label="slow from"))
        params = {}
        for deaths in range(3):
            conversation = make_search(folder, trials=9)
            known = {record.number: dict(record.params) for record in conversation.history.records}
            assert known == {number: params[number] for number in known}, "a number changed its params"
            fuse = None if deaths == 2 else data.draw(st.integers(1, 60), label="events until death")
            parallel(conversation, Toy(folder)(lambda: False), data, fuse)
            params = {record.number: dict(record.params) for record in conversation.history.records}
            conversation.ledger.close()
        assert sorted(told_numbers(folder)) == sorted(set(told_numbers(folder)))
        history = History.read(Path(folder) / NAME)
        assert history.counts().get("RUNNING", 0) == 0
        assert len(history.trials) == 9
        for record in history.records:
            assert record.trial.seed == derive_seed(0, record.number)
            assert record.refusal or [report.step for report in record.reports] in ([3], [3, 6])


def parallel(conversation, evaluate, data, fuse):
    """Four slots; each turn goes to one that hypothesis picks. Ends with the search, or after `fuse` turns."""
    running = []
    while fuse != 0:
        while len(running) < 4 and (trial := conversation.ask()) is not None:
            running.append((trial, evaluate(trial)))
        if not running:
            return
        conversation.prepare(4)
        slot = data.draw(st.integers(0, len(running) - 1), label="slot") if fuse is not None else 0
        trial, turns = running[slot]
        event = next(turns)
        if isinstance(event, Result):
            conversation.tell(event)
            del running[slot]
        elif conversation.report(trial, event):
            conversation.tell(Result(trial, Status.STOPPED, event.metrics))
            del running[slot]
        if fuse is not None:
            fuse -= 1
    for _, turns in running:
        turns.close()


def test_a_search_whose_ledger_has_only_its_header_starts(tmp_path):
    book = Ledger(tmp_path / NAME)
    book.append(HEADER)
    book.close()
    conversation = make_search(tmp_path, trials=1)
    assert conversation.history.objectives == OBJECTIVES
    assert conversation.ask().number == 0
