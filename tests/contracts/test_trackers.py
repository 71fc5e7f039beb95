"""Every tracker keeps its family's contract by existing."""

import pytest

from autopeft import plugins, testing
from tests.reports import histories as h
from tests.trackers.stores import run_folder


@pytest.mark.parametrize("check", testing.TRACKER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", plugins.names("trackers"))
def test_contract(name, check, tmp_path):
    folder = run_folder(tmp_path)
    check(lambda: plugins.load("trackers", name)(folder, describe=h.describe), h.search(12))
