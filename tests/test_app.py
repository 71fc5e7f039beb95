"""What the library says before it works for nothing."""

import pytest

from autopeft.app import writable
from autopeft.errors import UsageError


def test_where_a_file_cannot_go_is_said_first(tmp_path):
    assert writable(tmp_path / "new.csv") == tmp_path / "new.csv"
    with pytest.raises(UsageError, match=r"no folder .*nowhere"):
        writable(tmp_path / "nowhere" / "new.csv")
    with pytest.raises(UsageError, match="it is a folder"):
        writable(tmp_path)
