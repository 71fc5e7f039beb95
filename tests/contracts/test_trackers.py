"""Every tracker keeps its family's contract by existing."""

import pytest

from autopeft import plugins, testing
from tests.reports import histories as h
from tests.trackers.stores import run_folder


@pytest.mark.parametrize("check", testing.TRACKER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", plugins.names("trackers"))
def test_contract(name, check, tmp_path):
    folder = run_folder(tmp_path)
    plugin = plugins.load("trackers", name)
    check(lambda: plugin(folder, **plugins.taken(plugin, {"describe": h.describe})), h.search(12))


class Kept:
    """A tracker of somebody else's that takes nothing but its folder."""

    def __init__(self, folder):
        self.folder = folder

    def start(self, history):
        pass

    def handle(self, event):
        pass

    def finish(self):
        pass


class Doubling(Kept):
    """Wrong: filling it again adds everything again."""

    def fill(self, history):
        return {"runs": len(history.records)}


def test_the_least_tracker_keeps_the_contract(tmp_path):
    for check in testing.TRACKER_CHECKS:
        check(lambda: Kept(tmp_path), h.search(12))


def test_the_contract_finds_a_tracker_that_fills_twice(tmp_path):
    with pytest.raises(AssertionError, match="a second time"):
        testing.check_tracker_fills_once(lambda: Doubling(tmp_path), h.search(12))
