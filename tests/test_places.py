"""Machines as people have them: a locale without Unicode, `~` in paths. Real processes, where the environment counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autopeft import app
from autopeft.config import load
from autopeft.errors import ConfigError, UsageError
from autopeft.runs import open_run
from autopeft.trackers._store import tracking_uri
from tests.conftest import PROJECT
from tests.reports import histories as h

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


def autopeft(*words, cwd, **environment):
    env = {**{k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG"))}, **environment}
    env["PYTHONPATH"] = str(PROJECT)
    command = [sys.executable, "-m", "autopeft", *words]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, check=False)


@pytest.fixture
def run(tmp_path):
    """A run whose folder, labels and failures have characters that ASCII has not."""
    folder = tmp_path / "é → 😀"
    folder.mkdir()
    events = h.search(12)
    events[0] |= {"event": "search", "schema": 2, "seconds": 0.0}
    events[-1] |= {"error": "naïve 😀"} if events[-1]["event"] == "tell" else {}
    text = "".join(json.dumps({"seconds": 1.0, **event}) + "\n" for event in events)
    (folder / "ledger.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_a_locale_without_unicode_ends_nothing(run):
    for words in (["trials", run.name], ["report", run.name]):
        done = autopeft(*words, cwd=run.parent, **ASCII)
        assert done.returncode == 0, done.stderr.decode()
        assert done.stdout.isascii()
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "é → 😀" in page, "files are UTF-8, whatever the terminal shows"
    assert (run / "front.png").stat().st_size > 1000


def test_a_message_that_the_terminal_cannot_show_is_escaped(tmp_path):
    (tmp_path / "ö.yaml").write_text("modél: x\n", encoding="utf-8")
    done = autopeft("check", "ö.yaml", cwd=tmp_path, **ASCII)
    assert done.returncode == 2 and b"\\xf6.yaml" in done.stderr and b"Traceback" not in done.stderr


def test_home_is_expanded_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "..")
    (tmp_path / "x.csv").write_text("text,label\ngood,1\nbad,0\n")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "scores.py").write_text("def mine(predicted, true):\n    return 1.0\n")
    content = {
        "model": "~/m",
        "task": "text_classification",
        "data": {"train": "~/x.csv", "text": "text", "label": "label"},
        "space": "small",
        "metrics": {"mine": "~/scores.py:mine"},
        "budget": {"trials": 2},
        "runs": "~/r",
    }
    try:
        config = load(content)
    except ConfigError as error:
        pytest.fail(str(error))
    assert (config.model.path, config.data.train) == (str(tmp_path / "m"), str(tmp_path / "x.csv"))
    assert config.runs == str(tmp_path / "r") and config.metrics["mine"].function == f"{tmp_path}/scores.py:mine"
    assert load(content, ["runs=~/other"]).runs == str(tmp_path / "other")
    assert app.new_folder(config).parent == tmp_path / "r"
    assert tracking_uri("sqlite:///~/mine.db", Path("runs/a")) == f"sqlite:///{tmp_path}/mine.db"
    assert app.writable("~/out.csv") == tmp_path / "out.csv"
    with pytest.raises(UsageError, match=f"{tmp_path}/r/none is no run"):
        open_run("~/r/none")
