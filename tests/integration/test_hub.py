"""A model and a data set from a hub: fetched once, and of one commit from the search to the export."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub import Hub, serving
from tests.models import WORDS, bert

PROJECT = Path(__file__).resolve().parent.parent.parent
CONFIG = """
model: acme/tiny-bert
task: text_classification
data: {hub: acme/reviews, text: text, label: label}
space: small
executor: serial
trackers: [console]
budget: {trials: 2}
"""


@pytest.fixture
def hub(tmp_path):
    """A model, and a data set with train and test."""
    (tmp_path / "model").mkdir()
    (tmp_path / "data").mkdir()
    bert(tmp_path / "model")
    draw = random.Random(0)
    for split, n_rows in (("train", 120), ("test", 40)):
        rows = [" ".join(draw.choices(WORDS, k=5)) for _ in range(n_rows)]
        lines = [f"{row},{'yes' if 'good' in row or 'fine' in row else 'no'}" for row in rows]
        (tmp_path / "data" / f"{split}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    return Hub({"acme/tiny-bert": tmp_path / "model"}, {"acme/reviews": tmp_path / "data"})


def autopeft(folder, address, *words, **more):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(folder / "home"), "PYTHONPATH": str(PROJECT)} | more
    command = [sys.executable, "-m", "autopeft", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.timeout(600)
def test_from_a_hub_to_an_export_of_one_commit(hub, tmp_path):
    (tmp_path / "my.yaml").write_text(CONFIG)
    with serving(hub) as address:
        done = autopeft(tmp_path, address, "search", "my.yaml", "--json")
        assert done.returncode == 0, done.stderr
        header = json.loads((tmp_path / "runs/my-1/ledger.jsonl").read_text().splitlines()[0])
        commit = header["model"]["revision"]
        assert commit == hub.commit(tmp_path / "model")
        assert any(f"/acme/tiny-bert/resolve/{commit}/" in path for path in hub.asked)
        assert header["model"]["name"] == "acme/tiny-bert"
        assert header["dataset"]["sizes"] == {"train": 108, "validation": 12, "test": 40}

        # `main` moves on, to a model that could not even be loaded.
        (tmp_path / "model" / "config.json").write_text("{}")
        hub.asked.clear()
        for words in (["resume", "runs/my-1", "--set", "budget.trials=3"], ["export", "runs/my-1", "--to", "out"]):
            done = autopeft(tmp_path, address, *words)
            assert done.returncode == 0, done.stderr
        assert not [path for path in hub.asked if "/acme/tiny-bert/" in path and commit not in path]
    assert json.loads((tmp_path / "out" / "autopeft.json").read_text())["revision"] == commit

    (tmp_path / "new.csv").write_text("text\ngood day\n")
    done = autopeft(tmp_path, address, "predict", "out", "new.csv", HF_HUB_OFFLINE="1")  # it is down now
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("label,p(no),p(yes)\n")


def test_what_a_hub_lacks_is_exit_code_5_and_what_is_no_model_2(hub, tmp_path):
    (tmp_path / "my.yaml").write_text(CONFIG)
    with serving(hub) as address:
        for change, message in (
            ("model=acme/tiny-bart", "error: the model 'acme/tiny-bart' cannot be had: acme/tiny-bart is not a"),
            ("data.hub=acme/nothing", "error: the data set 'acme/nothing' cannot be had: "),
        ):
            done = autopeft(tmp_path, address, "search", "my.yaml", "--set", change)
            assert done.returncode == 5
            assert done.stderr.splitlines()[-1].startswith(message), "said at the end, after what was being done"
        (tmp_path / "model" / "config.json").write_text("{}")
        done = autopeft(tmp_path, address, "search", "my.yaml")
        assert done.returncode == 2, done.stderr
        assert "model: acme/tiny-bert has no config that can be loaded" in done.stderr
