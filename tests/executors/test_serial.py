"""One trial after another, in this process; Ctrl-C once and twice."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from autopeft.errors import AutoPEFTError, EnvironmentFault
from autopeft.executors.serial import Serial
from autopeft.history import History
from autopeft.ledger import NAME
from autopeft.trial import Report, Result, Status
from tests.executors.conversations import Toy, events, lines, make_search
from tests.test_ledger import no_files_beyond


def run(folder, **options):
    conversation = make_search(folder, **options)
    try:
        Serial().run(conversation, Toy(folder))
    finally:
        conversation.ledger.close()
    return conversation.history


def test_runs_to_the_end_and_builds_evaluate_once(tmp_path):
    history = run(tmp_path)
    assert len(lines(tmp_path, "made")) == 1
    assert [number for number, _ in lines(tmp_path, "started")] == list(range(12))
    assert set(history.counts()) == {"COMPLETE", "STOPPED"}
    assert sorted(history.told) == list(range(12))
    for record in history.records:
        if record.status is Status.STOPPED:
            assert record.metrics == {**record.known, **record.reports[-1].metrics}


def test_a_budget_of_time_ends_a_running_trial_untold(tmp_path):
    conversation = make_search(tmp_path, most_seconds=1.0)
    Serial().run(conversation, Toy(tmp_path, seconds=0.01, steps=100_000))
    assert conversation.why_ended.startswith("the budget of")
    assert 1.0 <= conversation.ledger.seconds < 5.0
    assert conversation.history.told == []
    conversation.ledger.close()
    history = run(tmp_path)
    assert sorted(history.told) == list(range(12))
    assert [event["number"] for event in events(tmp_path) if event["event"] == "rerun"] == [0]


def test_a_trial_ends_before_it_is_told(tmp_path):
    """A stopped generator is closed: what it holds is free before the next trial begins."""
    conversation = make_search(tmp_path)
    tell = conversation.tell

    def told(result):
        assert result.trial.number in [number for number, _ in lines(tmp_path, "ended")]
        tell(result)

    conversation.tell = told
    Serial().run(conversation, Toy(tmp_path))
    assert len(lines(tmp_path, "ended")) == 12


def test_a_failed_trial_is_data(tmp_path):
    (tmp_path / "3.fail").touch()
    history = run(tmp_path)
    assert history.records[3].status is Status.FAILED
    assert history.records[3].error == "ValueError: as asked"
    assert len(history.told) == 12


def test_what_evaluate_needs_and_lacks_ends_the_run_before_the_first_trial(tmp_path):
    (tmp_path / "make.environment").touch()
    with pytest.raises(EnvironmentFault, match="this node lacks the model"):
        run(tmp_path)
    assert [event["event"] for event in events(tmp_path)] == ["search"]


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [("fault", OSError, "as asked"), ("short", AutoPEFTError, "evaluate ended trial 3 without a result")],
)
def test_what_flies_out_of_evaluate_ends_the_run_and_the_trial_is_not_told(tmp_path, what, error, message):
    (tmp_path / f"3.{what}").touch()
    with pytest.raises(error, match=message):
        run(tmp_path)
    assert History.read(tmp_path / NAME).told == [0, 1, 2]
    (tmp_path / f"3.{what}").unlink()
    run(tmp_path)
    assert History.read(tmp_path / NAME).told == list(range(12))


def test_a_full_disk_ends_the_run(tmp_path):
    conversation = make_search(tmp_path)
    size = (tmp_path / NAME).stat().st_size
    with no_files_beyond(size + 1000), pytest.raises(EnvironmentFault, match="make room, then resume"):
        Serial().run(conversation, Toy(tmp_path))
    conversation.ledger.close()
    assert 0 < len(History.read(tmp_path / NAME).told) < 12


# ── Ctrl-C ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Interrupting:
    """Ends between steps when it is told to; Ctrl-C, or another signal, comes at given steps of trial 1."""

    def __init__(self, *at, signal=signal.SIGINT):
        self.at, self.signal, self.steps, self.ended = at, signal, [], False

    def __call__(self, should_end):
        self.should_end = should_end
        return self.evaluate

    def evaluate(self, trial):
        try:
            for step in range(1, 6):
                if self.should_end():
                    return
                self.steps.append((trial.number, step))
                if trial.number == 1:
                    for _ in range(self.at.count(step)):
                        os.kill(os.getpid(), self.signal)
                yield Report(step, {"accuracy": 0.5})
            yield Result(trial, Status.COMPLETE, {"accuracy": 0.5})
        finally:
            self.ended = True


@pytest.fixture
def handler():
    """A handler of the user's, which must be back after each run."""

    def mine(number, frame):
        raise AssertionError("the user's own handler was called")

    before = {number: signal.signal(number, mine) for number in (signal.SIGINT, signal.SIGTERM)}
    yield mine
    now = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert set(now.values()) == {mine}, "the user's handler did not come back"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_once_ends_the_trial_between_steps_and_tells_nothing(tmp_path, handler, number):
    """So does what a scheduler such as Slurm sends before it kills."""
    conversation, make = make_search(tmp_path), Interrupting(2, signal=number)
    with pytest.raises(KeyboardInterrupt):
        Serial().run(conversation, make)
    assert make.steps[-1] == (1, 2), "the step went to its end, and no other began"
    assert conversation.history.told == [0]
    assert conversation.running == 1
    conversation.ledger.close()
    run(tmp_path)
    assert History.read(tmp_path / NAME).told == list(range(12))


def test_a_trial_whose_last_step_was_done_is_told(tmp_path, handler):
    conversation, make = make_search(tmp_path), Interrupting(5)
    with pytest.raises(KeyboardInterrupt):
        Serial().run(conversation, make)
    assert conversation.history.told == [0, 1]


def test_ctrl_c_twice_interrupts_at_once(tmp_path, handler):
    conversation, make = make_search(tmp_path), Interrupting(2, 2)
    with pytest.raises(KeyboardInterrupt):
        Serial().run(conversation, make)
    assert make.steps[-1] == (1, 2)
    assert [record.step for record in conversation.history.records[1].reports] == [1], "it left within the step"
    assert make.ended


def test_ctrl_c_while_the_model_loads_asks_for_nothing(tmp_path, handler):
    def make(should_end):
        os.kill(os.getpid(), signal.SIGINT)
        return lambda trial: pytest.fail("a trial began")

    conversation = make_search(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        Serial().run(conversation, make)
    assert [event["event"] for event in events(tmp_path)] == ["search"]


def test_the_users_handler_comes_back_after_an_error_too(tmp_path, handler):
    (tmp_path / "2.fault").touch()
    with pytest.raises(OSError, match="as asked"):
        run(tmp_path)


def test_runs_outside_of_the_main_thread_too(tmp_path):
    thread = threading.Thread(target=run, args=(tmp_path,))
    thread.start()
    thread.join()
    assert len(History.read(tmp_path / NAME).told) == 12
