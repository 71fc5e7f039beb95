"""Where a search begins, and what the library says before it works for nothing."""

import json

import pytest

from autopeft import app
from autopeft.app import writable
from autopeft.config import load
from autopeft.errors import UsageError
from autopeft.executors.ray_tune import RayTune
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


def config(folder):
    return load({"model": "digits", "task": "digits", "data": {}, "space": "digits", "budget": {"trials": 1},
                 "runs": str(folder)})  # fmt: skip


def test_searches_that_start_together_get_a_folder_each(tmp_path):
    """Before either has a ledger."""
    found = [app.new_folder(config(tmp_path / "runs")).name for _ in range(3)]
    assert found == ["search-1", "search-2", "search-3"]


def test_a_plan_says_which_layers_no_method_acts_on():
    plan = app.Plan(4, 0, {}, {}, 10, {}, 0.0, 1, 1, None, {"precision": "fp32", "attention": "eager"}, ("mlp.odd",))
    assert any("mlp.odd: no method acts on these layers; model.kinds" in line for line in plan.lines())
    assert plan.to_json()["unknown_layers"] == ["mlp.odd"]


class Prepared(Exception):
    """The search went so far."""


@pytest.mark.parametrize(("ledger", "is_taken"), [("", False), ('{"event": "sea', False), ("whole", True)])
def test_a_ledger_that_never_began_is_begun_and_no_other(tmp_path, monkeypatch, ledger, is_taken):
    """Its driver died, or the disk was full, before its first line was whole: the same command goes on."""

    def prepare(config, folder, executor):
        raise Prepared

    monkeypatch.setattr(app.wiring, "prepare", prepare)
    whole = '{"event": "search", "schema": 1, "seconds": 0.0}\n'
    (tmp_path / "ledger.jsonl").write_text(whole if ledger == "whole" else ledger)
    with pytest.raises(UsageError if is_taken else Prepared):
        app.search(config(tmp_path), tmp_path)


def test_a_search_that_never_began_leaves_no_empty_folder(tmp_path, monkeypatch):
    def prepare(config, folder, executor):
        (folder / "cache" / "data").mkdir(parents=True)
        if files:
            (folder / "cache" / "data" / "rows").write_text("what took an hour")
        raise Prepared

    monkeypatch.setattr(app.wiring, "prepare", prepare)
    monkeypatch.setattr(app, "new_folder", lambda config: tmp_path / "mine-1")
    for files in (False, True):
        with pytest.raises(Prepared):
            app.search(config(tmp_path))
        assert (tmp_path / "mine-1").exists() is files


def test_of_two_that_begin_one_ledger_the_second_is_refused(tmp_path, monkeypatch):
    """Both saw none, and prepared; the first one's line stays the only one."""
    path = tmp_path / "ledger.jsonl"
    line = '{"event": "search", "schema": 1, "seconds": 0.0}\n'
    monkeypatch.setattr(app.wiring, "prepare", lambda config, folder, executor: path.write_text(line))
    with pytest.raises(UsageError, match="holds a run already"):
        app.search(config(tmp_path), tmp_path)
    assert path.read_text() == line


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


def plan(slots, memory, trials=20):
    costs = {"head": (10.0, memory), "lora": (30.0, memory)}
    ranges = {"head": (10, 10), "lora": (20, 90)}
    return app.Plan(
        4, 1, ranges, {}, 10, costs, 200.0, slots, 1, trials, {"precision": "fp32", "attention": "eager"}, ()
    )


def test_a_plan_says_what_was_measured_and_nothing_else():
    known, unknown = plan(4, 2**21), plan(None, None)
    assert known.seconds == (20 * 20.0 + 200.0) / 4
    assert "about 30.0 s a trial, 2 MiB" in "\n".join(known.lines())
    assert "about 2.5 minutes for 20 trials, 4 at once" in known.lines()[-1]
    assert unknown.seconds is None
    assert unknown.to_json()["peak_memory_bytes"] == {}
    assert not any("MiB" in line for line in unknown.lines())
    assert "about 10.0 minutes for 20 trials, divided by how many Ray runs at once" in unknown.lines()[-1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 8),
        ({"slots": 3}, 3),
        ({"cpus_per_trial": 4}, 2),
        ({"cpus_per_trial": 0.5}, 16),
        ({"gpus_per_trial": 0.5}, None),
        ({"slots": 3, "address": "10.0.0.1:6379"}, None),
    ],
)
def test_slots_are_what_ray_will_have(monkeypatch, options, expected):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert RayTune(**options).processes == expected


def test_a_search_says_at_once_what_it_does(tmp_path, monkeypatch, capsys):
    """Also where its output is no terminal; unless it is to be quiet."""

    def prepare(config, folder, executor):
        raise Prepared

    monkeypatch.setattr(app.wiring, "prepare", prepare)
    for quiet, said in ((False, "preparing: data, model, and what is measured to choose\n"), (True, "")):
        with pytest.raises(Prepared):
            app.search(config(tmp_path), tmp_path / str(quiet), quiet=quiet)
        assert capsys.readouterr().err == said


def test_what_is_seen_in_the_data_is_said_kept_and_reported(tmp_path, capsys):
    """On stderr, in the ledger's first line, and in the report; the rows of each split stand in splits.json."""
    from models import WORDS, bert

    (tmp_path / "model").mkdir()
    rows = [{"text": f"{WORDS[row % 10]} day", "label": ("pos", "pos ")[row % 2]} for row in range(60)]
    rows[3]["text"] = ""
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    data = {"train": str(tmp_path / "rows.json"), "test_share": 0.2, "validation_share": 0.2, "on_fault": "skip"}
    run = app.run({
        "model": bert(tmp_path / "model"), "task": "text_classification", "data": data, "space": {"method": ["head"]},
        "training": {"steps": 2, "precision": "fp32", "attention": "eager"}, "executor": "serial", "trackers": [],
        "budget": {"trials": 1}, "runs": str(tmp_path / "runs"),
    })  # fmt: skip
    origin = run.history.header["dataset"]["origin"]
    assert origin["notes"][0] == "left out: train has 1 row with an empty 'text': row 3"
    assert "the labels 'pos', 'pos ' are classes of their own, and look alike" in origin["notes"]
    assert any("rows of test are in train, too" in note for note in origin["notes"])
    said, report = capsys.readouterr().err, (run.folder / "report.md").read_text()
    for note in origin["notes"]:
        assert f"note: {note}\n" in said
    assert "Data: left out: train has 1 row with an empty" in report
    splits = json.loads((run.folder / "splits.json").read_text())
    assert sorted(row for split in splits.values() for row in split["rows"]) == [row for row in range(60) if row != 3]
