"""Ray Tune: slots, workers that die or hang, Ctrl-C, what it leaves behind."""

from __future__ import annotations

import os
import signal
import tempfile
import time

import pytest

from autopeft.errors import AutoPEFTError, EnvironmentFault, UsageError
from autopeft.executors import _actor, _packs, _tune
from autopeft.executors.ray_tune import RayTune
from autopeft.history import History
from autopeft.ledger import NAME
from autopeft.stoppers.never import NeverStopper
from autopeft.trial import Status
from tests.executors.conversations import OBJECTIVES, Toy, Turns, events, lines, make_search
from tests.executors.driver import Driver


def run(folder, toy=None, trials=8, stopper=None, **options):
    conversation = make_search(folder, trials=trials, stopper=stopper)
    try:
        RayTune(**options).run(conversation, toy or Toy(folder))
    finally:
        conversation.ledger.close()
    return conversation.history


SLOW = ("Ray is slow to start", "Ray did not start", "Ray's workers are still starting")  # of a machine that is slow


def said(driver):
    """What a driver printed, but for the lines of a slow machine."""
    return [line for line in driver.output.splitlines() if not line.startswith(SLOW)]


def most_at_once(folder):
    """Trials that were running together, by the ledger."""
    running, most = 0, 0
    for event in events(folder):
        running += {"ask": 1, "rerun": 1, "tell": -1}.get(event["event"], 0)
        most = max(most, running)
    return most


# ── slots ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_workers_serve_trial_after_trial_and_all_slots_are_busy(tmp_path, ray_up):
    run(tmp_path, Toy(tmp_path, meet=2), trials=20, slots=2)
    assert len(set(History.read(tmp_path / NAME).told)) == 20
    assert len(lines(tmp_path, "made")) == 2, "evaluate is built once a worker"
    assert len({process for _, process in lines(tmp_path, "started")}) == 2
    assert most_at_once(tmp_path) == 2, "nothing is asked for while all slots are busy"


@pytest.mark.slow
def test_thirty_two_slots_all_come_to_life_and_stay_busy(tmp_path, ray_up):
    run(tmp_path, Toy(tmp_path, seconds=0.1, meet=32), trials=160, cpus_per_trial=0.125)
    assert len(lines(tmp_path, "made")) == 32, "evaluate is built once a worker"
    assert len(set(History.read(tmp_path / NAME).told)) == 160
    running, at_asks = 0, []
    for event in events(tmp_path):
        running += {"ask": 1, "tell": -1}.get(event["event"], 0)
        if event["event"] == "ask":
            at_asks.append(running)
    assert at_asks[:32] == list(range(1, 33))
    assert min(at_asks[32:]) >= 24, "Tune hands a slot its next trial before many others end"


def test_fractions_of_a_gpu_make_slots(tmp_path, ray_up):
    """Two GPUs, half a one a trial: four at once, in four workers."""
    run(tmp_path, Toy(tmp_path, meet=4), trials=8, gpus_per_trial=0.5)
    assert len({process for _, process in lines(tmp_path, "started")}) == 4
    assert most_at_once(tmp_path) == 4


def test_resources_of_ones_own_make_slots(tmp_path, ray_up):
    """Nodes declare them; a trial holds its share as long as it runs."""
    run(tmp_path, Toy(tmp_path, meet=2), trials=6, resources_per_trial={"licence": 1}, cpus_per_trial=0.5)
    assert len({process for _, process in lines(tmp_path, "started")}) == 2
    assert most_at_once(tmp_path) == 2, "as many as there are licences, of eight that the CPUs would hold"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus_per_trial": 3}, r"asks for 1 CPU, 3 GPU, .*: 4 CPU, 2 GPU\)"),
        (
            {"resources_per_trial": {"tpu": 1}},
            r"asks for 1 CPU, 1 tpu, .*: 4 CPU, 0 tpu\). .*executor.resources_per_trial",
        ),
    ],
)
def test_a_trial_that_no_node_holds_is_an_error_before_the_first_trial(tmp_path, ray_up, options, message):
    with pytest.raises(EnvironmentFault, match=message):
        run(tmp_path, **options)
    assert [event["event"] for event in events(tmp_path)] == ["search"]


@pytest.mark.parametrize(
    "options",
    [
        {"slots": 0}, {"cpus_per_trial": 0}, {"gpus_per_trial": -1}, {"gpus_per_trial": 1.5}, {"trials_per_worker": 0},
        {"address": "ray://head"},
    ],
)  # fmt: skip
def test_options_that_make_no_sense(options):
    with pytest.raises(UsageError, match=f"executor.{next(iter(options))}"):
        RayTune(**options)


def test_a_cluster_is_looked_for_before_anything_is_loaded(monkeypatch):
    cluster = RayTune(address="127.0.0.1:1")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(EnvironmentFault, match="talks to one by token only"):
        cluster.check()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(EnvironmentFault, match=r"no Ray cluster at '127\.0\.0\.1:1'"):
        cluster.check()
    for named in ("127.0.0.1:1", "http://127.0.0.1:1"):
        monkeypatch.setenv("RAY_ADDRESS", named)
        with pytest.raises(EnvironmentFault, match=f"no Ray cluster at '{named}'"):
            RayTune(address="auto").check()
    RayTune().check()


# ── many trials a worker ────────────────────────────────────────────────────────────────────────────────────────────


def workers(folder):
    """Worker's process → the trials that it began."""
    found = {}
    for number, process in lines(folder, "started"):
        found.setdefault(process, []).append(number)
    return found


def test_a_worker_with_a_whole_gpu_holds_many_trials(tmp_path, ray_up):
    """Two GPUs, three trials on each at once: two workers, and each trial is told once."""
    history = run(tmp_path, Turns(tmp_path, meet=2, seconds=0.001), trials=20, trials_per_worker=3)
    assert sorted(history.told) == list(range(20))
    assert {"COMPLETE", "STOPPED"} <= set(history.counts())
    assert len(lines(tmp_path, "made")) == len(workers(tmp_path)) == 2, "one base a GPU"
    assert 3 < most_at_once(tmp_path) <= 6
    assert len(lines(tmp_path, "ended")) == 20, "a stopped trial is closed"


def test_a_worker_holds_as_many_trials_as_its_memory(tmp_path, ray_up):
    """It begins with one, and is given more while it has room."""
    never = NeverStopper(OBJECTIVES)
    history = run(tmp_path, Turns(tmp_path, seconds=0.001, meet=2), trials=20, stopper=never, trials_per_worker="auto")
    assert sorted(history.told) == list(range(20))
    assert len(workers(tmp_path)) == 2
    assert 3 < most_at_once(tmp_path) <= 6


def test_slots_bound_trials_where_memory_has_room_for_more(tmp_path, ray_up):
    never = NeverStopper(OBJECTIVES)
    history = run(tmp_path, Turns(tmp_path), trials=8, stopper=never, trials_per_worker="auto", slots=2)
    assert sorted(history.told) == list(range(8)) and most_at_once(tmp_path) == 2


def test_on_gpus_workers_hold_many_trials_unless_told_otherwise():
    assert RayTune(n_gpus=1).each == RayTune(n_gpus=4).each == "auto"
    assert RayTune(n_gpus=1, gpus_per_trial=0.5).each == RayTune().each == 1
    assert RayTune(n_gpus=1, trials_per_worker=8).each == 8


def test_slots_bound_the_trials_of_all_workers(tmp_path, ray_up):
    run(tmp_path, Turns(tmp_path), trials=8, trials_per_worker=3, slots=4)
    assert most_at_once(tmp_path) <= 4


def test_a_worker_of_many_that_dies_costs_no_other_trial(tmp_path, ray_up):
    """Nobody knows whose fault it was: each begins again alone, and there only the guilty one dies."""
    (tmp_path / "1.die").touch()
    (tmp_path / "5.fail").touch()
    never = NeverStopper(OBJECTIVES)
    history = run(tmp_path, Turns(tmp_path), stopper=never, trials_per_worker=4, slots=4)
    failed = {record.number: record.error for record in history.records if record.status is Status.FAILED}
    assert sorted(history.told) == list(range(8))
    assert failed == {
        1: "its worker died: killed, crashed, or its node is gone",
        5: "ValueError: as asked",
    }
    began = [number for number, _ in lines(tmp_path, "started")]
    assert began.count(1) == 2 and max(map(began.count, began)) == 2


def test_a_step_that_hangs_among_many_costs_one_trial(tmp_path, ray_up, monkeypatch):
    monkeypatch.setattr(_packs, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(_packs, "TURN_SECONDS", 0.5)
    (tmp_path / "2.hang").touch()
    never = NeverStopper(OBJECTIVES)
    history = run(tmp_path, Turns(tmp_path), trials=4, stopper=never, trials_per_worker=4, slots=4, trial_seconds=4.0)
    failed = {record.number: record.error for record in history.records if record.status is Status.FAILED}
    assert sorted(history.told) == list(range(4))
    assert failed == {2: "over its time limit of 4 s in one step, and its worker was ended"}


def test_a_fault_of_one_of_many_ends_the_run(tmp_path, ray_up):
    (tmp_path / "2.environment").touch()
    with pytest.raises(EnvironmentFault, match="this node lacks the model"):
        run(tmp_path, Turns(tmp_path), trials=6, trials_per_worker=3, stopper=NeverStopper(OBJECTIVES))


def test_what_trains_one_trial_at_a_time_is_not_packed(tmp_path, ray_up):
    with pytest.raises(UsageError, match=r"leave out executor\.trials_per_worker"):
        run(tmp_path, Toy(tmp_path), trials_per_worker=2)
    with pytest.raises(UsageError, match="give trials_per_worker or gpus_per_trial"):
        RayTune(trials_per_worker=2, gpus_per_trial=0.5)


# ── workers that die or hang ────────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_that_dies_costs_its_own_trial_only(tmp_path, ray_up):
    (tmp_path / "1.die").touch()  # kill -9
    (tmp_path / "4.exit").touch()
    (tmp_path / "5.fail").touch()
    (tmp_path / "6.crash").touch()  # a segmentation fault
    never = NeverStopper(OBJECTIVES)  # what is stopped before step 4 does not die there, and who is depends on timing
    history = run(tmp_path, Toy(tmp_path, seconds=0.02), stopper=never, slots=2)
    failed = {record.number: record.error for record in history.records if record.status is Status.FAILED}
    assert sorted(history.told) == list(range(8))
    assert failed == {
        1: "its worker died: killed, crashed, or its node is gone",
        4: "its worker died: killed, crashed, or its node is gone",
        5: "ValueError: as asked",
        6: "its worker died: killed, crashed, or its node is gone",
    }
    trained = [number for number, _ in lines(tmp_path, "started")]
    assert sorted(trained) == list(range(8)), "no trial was trained twice"
    assert len({process for _, process in lines(tmp_path, "started")}) <= 5, "three deaths, three workers more"


@pytest.mark.parametrize("how", ["hang", "loop"])
def test_a_step_that_hangs_costs_its_worker_and_the_search_goes_on(tmp_path, ray_up, monkeypatch, how):
    """Sleeping, and in C code that holds the interpreter's lock, where no thread of Python's could end it."""
    monkeypatch.setattr(_tune, "GRACE_SECONDS", 0.2)
    (tmp_path / f"1.{how}").touch()
    history = run(tmp_path, trials=4, slots=1, trial_seconds=0.5)
    assert sorted(history.told) == list(range(4))
    assert history.records[1].status is Status.FAILED
    assert history.records[1].error.startswith("over its time limit of 0.5 s: a step went on")
    assert [record.status for record in history.records].count(Status.FAILED) == 1


def test_workers_that_all_die_while_they_load_end_the_run(tmp_path, ray_up):
    (tmp_path / "make.die").touch()
    with pytest.raises(EnvironmentFault, match="3 Ray workers in a row died while they loaded model and data"):
        run(tmp_path, trials=40, slots=1)
    history = History.read(tmp_path / NAME)
    assert history.told == [], "the trial is no worse than others: a resume runs it again"


def test_a_budget_of_time_ends_running_trials_untold(tmp_path, ray_up):
    conversation = make_search(tmp_path)
    begun = []
    conversation.listeners = (lambda event: begun.append(event["number"]) if event["event"] == "report" else None,)
    conversation.is_out_of_time = lambda: bool(begun)
    RayTune().run(conversation, Toy(tmp_path, seconds=0.01, steps=100_000))
    assert begun
    assert conversation.history.told == []
    assert conversation.history.counts() == {"RUNNING": conversation.running}


def test_the_runs_own_ending_waits_for_no_long_step(tmp_path, ray_up):
    """One trial breaks the run; the other one is in a step of ten minutes, longer than this test may take."""
    (tmp_path / "0.hang").touch()
    (tmp_path / "1.fault").touch()
    with pytest.raises(OSError, match="as asked") as caught:
        run(tmp_path, Toy(tmp_path, seconds=0.1), slots=2)
    assert "conversations.py" in caught.value.__notes__[0], "the worker's traceback came along"
    assert History.read(tmp_path / NAME).told == []
    while any(os.path.exists(f"/proc/{process}") for _, process in lines(tmp_path, "started")):
        time.sleep(0.05)  # a worker that Ray kills is there for a moment


def test_it_leaves_no_files_and_no_handlers(tmp_path, ray_up, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    run(tmp_path, trials=2, slots=1)
    assert before == {number: signal.getsignal(number) for number in before}
    assert list((tmp_path / "temporary").iterdir()) == []


# ── errors across processes ─────────────────────────────────────────────────────────────────────────────────────────


class Strange(Exception):
    """Pickles, and cannot be built again."""

    def __init__(self, one, two):
        super().__init__(one)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [(EnvironmentFault("no model"), EnvironmentFault), (OSError(28, "full"), OSError), (Strange(1, 2), AutoPEFTError)],
)
def test_an_exception_travels_with_its_traceback(fault, expected):
    try:
        raise fault
    except Exception as caught:
        arrived = _actor.unpack(_actor.pack(caught))
    assert type(arrived) is expected
    assert str(fault) in str(arrived)
    if expected is not AutoPEFTError:
        assert "test_ray_tune.py" in arrived.__notes__[0]


def test_a_cluster_is_talked_to_by_token_only(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(EnvironmentFault, match="RAY_AUTH_MODE=token"):
        run(tmp_path, address="127.0.0.1:1")


# ── Ctrl-C, in a process of its own that starts a Ray of its own ────────────────────────────────────────────────────


@pytest.mark.timeout(500)
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_the_run_tells_nothing_and_leaves_no_process(tmp_path, times):
    """The trials that run are in steps of ten minutes, longer than this test may take: nothing waits for them."""
    for number in (1, 2):
        (tmp_path / f"{number}.hang").touch()
    driver = Driver(tmp_path, "ray_tune", trials=40, seconds=0.3, steps=10, slots=2)
    driver.until(lambda: len(lines(tmp_path, "ended")) >= 1 and len(lines(tmp_path, "started")) >= 3)
    for _ in range(times):
        driver.ctrl_c()
        time.sleep(0.05)
    assert driver.wait() == 130, driver.output
    assert driver.is_gone()
    assert said(driver) == [], "Ray is silent"
    history = History.read(tmp_path / NAME)
    assert history.told == [0] and history.counts()["RUNNING"] == 2, "what ran is not told, and will run again"
    assert not any(record.error for record in history.records)


@pytest.mark.parametrize("workers", [False, True])
def test_a_scheduler_that_ends_the_job_loses_nothing(tmp_path, workers):
    """SIGTERM to the driver is one Ctrl-C; where its workers get it as well, their trials have not failed."""
    driver = Driver(tmp_path, "ray_tune", trials=40, seconds=0.3, steps=10, slots=2)
    driver.until(lambda: len(lines(tmp_path, "ended")) >= 1 and len(lines(tmp_path, "started")) >= 3)
    driver.terminate(workers=workers)
    assert driver.wait() == 130, driver.output
    assert driver.is_gone()
    assert workers or said(driver) == [], "Ray is silent, but of workers that ended"
    history = History.read(tmp_path / NAME)
    assert history.counts()["RUNNING"] in (1, 2)
    assert not any(record.error for record in history.records)
