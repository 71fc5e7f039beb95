"""The driver is killed with -9 at any moment: every told trial is there once, and none is trained again."""

from __future__ import annotations

import random
import time
from contextlib import suppress

import pytest

from autopeft import ledger
from autopeft.history import History
from autopeft.ledger import NAME
from tests import commands
from tests.executors.conversations import front, lines, outcome
from tests.executors.driver import Driver


def told(folder):
    if not (folder / NAME).exists():
        return []
    return [event["number"] for event in ledger.read(folder / NAME) if event["event"] == "tell"]


def finish(folder, executor, trials, **options):
    """Resumes to the end. Returns the numbers that this trained."""
    before = len(lines(folder, "started"))
    driver = Driver(folder, executor, trials=trials, **options)
    assert driver.wait() == 0, driver.output
    return [number for number, _ in lines(folder, "started")[before:]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The search that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    finish(folder, "serial", 30)
    assert set(History.read(folder / NAME).counts()) == {"COMPLETE", "STOPPED"}
    return folder


def test_the_serial_driver_killed_at_twenty_moments(tmp_path, whole):
    """Killed again and again: so long after it began with a trial, drawn at random, wherever it then is."""
    waits = random.Random(0)
    before: list[int] = []
    for _ in range(20):
        seen = len(lines(tmp_path, "started"))
        driver = Driver(tmp_path, "serial", trials=30, seconds=0.02)
        driver.until(lambda seen=seen: len(lines(tmp_path, "started")) > seen)
        time.sleep(waits.uniform(0.0, 0.4))
        driver.kill()
        again = [number for number, _ in lines(tmp_path, "started")[seen:]]
        assert not set(again) & set(before), "a told trial was trained again"
        assert told(tmp_path)[: len(before)] == before, "what was told is there, in its order"
        before = told(tmp_path)
    assert 0 < len(before) < 30
    finish(tmp_path, "serial", 30)
    reruns = [event for event in ledger.read(tmp_path / NAME) if event["event"] == "rerun"]
    assert 10 <= len(reruns) <= 20, "most kills interrupt a trial, else this tests nothing; and none more than one"
    assert sorted(told(tmp_path)) == list(range(30))
    assert outcome(tmp_path) == outcome(whole)
    assert front(tmp_path) == front(whole)


def kill_ray_driver(folder, after):
    """Starts a Ray driver and kills it after so many tells. Returns what was told by then."""
    driver = Driver(folder, "ray_tune", trials=16, seconds=0.05, slots=2)
    driver.until(lambda: len(told(folder)) >= after)
    driver.kill()
    assert driver.is_gone(), "Ray's processes outlived their driver"
    return told(folder)


def assert_whole(folder, before, trained, most_again):
    assert not set(trained) & set(before), "a told trial was trained again"
    history = History.read(folder / NAME)
    assert history.told[: len(before)] == before
    assert len(history.told) == len(set(history.told)) == len(history.trials) == 16
    assert "RUNNING" not in history.counts()
    assert sum(event["event"] == "rerun" for event in ledger.read(folder / NAME)) <= most_again, "one a slot and kill"


def test_the_ray_driver_killed(tmp_path):
    before = kill_ray_driver(tmp_path, 5)
    assert 5 <= len(before) < 16
    assert_whole(tmp_path, before, finish(tmp_path, "serial", 16), most_again=2)


@pytest.mark.slow
def test_the_ray_driver_killed_again_and_again(tmp_path):
    for after in (1, 4, 8, 12):
        before = kill_ray_driver(tmp_path, after)
    assert_whole(tmp_path, before, finish(tmp_path, "ray_tune", 16, slots=2), most_again=4 * 2)


# ── the product itself: its trainer on digits, TPE, dominated ───────────────────────────────────────────────────────

SMALL = {
    "model": "digits",
    "task": "digits",
    "data": {},
    "space": {
        "method": ["head", "norm", "lora"],
        "head": {"lr": {"float": [3e-3, 3e-1], "log": True, "default": 3e-2}},
        "norm": {"lr": {"float": [1e-2, 1.0], "log": True, "default": 1e-1}},
        "lora": {
            "rank": {"int": [1, 16], "log": True, "default": 8},
            "modules": {"subset": ["query", "value", "up"], "default": ["query", "value"]},
            "lr": {"float": [1e-3, 5e-2], "log": True, "default": 1e-2},
        },
    },
    "training": {"epochs": 2, "precision": "fp32", "attention": "eager"},
    "sampler": {"name": "tpe", "n_startup_trials": 4},
    "stopper": {"name": "dominated", "rungs": [0.3, 0.6]},
    "trackers": [],
    "budget": {"trials": 16},
    "keep": "all",
}


def go_on(folder, executor="serial"):
    """A driver: begins with the search, or resumes it."""
    from autopeft import app
    from autopeft.config import load

    if (folder / NAME).exists():
        app.open_run(folder).resume(quiet=True)
    else:
        app.search(load({**SMALL, "executor": executor}), folder, quiet=True)


def tensors(folder):
    return {path.parent.name: path.read_bytes() for path in (folder / "trials").glob("*/trained.safetensors")}


def test_the_trainer_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path):
    """To the bit: what was asked for, reported and told, the front, and the trained tensors."""

    def driver(name):
        return commands.start(go_on, tmp_path / name)

    def size():
        with suppress(FileNotFoundError):
            return (tmp_path / "killed" / NAME).read_bytes().count(b"\n")
        return 0

    whole = driver("whole")
    whole.join()
    assert whole.exitcode == 0
    assert {"COMPLETE", "STOPPED"} <= set(History.read(tmp_path / "whole" / NAME).counts())
    waits, before = random.Random(0), []
    for kill in range(8):
        seen, process = size(), driver("killed")
        # The first one on its way to the ledger's first line; the others so many lines further on, and a little later.
        while size() < seen + (0 if kill == 0 else 7) and process.is_alive():
            time.sleep(0.002)
        time.sleep(waits.uniform(0.0, 0.1))
        process.kill()
        process.join()
        now = told(tmp_path / "killed")
        assert now[: len(before)] == before, "what was told is there, in its order"
        before = now
    assert 0 < len(before) < 16
    (tmp_path / "killed" / "trials" / ".00015.half").mkdir()  # as a kill in the middle of writing leaves it
    last = driver("killed")
    last.join()
    assert last.exitcode == 0
    events = ledger.read(tmp_path / "killed" / NAME)
    assert sum(event["event"] == "rerun" for event in events) >= 3, "kills interrupt trials, else this tests nothing"
    assert sorted(told(tmp_path / "killed")) == list(range(16))
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    assert front(tmp_path / "killed") == front(tmp_path / "whole")
    assert tensors(tmp_path / "killed") == tensors(tmp_path / "whole")
    assert [path.name for path in (tmp_path / "killed" / "trials").glob(".*")] == [], "nothing half-written stays"


def test_a_pack_killed_again_and_again_loses_nothing_that_was_told(tmp_path):
    """Several trials are running whenever it dies: each is told once, and nothing told is trained again."""
    folder, before = tmp_path / "run", []
    for _ in range(3):
        process = commands.start(go_on, folder, {"name": "packed", "slots": 5})
        while len(told(folder)) < len(before) + 2 and process.is_alive():
            time.sleep(0.002)
        process.kill()
        process.join()
        now = told(folder)
        assert now[: len(before)] == before, "what was told is there, in its order"
        before = now
    assert 0 < len(before) < 16
    last = commands.start(go_on, folder)
    last.join()
    assert last.exitcode == 0
    events = ledger.read(folder / NAME)
    reruns = [event["number"] for event in events if event["event"] == "rerun"]
    assert len(reruns) >= 6, "kills interrupt several trials, else this tests nothing"
    assert len(told(folder)) == len(set(told(folder))) == 16
    first_rerun = next(index for index, event in enumerate(events) if event["event"] == "rerun")
    told_before = {event["number"] for event in events[:first_rerun] if event["event"] == "tell"}
    assert not told_before & set(reruns)
    assert set(tensors(folder)) == {
        f"{record.number:05d}" for record in History.read(folder / NAME).records if record.is_complete
    }
