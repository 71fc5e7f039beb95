"""Every executor keeps its family's promises, because it exists."""

from __future__ import annotations

import pytest

from autopeft import plugins
from autopeft.testing import check_executor

# With one slot each: the options that say so.
ONE_SLOT = {"auto": {"slots": 1}, "serial": {}, "ray_tune": {"slots": 1}, "packed": {"slots": 1}}


@pytest.mark.parametrize("name", plugins.names("executors"))
def test_executor(name, ray_up):
    options = ONE_SLOT[name]
    check_executor(lambda: plugins.load("executors", name)(**options))
