"""The driver is killed with -9 at any moment: every told trial is there once, and none is trained again."""

from __future__ import annotations

import random
import time

import pytest

from autopeft import ledger
from autopeft.history import History
from autopeft.ledger import NAME
from autopeft.search import summary
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
    assert set(summary(History.read(folder / NAME))) == {"COMPLETE", "STOPPED"}
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
    assert len(reruns) >= 10, "most kills interrupt a trial, else this tests nothing"
    assert sorted(told(tmp_path)) == list(range(30))
    assert outcome(tmp_path) == outcome(whole)
    assert front(tmp_path) == front(whole)


def kill_ray_driver(folder, after):
    """Starts a Ray driver and kills it after so many tells. Returns what was told by then."""
    driver = Driver(folder, "ray_tune", trials=16, seconds=0.05, slots=2)
    driver.until(lambda: len(told(folder)) >= after)
    driver.kill()
    assert driver.gone_within(20.0), "Ray's processes outlived their driver"
    return told(folder)


def assert_whole(folder, before, trained):
    assert not set(trained) & set(before), "a told trial was trained again"
    history = History.read(folder / NAME)
    assert history.told[: len(before)] == before
    assert len(history.told) == len(set(history.told)) == len(history.trials) == 16
    assert "RUNNING" not in summary(history)


def test_the_ray_driver_killed(tmp_path):
    before = kill_ray_driver(tmp_path, 5)
    assert 5 <= len(before) < 16
    assert_whole(tmp_path, before, finish(tmp_path, "serial", 16))


@pytest.mark.slow
def test_the_ray_driver_killed_again_and_again(tmp_path):
    for after in (1, 4, 8, 12):
        before = kill_ray_driver(tmp_path, after)
    assert_whole(tmp_path, before, finish(tmp_path, "ray_tune", 16, slots=2))
