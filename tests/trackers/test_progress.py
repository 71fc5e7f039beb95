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
