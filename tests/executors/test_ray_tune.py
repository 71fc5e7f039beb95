"""Ray Tune: agrees with serial, survives its workers, ends when told to."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from conversations import Toy, events, make_search

from autopeft.errors import AutoPEFTError, EnvironmentFault
from autopeft.executors.ray_tune import RayTune
from autopeft.executors.serial import Serial
from autopeft.ledger import NAME
from autopeft.trial import Status

TESTS = str(Path(__file__).parent.parent)


@pytest.fixture(scope="module", autouse=True)
def ray():
    """One Ray for the module, with GPUs that are only declared."""
    import ray

    path = os.pathsep.join([TESTS, str(Path(TESTS).parent)])
    ray.init(
        num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1",
        object_store_memory=100 * 2**20, runtime_env={"env_vars": {"PYTHONPATH": path}},
    )  # fmt: skip
    yield ray
    ray.shutdown()


def test_with_one_slot_it_agrees_with_serial_event_by_event(tmp_path):
    for name, executor in (("serial", Serial()), ("ray", RayTune(slots=1))):
        search = make_search(tmp_path / name, trials=20)
        executor.run(search, Toy(tmp_path / name))
        search.ledger.close()
    assert events(tmp_path / "ray") == events(tmp_path / "serial")


def test_actors_serve_trial_after_trial(tmp_path):
    search = make_search(tmp_path, trials=20)
    RayTune(slots=2).run(search, Toy(tmp_path, seconds=0.01))
    started = [line.split() for line in (tmp_path / "started").read_text().splitlines()]
    assert len(started) == 20
    assert len({worker for _, worker in started}) <= 3


def test_a_worker_that_dies_costs_its_trial_only(tmp_path):
    (tmp_path / "3.die").touch()
    search = make_search(tmp_path, trials=8)
    RayTune(slots=2).run(search, Toy(tmp_path, seconds=0.01))
    statuses = {record.number: record.status for record in search.history.records}
    assert statuses.pop(3) is Status.FAILED
    assert "worker died" in search.history.records[3].error
    assert len(search.history.told) == 8
    assert set(statuses.values()) <= {Status.COMPLETE, Status.STOPPED}


def test_a_step_that_hangs_ends_by_the_time_limit(tmp_path, monkeypatch):
    (tmp_path / "1.hang").touch()
    search = make_search(tmp_path, trials=5)
    RayTune(slots=2, trial_seconds=2).run(search, Toy(tmp_path))
    assert search.history.records[1].status is Status.FAILED
    assert "over its time limit of 2 s" in search.history.records[1].error
    assert len(search.history.told) == 5


class Broken:
    def __call__(self, should_end):
        raise EnvironmentFault("this node has no model")


def test_a_node_that_lacks_the_model_says_so_before_the_first_trial(tmp_path):
    search = make_search(tmp_path)
    with pytest.raises(EnvironmentFault, match="this node has no model"):
        RayTune(slots=1).run(search, Broken())
    assert not search.history.told


def test_a_fault_of_the_search_flies_as_itself(tmp_path):
    search = make_search(tmp_path)

    def full(event):
        if event["event"] == "tell":
            raise EnvironmentFault("disk full")

    search.listeners = [full]
    with pytest.raises(AutoPEFTError, match="disk full"):
        RayTune(slots=1).run(search, Toy(tmp_path))


@pytest.mark.parametrize(("gpus", "slots"), [(0.5, 4), (1.0, 2)])
def test_slots_follow_the_gpus_that_are_there(tmp_path, gpus, slots):
    """Each of 2 declared GPUs is shared by 1 / gpus trials, and by no more. (A slow machine may not fill all slots.)"""
    search = make_search(tmp_path, trials=8)
    most = []
    search.listeners = [lambda event: most.append(search.running)]
    RayTune(gpus_per_trial=gpus, cpus_per_trial=0.5).run(search, Toy(tmp_path, seconds=0.5))
    assert max(2, slots - 1) <= max(most) <= slots
    assert len(search.history.told) == 8


def test_resources_that_are_not_there_are_said(tmp_path):
    with pytest.raises(EnvironmentFault, match="asks for 1 CPUs and 3 GPUs"):
        RayTune(gpus_per_trial=3).run(make_search(tmp_path), Toy(tmp_path))


def test_a_cluster_is_talked_to_by_token_only(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(EnvironmentFault, match="RAY_AUTH_MODE=token"):
        RayTune(address="10.0.0.1:6379").run(make_search(tmp_path), Toy(tmp_path))


def test_an_interrupt_ends_the_search_and_it_can_be_resumed(tmp_path):
    search = make_search(tmp_path, trials=400)
    threading.Timer(4.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    since = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        RayTune(slots=2).run(search, Toy(tmp_path, seconds=0.03))
    assert time.monotonic() - since < 25
    search.ledger.close()
    done = len(search.history.told)
    assert done < 400
    again = make_search(tmp_path, trials=done + 4)
    Serial().run(again, Toy(tmp_path))
    told = [event["number"] for event in events(tmp_path) if event["event"] == "tell"]
    assert sorted(told) == list(range(done + 4))
    assert (tmp_path / NAME).exists()
