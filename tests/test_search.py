"""Ask, report, tell: budgets, refusals, replay of any prefix."""

import json
import shutil

import pytest
from conversations import CHECK, OBJECTIVES, SPACE, Rank3, Toy, events, make_search
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.errors import AutoPEFTError, Refused
from autopeft.executors.serial import Serial
from autopeft.history import History
from autopeft.ledger import NAME
from autopeft.samplers.random import RandomSampler
from autopeft.trial import Report, Result, Status


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A search that ran to its end."""
    folder = tmp_path_factory.mktemp("finished")
    search = make_search(folder, trials=20)
    Serial().run(search, Toy(folder))
    search.ledger.close()
    return folder


def test_the_first_trials_are_the_stock_defaults(finished):
    records = History.read(finished / NAME).records
    assert [dict(record.params) for record in records[:2]] == SPACE.defaults()


def test_the_budget_counts_trials_and_says_that_it_is_spent(tmp_path):
    search = make_search(tmp_path, trials=3)
    Serial().run(search, Toy(tmp_path))
    assert len(search.history.trials) == 3
    assert search.ask() is None
    assert "3 trials" in search.why_ended


def test_a_time_budget_ends_the_search(tmp_path):
    search = make_search(tmp_path, trials=None)
    search.most_seconds = 0.2
    Serial().run(search, Toy(tmp_path, seconds=0.005))
    assert "hours" in search.why_ended
    assert 0 < len(search.history.told) < 50


def test_seeds_depend_on_the_search_and_the_number_only(tmp_path):
    first, other = make_search(tmp_path / "a", seed=1), make_search(tmp_path / "b", seed=2)
    again = make_search(tmp_path / "c", seed=1)
    trials = [[search.ask() for _ in range(4)] for search in (first, other, again)]
    assert [trial.seed for trial in trials[0]] == [trial.seed for trial in trials[2]]
    assert not {trial.seed for trial in trials[0]} & {trial.seed for trial in trials[1]}


class Same:
    """Proposes one configuration for ever."""

    def ask(self, number, seed):
        return {"method": "head", "head.lr": 1e-3}

    def tell(self, record):
        pass


def test_a_thousand_refusals_in_a_row_end_the_search(tmp_path):
    search = make_search(tmp_path, sampler=Same())
    search.ask(), search.ask()
    with pytest.raises(AutoPEFTError, match=r"1,000 configurations in a row were refused.*same as trial 0"):
        search.ask()


def test_a_refused_configuration_takes_a_number_and_no_budget(tmp_path):
    told = []

    class Listening(RandomSampler):
        def tell(self, record):
            told.append((record.number, record.refusal))

    search = make_search(tmp_path, trials=6, sampler=Listening(SPACE, OBJECTIVES))

    def check(params):
        if params["method"] == "lora":
            raise Refused("over budget")
        return CHECK(params)

    search.check = check
    Serial().run(search, Toy(tmp_path))
    refused = [record for record in search.history.records if record.refusal]
    assert refused
    assert len(search.history.trials) == 6
    assert [number for number, reason in told if reason] == [record.number for record in refused]
    assert [record.number for record in search.history.records] == list(range(6 + len(refused)))


def test_what_is_not_in_the_space_is_refused(tmp_path):
    search = make_search(tmp_path)
    search.first = ({"method": "head", "head.lr": 7.0},)
    search.ask()
    assert "not in the space: head.lr 7.0" in search.history.records[0].refusal


def test_a_trial_is_told_once(tmp_path):
    search = make_search(tmp_path)
    trial = search.ask()
    result = Result(trial, Status.COMPLETE, {"accuracy": 0.5})
    search.tell(result)
    with pytest.raises(ValueError, match="told once"):
        search.tell(result)


def test_a_stopped_trial_is_on_no_front(finished):
    history = History.read(finished / NAME)
    stopped = [record for record in history.records if record.status is Status.STOPPED]
    assert stopped, "the toy search stops some"
    assert not set(map(id, stopped)) & set(map(id, history.front()))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_prefix_of_a_ledger_resumes_to_the_same_end(finished, tmp_path_factory, data):
    lines = (finished / NAME).read_bytes().splitlines(keepends=True)
    keep = data.draw(st.integers(1, len(lines)))
    torn = data.draw(st.integers(0, len(lines[keep]) - 1)) if keep < len(lines) else 0
    folder = tmp_path_factory.mktemp("prefix")
    (folder / NAME).write_bytes(b"".join(lines[:keep]) + (lines[keep][:torn] if keep < len(lines) else b""))
    search = make_search(folder, trials=20)
    Serial().run(search, Toy(folder))
    search.ledger.close()
    resumed, whole = events(folder), events(finished)
    told = [event for event in resumed if event["event"] == "tell"]
    assert told == [event for event in whole if event["event"] == "tell"]
    asked = [event for event in resumed if event["event"] == "ask"]
    assert asked == [event for event in whole if event["event"] == "ask"]
    assert sum(event["event"] == "rerun" for event in resumed) <= 1
    shutil.rmtree(folder)


def test_reports_of_a_trial_that_was_never_told_are_dropped(tmp_path):
    search = make_search(tmp_path, stopper=Rank3())
    trial = search.ask()
    search.report(trial, Report(3, {"accuracy": 0.9}))
    search.ledger.close()
    again = make_search(tmp_path)
    assert again.history.records[0].reports == []
    assert again.ask().to_json() == trial.to_json()
    again.report(trial, Report(3, {"accuracy": 0.9}))
    again.tell(Result(trial, Status.COMPLETE, {"accuracy": 0.95}))
    again.ledger.close()
    assert [report.step for report in History.read(tmp_path / NAME).records[0].reports] == [3]


def test_listeners_hear_each_event_after_it_is_on_the_disk(tmp_path):
    search = make_search(tmp_path)
    heard = []
    search.listeners = [lambda event: heard.append((event["event"], (tmp_path / NAME).read_text().count("\n")))]
    trial = search.ask()
    search.tell(Result(trial, Status.COMPLETE, {"accuracy": 0.5}))
    assert heard == [("ask", 2), ("tell", 3)]


def test_results_survive_json():
    from autopeft.trial import Trial

    result = Result(Trial(3, {"method": "head", "head.lr": 1e-3}, 7), Status.FAILED, {"loss": 1.5}, error="why")
    assert Result.from_json(json.loads(json.dumps(result.to_json()))) == result
