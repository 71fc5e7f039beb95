"""A run folder from a stranger: it is read, reported and exported, and nothing of it runs, nor reaches outside."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autopeft.errors import UsageError
from autopeft.files import refuse_links
from autopeft.orders import Orders
from autopeft.runs import open_run
from tests.reports import histories as h
from tests.security.stranger import Mark, call, module, pickled, snapshot, write_rows, write_search

Events = list[dict[str, Any]]
EVIL = "</script><script>alert(1)</script>\x1b]0;x\x07"
READING = [
    ("runs", ".."), ("front", "."), ("trials", "."), ("report", "."), ("leaderboard", "."), ("watch", "."),
    ("front", ".", "--json"), ("leaderboard", ".", "--output", "board.html"),
]  # fmt: skip


def write_run(folder: Path, events: Events) -> Path:
    folder.mkdir(parents=True)
    (folder / "ledger.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def read_all(run: Path) -> list[tuple[int, str]]:
    """Every reading command, in the run's folder."""
    return [call(*words, cwd=run) for words in READING]


def header(**changes: Any) -> Callable[[Events], None]:
    return lambda events: events[0].update(changes)


def each(kind: str, **changes: Any) -> Callable[[Events], None]:
    """Changes all events of a kind."""

    def change(events: Events) -> None:
        for event in events:
            if event["event"] == kind:
                event.update(changes)

    return change


MODEL = h.header()["model"]
DEEP: Any = []
for _ in range(500):
    DEEP = [DEEP]
CODE = {
    "metrics": {"cost": {"function": "/x/evil.py:cost", "goal": "maximize"}},
    "model": {"path": "/x/model", "trust_remote_code": True},
    "sampler": {"name": "strangers_module:Sampler"},
    "trackers": [{"name": "strangers_module"}, {"name": "mlflow", "uri": "http://evil.example"}],
    "task": {"name": "../../evil"},
}
# What a stranger may have written into a ledger, and whether it can be read all the same.
LEDGERS: dict[str, tuple[Callable[[Events], None], bool]] = {
    "a config with code": (lambda events: events[0]["config"].update(CODE), True),
    "names that are paths": (
        header(id="../../evil", model={**MODEL, "name": "../evil", "path": "/etc"}),
        True,
    ),
    "names that are markup": (
        header(
            dataset={**h.header()["dataset"], "label_names": [EVIL, "=1"]},
            model={**MODEL, "name": EVIL, "revision": EVIL},
            provenance={EVIL: EVIL, "versions": {EVIL: EVIL}},
        ),
        True,
    ),
    "errors that are markup": (
        lambda events: [e.update(error=EVIL) for e in events if e.get("status") == "FAILED"] and None,
        True,
    ),
    "params that are markup": (
        lambda events: [event["params"].update({EVIL: EVIL}) for event in events if event["event"] == "ask"] and None,
        True,
    ),
    "a number that is a path": (each("ask", number="../../evil"), False),
    "a number below 0": (each("tell", number=-1), False),
    "a number that is none": (each("ask", number=0.5), False),
    "a method that is a path": (each("ask", params={"method": "../../evil"}), False),
    "a method that is none": (each("ask", params={"method": {"a": 1}}), False),
    "metrics that are text": (each("tell", metrics={"accuracy": EVIL, "trainable_parameters": "x"}), False),
    "a metric that is no number": (each("tell", metrics={"accuracy": float("nan"), "trainable_parameters": 1}), False),
    "a metric without end": (each("tell", metrics={"accuracy": 0.5, "trainable_parameters": float("inf")}), False),
    "a metric above all reason": (each("tell", metrics={"accuracy": 1e308, "trainable_parameters": 1}), False),
    "a status of its own": (each("tell", status=EVIL), False),
    "a header that is none": (header(config=[], objectives={}, model="x"), False),
    "a header without keys": (lambda events: [events[0].pop(key) for key in ("objectives", "model")] and None, False),
    "objectives that are none": (header(objectives=[{"metric": 1}]), False),
    "no layers": (header(model={**MODEL, "n_layers": EVIL}), False),
    "nested deeply": (header(provenance={"a": DEEP}), True),
}


@pytest.mark.parametrize("kind", LEDGERS)
def test_a_ledger_of_a_stranger_is_read_or_refused_and_runs_nothing(tmp_path, kind):
    change, is_readable = LEDGERS[kind]
    events = json.loads(json.dumps(h.confirmed(h.search(12))))
    change(events)
    module(tmp_path / "strangers_module.py", tmp_path / "mark")
    run = write_run(tmp_path / "runs" / "run", events)
    before = snapshot(tmp_path)
    for words in READING:
        code, said = call(*words, cwd=run)
        assert code in ((0,) if is_readable or words[0] == "runs" else (2,)), (words, said)
        assert "internal error" not in said
        assert "\x1b" not in said
    after = snapshot(tmp_path)
    assert before.items() <= after.items()
    assert all(path.startswith("runs/run/") for path in after.keys() - before.keys())
    for page in run.glob("*.html"):
        assert page.read_text().count("<script>") <= 1


# ── what lies beside the ledger ─────────────────────────────────────────────────────────────────────────────────────


LINKS = ["report.html", "front.json", "front.png", "driver.json", "trials", "trials/00000", "trials/00000/worst.json",
         "cache", "cache/prefix", "adapters", "export", "orders", "config.yaml", "orders/stop.json"]  # fmt: skip


@pytest.mark.parametrize("name", LINKS)
def test_a_link_out_of_the_folder_is_not_followed(tmp_path, name):
    """What is written over, removed or shown would be a file of this user's."""
    run, home = write_run(tmp_path / "runs" / "run", h.search(3)), tmp_path / "home"
    for path in ("file", "00000/worst.json", "00000/trained.safetensors", "prefix/x", "stop.json"):
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text('[{"row": 1, "input": "mine", "expected": "a", "predicted": "b", "loss": 1.0}]')
    before = snapshot(home)
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).symlink_to(home / "file" if "." in name else home, target_is_directory="." not in name)
    others = [(name, ".") for name in ("export", "resume", "confirm", "track")]
    for words in (*READING, *others, ("add", ".", "--params", "x=1")):
        code, said = call(*words, cwd=run)
        assert code == (0 if words[0] == "runs" else 2), (words, said)
        assert words[0] == "runs" or f"{run / name} leads out of the run's folder" in said
    assert snapshot(home) == before


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    run = write_run(tmp_path / "run", h.search(3))
    (run / "orders").mkdir()
    os.mkfifo(run / "orders" / "add-0.json")
    with pytest.raises(UsageError, match="is no plain file"):
        open_run(run)


def test_a_link_within_the_folder_and_one_to_the_folder_are_fine(tmp_path):
    run = write_run(tmp_path / "disk" / "run", h.search(3))
    (run / "latest").symlink_to("trials")
    (run / "trials").mkdir()
    (tmp_path / "run").symlink_to(run)
    assert open_run(tmp_path / "run").front
    refuse_links(run)


@pytest.mark.parametrize("content", ["[]", "{", '{"now": []}', "[[[", '{"method": ["a"]}', "null", '"x"'])
def test_orders_of_a_stranger_are_data(tmp_path, content):
    (tmp_path / "orders").mkdir()
    for name in ("stop.json", "add-0.json"):
        (tmp_path / "orders" / name).write_text(content)
    orders = Orders(tmp_path)
    assert orders.stop() in ("", "soon", "now")
    found = orders.next_trial()
    assert found is None or isinstance(found[1], dict)


@pytest.mark.parametrize("content", ["[]", "{", "[1]", '[{"row": {}}]', '{"a": 1}', "null"])
def test_worst_rows_of_a_stranger_are_shown_or_refused(tmp_path, content):
    run = write_run(tmp_path / "run", h.search(3))
    for record in open_run(run).front:
        folder = run / "trials" / f"{record.number:05d}"
        folder.mkdir(parents=True)
        (folder / "worst.json").write_text(content)
    code, said = call("report", ".", cwd=run)
    assert code == (0 if content == "[]" else 2), said


# ── an export ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A search's folder, as it is handed on with its model and its data."""
    folder = tmp_path_factory.mktemp("stranger")
    write_rows(folder / "rows.csv")
    write_search(folder, space={"method": ["lora"], "lora": {"lr": 1e-2, "rank": 2}}, budget={"trials": 1}, keep="all")
    code, said = call("search", "my.yaml", "--name", "r", cwd=folder)
    assert code == 0, said
    return folder


@pytest.fixture
def stranger(kept, tmp_path):
    """A copy whose ledger says where it lies, a mark, and the run's folder."""
    folder = tmp_path / "got"
    shutil.copytree(kept, folder)
    ledger = folder / "runs" / "r" / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace(str(kept), str(folder)))
    return folder, tmp_path / "mark", folder / "runs" / "r"


def rewrite(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    first, *rest = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    head = json.loads(first)
    change(head)
    (run / "ledger.jsonl").write_text(json.dumps(head) + "\n" + "".join(rest))


def test_an_export_runs_no_code_of_the_config(stranger):
    """Its metrics are not computed, its trackers and its sampler are not made."""
    folder, mark, run = stranger
    code = f"{module(folder / 'evil.py', mark)}:cost"
    rewrite(run, lambda head: head["config"].update(metrics={"cost": {"function": code, "goal": "maximize"}}))
    found, said = call("export", run, "--pick", "best", "--to", "out", cwd=folder)
    assert found == 0, said
    assert not mark.exists()
    found, said = call("predict", "out", "rows.csv", cwd=folder)
    assert (found, mark.exists()) == (0, False), said


def test_an_export_runs_no_code_of_the_model(stranger):
    folder, mark, run = stranger
    module(folder / "model" / "modeling_own.py", mark)
    config = folder / "model" / "config.json"
    auto_map = {"AutoConfig": "modeling_own.C", "AutoModelForSequenceClassification": "modeling_own.M"}
    config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": auto_map}))
    rewrite(run, lambda head: head["config"]["model"].update(trust_remote_code=True))
    code, said = call("export", run, "--to", "out", cwd=folder)
    assert (code, mark.exists()) == (2, False)
    assert "runs code of its own: --trust-remote-code" in said


def test_an_export_fetches_no_kernel(stranger):
    folder, _, run = stranger
    rewrite(run, lambda head: head["chosen"].update(attention="strangers/kernel"))
    code, said = call("export", run, "--to", "out", cwd=folder)
    assert code == 2
    assert "expected the attention eager or sdpa" in said


def test_an_export_of_tensors_that_are_a_pickle(stranger):
    folder, mark, run = stranger
    for tensors in run.glob("trials/*/trained.safetensors"):
        tensors.write_bytes(pickled(mark))
    code, said = call("export", run, "--to", "out", cwd=folder)
    assert (code, mark.exists()) == (2, False), said
    assert "is no safetensors file" in said


def test_an_export_with_pickles_in_the_cache(stranger):
    folder, mark, run = stranger
    shutil.rmtree(run / "cache")
    found, said = call("export", run, "--pick", "best", "--to", "out", cwd=folder)
    assert found == 0, said
    for path in (run / "cache").rglob("*.npy"):
        np.save(path, np.array([Mark(mark)], dtype=object), allow_pickle=True)
    found, said = call("export", run, "--to", "again", cwd=folder)
    assert (found, mark.exists()) == (2, False)
    assert "is damaged" in said


def test_an_export_of_a_model_that_is_a_pickle(stranger):
    folder, mark, run = stranger
    (folder / "model" / "model.safetensors").unlink()
    (folder / "model" / "pytorch_model.bin").write_bytes(pickled(mark))
    from autopeft.model_folder import digest

    rewrite(run, lambda head: head["model"].update(revision=digest(str(folder / "model"))))
    code, said = call("export", run, "--to", "out", cwd=folder)
    assert (code, mark.exists()) == (2, False), said
