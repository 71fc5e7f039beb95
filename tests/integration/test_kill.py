"""The driver is killed with -9 at any moment: every told trial is there once, and none is trained again."""

from __future__ import annotations

import pytest

from autopeft import ledger
from autopeft.history import History
from autopeft.ledger import NAME
from autopeft.search import summary
from tests.executors.conversations import lines
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
