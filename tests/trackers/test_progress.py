"""The fold of tells says what the history says, at every moment of a search."""

import pytest

from autopeft.history import History
from autopeft.trackers._progress import Progress
from autopeft.trial import Status
from tests.reports import histories as h


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_history_s_front_and_hypervolume(seed):
    history, progress = History(), Progress()
    for event in h.search(40, seed=seed):
        history.apply(event)
        if event["event"] == "tell":
            progress.update(history)
            assert progress.front == history.front()
            assert len(progress.curve) == len(history.told)
    assert [standing.hypervolume for standing in progress.curve] == pytest.approx(history.hypervolumes(), rel=1e-12)
    last = progress.curve[-1]
    assert last.front_size == len(history.front())
    assert last.best == max(record.metrics["accuracy"] for record in history.records if record.is_complete)
    ended = [record.status for record in history.records if record.status is not None]
    assert dict(last.counts) == {status: ended.count(status) for status in Status if status in ended}


def test_many_tells_at_once_are_the_same_as_one_by_one():
    events = h.search(40)
    history, once = History(events), Progress()
    once.update(history)
    growing, one_by_one = History(), Progress()
    for event in events:
        growing.apply(event)
        one_by_one.update(growing) if growing.header else None
    assert once.curve == one_by_one.curve


def test_a_second_update_adds_nothing():
    history, progress = History(h.search(20)), Progress()
    progress.update(history)
    curve = list(progress.curve)
    progress.update(history)
    assert progress.curve == curve


def test_a_trial_that_the_machine_cost_and_that_runs_again_is_counted_once():
    params = {"method": "head", "head.lr": 1e-3}
    lost = {**h.tell(0, {}, "FAILED", "its worker died"), "fault": "machine"}
    events = [h.header(), h.ask(0, params, 10), h.ask(1, params, 10), lost, h.tell(1, h_metrics(0.7))]
    again = [{"event": "rerun", "number": 0, "seconds": 3.0}, h.tell(0, h_metrics(0.8))]
    history, progress = History(events), Progress()
    progress.update(history)
    assert progress.curve[-1].counts == {Status.FAILED: 1, Status.COMPLETE: 1}
    for event in again:
        history.apply(event)
        progress.update(history)
    whole = Progress()
    whole.update(History([*events, *again]))
    assert progress.curve == whole.curve
    assert progress.curve[-1].counts == {Status.COMPLETE: 2}
    assert progress.front == history.front() == [history.records[0]]


def h_metrics(accuracy):
    return {"accuracy": accuracy, "trainable_parameters": 10}
