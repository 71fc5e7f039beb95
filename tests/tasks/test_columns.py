"""Columns on the disk are the columns that were written, and a set larger than memory is read, split and encoded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from autopeft.tasks._columns import ArrowColumn, Picked, on_disk, picked
from autopeft.tasks._tables import read_file

PROJECT = Path(__file__).resolve().parents[2]
VALUES = [f"row {index}" if index % 7 else None for index in range(1000)]


@pytest.fixture
def column():
    batches = [pa.record_batch([pa.array(VALUES[at : at + 64])], names=["x"]) for at in range(0, 1000, 64)]
    return ArrowColumn(on_disk(batches)["x"])


def test_a_column_on_the_disk_is_what_was_written(column):
    assert len(column) == 1000
    assert list(column) == VALUES
    assert (column[3], column[-1], column[990:2000]) == (VALUES[3], VALUES[-1], VALUES[990:])


def test_rows_are_picked_in_any_order_and_picked_again(column):
    rows = np.random.default_rng(0).permutation(1000)[:700]
    once = picked(column, rows)
    assert isinstance(once, Picked)
    assert list(once) == [VALUES[row] for row in rows]
    again = picked(once, np.array([5, 3, 699]))
    assert list(again) == [VALUES[rows[5]], VALUES[rows[3]], VALUES[rows[699]]]
    assert again[1] == VALUES[rows[3]]
    assert picked(VALUES, np.array([2, 0])) == [VALUES[2], VALUES[0]]


def test_whether_a_column_of_text_is_whole_numbers_is_decided_by_all_rows(tmp_path, monkeypatch):
    """The parts of a long file agree: one entry at its end makes it text."""
    monkeypatch.setattr("autopeft.tasks._separated.ROWS", 10)
    numbers = [str(index) for index in range(35)]
    (tmp_path / "a.csv").write_text("n,t\n" + "\n".join(f"{n},{n}" for n in numbers) + "\n,007\n")
    table = read_file(tmp_path / "a.csv")
    assert table["n"] == [*range(35), None]
    assert table["t"] == [*numbers, "007"]


LIMITED = """
import resource, sys
from pathlib import Path

folder, ending = Path(sys.argv[1]), sys.argv[2]
from autopeft.tasks.text_classification import TextClassification
from autopeft.training.data import prepare
from autopeft.training.setup import Setup
import pandas, pyarrow.parquet, transformers, torch
from transformers import AutoTokenizer
AutoTokenizer.from_pretrained(folder / "model")  # its imports are not what is bounded
import numpy as np
import autopeft.tasks._texts as texts
from autopeft.tasks import Ragged
# Nor is the tokenizer, which takes half a minute for these.
texts.encode_rows = lambda _, __, columns, ___: {"input_ids": Ragged.of([[1]] * len(columns[0]), np.int32, 0)}

def used():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) * 1024

before = used()
# Pages that are no file's, beyond those that are there by now.
peak = [0]
import threading, time
over = threading.Event()
def watch():
    while not over.is_set():
        peak[0] = max(peak[0], used() - before)
        time.sleep(0.01)
threading.Thread(target=watch, daemon=True).start()
data = {"train": str(folder / f"rows{ending}"), "text": "text", "label": "label", "validation_share": 0.1}
model = str(folder / "model")
setup = Setup.of(model=model, task="text_classification", data=data, cache=str(folder / ending), max_length=4)
found = prepare(setup)
over.set()
print(peak[0], sum(len(split) for split in found.splits.values()))
"""


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_set_larger_than_what_may_be_held_is_read_split_and_encoded(tmp_path, ending):
    """240 MB of texts, and a bound of 120 on what is held of them."""
    import pandas as pd
    from models import bert

    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc, which tells what a process holds")
    (tmp_path / "model").mkdir()
    bert(tmp_path / "model")
    texts = [f"{'word' * 1000}{index}" for index in range(60_000)]
    frame = pd.DataFrame({"text": texts, "label": [("no", "yes")[index % 2] for index in range(len(texts))]})
    (frame.to_csv if ending == ".csv" else frame.to_parquet)(tmp_path / f"rows{ending}", index=False)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), ending], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    peak, rows = map(int, done.stdout.split())
    assert rows == len(texts)
    assert peak < 120e6, f"{peak / 1e6:.0f} MB of 240 were held"
