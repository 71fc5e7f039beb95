"""The reference executor."""

import os
import signal
import threading

import pytest
from conversations import Toy, make_search

from autopeft.errors import EnvironmentFault
from autopeft.executors.serial import Serial
from autopeft.trial import Status


def test_it_runs_a_search_to_its_end(tmp_path):
    search = make_search(tmp_path, trials=8)
    Serial().run(search, Toy(tmp_path))
    assert len(search.history.told) == 8
    assert {record.status for record in search.history.records} <= {Status.COMPLETE, Status.STOPPED}


def test_a_failed_trial_is_data(tmp_path):
    (tmp_path / "2.fail").touch()
    search = make_search(tmp_path, trials=5)
    Serial().run(search, Toy(tmp_path))
    assert search.history.records[2].status is Status.FAILED
    assert search.history.records[2].error == "ValueError: as asked"
    assert len(search.history.told) == 5


def test_a_first_interrupt_ends_the_trial_between_steps_and_tells_nothing(tmp_path):
    search = make_search(tmp_path, trials=50)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        Serial().run(search, Toy(tmp_path, seconds=0.02))
    assert signal.getsignal(signal.SIGINT) is before
    assert search.running == 1
    search.ledger.close()
    again = make_search(tmp_path, trials=50)
    assert again.ask().number == len(again.history.told)


def test_a_worker_that_cannot_be_built_ends_the_run(tmp_path):
    def make_evaluate(should_end):
        raise EnvironmentFault("no model here")

    search = make_search(tmp_path)
    with pytest.raises(EnvironmentFault, match="no model here"):
        Serial().run(search, make_evaluate)
    assert not search.history.records
