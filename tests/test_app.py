"""What the library says before it works for nothing."""

import json

import pytest

from autopeft.app import writable
from autopeft.errors import UsageError
from autopeft.history import History
from autopeft.reports import figure
from autopeft.runs import Run
from tests.reports import histories as h


def test_where_a_file_cannot_go_is_said_first(tmp_path):
    assert writable(tmp_path / "new.csv") == tmp_path / "new.csv"
    with pytest.raises(UsageError, match=r"no folder .*nowhere"):
        writable(tmp_path / "nowhere" / "new.csv")
    with pytest.raises(UsageError, match="it is a folder"):
        writable(tmp_path)


def test_the_summary_says_what_front_json_says(tmp_path):
    run = Run(tmp_path, History(h.confirmed(h.search(30))))
    run.write_front()
    said = run.summary()
    assert said.pop("run") == str(tmp_path)
    assert said == json.loads((tmp_path / "front.json").read_text())
    assert all(member["confirmed"]["seeds"] == 5 for member in said["front"])


def test_the_picture_has_the_runs_name(tmp_path):
    run = Run(tmp_path / "my-1", History(h.search(12)))
    run.folder.mkdir()
    run.write_front()
    figure.front_png(run.history, tmp_path / "named.png", run.describe, "my-1")
    assert (run.folder / "front.png").read_bytes() == (tmp_path / "named.png").read_bytes()
