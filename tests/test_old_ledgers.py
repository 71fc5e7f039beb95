"""Runs that autopeft wrote with each schema of its ledger: read by every command, gone on with, confirmed, exported.

Both are the demo's. Schema 1: a ledger, eight trials told, two seeds confirmed. Schema 2: the folder, five trials told, the
tensors of three, two seeds confirmed. In both BASE and DIGEST stand for what differs between machines.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from autopeft import ledger, model_folder, open_run
from autopeft.app import leaderboard
from autopeft.history import History
from autopeft.tasks.digits import Digits
from tests.security.stranger import call

LEDGERS = Path(__file__).parent / "ledgers"
OLD = LEDGERS / "schema-1" / "ledger.jsonl"
DIGESTS = {1: "sha256:", 2: model_folder.PREFIX}  # schema → how its digests of models begin
READING = [
    ("runs", ".."), ("runs", "..", "--json"), ("front", "."), ("front", ".", "--json"), ("trials", "."),
    ("trials", ".", "--json"), ("report", "."), ("leaderboard", "."), ("leaderboard", ".", "--by", "all"),
    ("leaderboard", ".", "--format", "csv"), ("leaderboard", ".", "--json"), ("watch", "."),
]  # fmt: skip


def opened(schema, tmp_path):
    """A run in a folder, its base where this machine has it."""
    base = str(Digits().base("digits"))
    digest = model_folder.digest_as(base, DIGESTS[schema])
    folder = tmp_path / "demo-1"
    shutil.copytree(LEDGERS / f"schema-{schema}", folder)
    text = (folder / "ledger.jsonl").read_text().replace("BASE", base).replace("DIGEST", str(digest))
    (folder / "ledger.jsonl").write_text(text)
    return open_run(folder)


@pytest.fixture
def run(tmp_path):
    return opened(1, tmp_path)


def test_there_is_a_run_of_each_schema():
    """Whoever raises the schema keeps a run of the one before."""
    assert {path.name for path in LEDGERS.iterdir()} == {f"schema-{number}" for number in range(1, ledger.SCHEMA + 1)}


@pytest.mark.parametrize("schema", DIGESTS)
def test_every_reading_command_reads_it(schema, tmp_path):
    folder = opened(schema, tmp_path).folder
    for words in READING:
        code, said = call(*words, cwd=folder)
        assert code == 0, (words, said)
    assert all(
        (folder / name).is_file() for name in ("front.json", "front.csv", "front.png", "report.html", "report.md")
    )


def test_a_run_of_the_current_schema_goes_on_is_confirmed_and_exported(tmp_path):
    run = opened(2, tmp_path)
    assert [record.number for record in run.front] == [4, 3, 0]
    assert all(run.adapter_folder(record) for record in run.front), "their tensors are there"
    folder = run.export("best", tmp_path / "adapter")
    assert not [line for line in (folder / "README.md").read_text().splitlines() if "trained again" in line]
    lines = (run.folder / "ledger.jsonl").read_text().splitlines(keepends=True)
    asked = next(at for at, line in enumerate(lines) if '"event": "ask", "number": 4' in line)
    (run.folder / "ledger.jsonl").write_text("".join(lines[:asked]))  # as if its driver had died before its last trial
    more = open_run(run.folder).resume(quiet=True)
    assert [record.number for record in more.history.records if record.is_complete] == list(range(5))
    assert more.history.records[4].params == run.history.records[4].params
    more.confirm(seeds=1, which=["best"], quiet=True)
    names = [confirmation.name for confirmation in History.read(run.folder / "ledger.jsonl").confirmations]
    assert names == ["majority", f"trial {more.pick('best').number}"]


def test_it_is_read_with_its_counts_by_class(run):
    assert run.history.header["schema"] == 1
    assert len(run.history.told) == 8
    assert all(set(record.detail) == {"predicted", "correct"} for record in run.history.records)
    report = run.classification_report("best")
    assert list(report["class"]) == ["5", "6", "7", "8", "9", "macro average", "weighted average"]
    assert {"validation_recall", "test_recall"} <= set(report)


def test_its_reports_and_its_place_on_a_leaderboard(run):
    html, markdown = run.report()
    assert "majority class" in markdown.read_text()
    assert html.stat().st_size > 10_000
    assert "majority class" in leaderboard([run.folder])


def test_it_goes_on_and_is_confirmed_again(run):
    before = OLD.read_text().count("\n")
    more = run.resume(["budget.trials=9"], quiet=True)
    assert (run.folder / "ledger.jsonl").read_text().count("\n") > before
    assert [record.number for record in more.history.records if record.is_complete] == list(range(9))
    assert set(more.history.records[8].detail) == {"rows", "predicted", "correct", "confused"}
    confirmed = len(more.history.confirmations)
    more.confirm(seeds=1, which=["best"], quiet=True)
    assert len(History.read(run.folder / "ledger.jsonl").confirmations) == confirmed + 1


def test_what_changed_since_is_refused_by_the_old_digest(run, tmp_path):
    text = (run.folder / "ledger.jsonl").read_text()
    digest = run.history.header["model"]["revision"]
    other = tmp_path / "other"
    shutil.copytree(run.folder, other)
    (other / "ledger.jsonl").write_text(text.replace(digest, "sha256:0123456789abcdef"))
    with pytest.raises(Exception, match="has changed since this search began"):
        open_run(other).resume(["budget.trials=9"], quiet=True)


def test_an_export_that_was_trained_again_says_where_its_score_is_another(run, tmp_path, capsys):
    """As on another device: the card says the score of the search, and that of the weights that it lies beside."""
    ledger = run.folder / "ledger.jsonl"
    best = run.pick("best")
    score = best.metrics["accuracy"]
    ledger.write_text(ledger.read_text().replace(f'"accuracy": {score}', '"accuracy": 0.99'))
    folder = open_run(run.folder).export("best", tmp_path / "adapter")
    assert f"trial {best.number} was not kept: training it again" in (said := capsys.readouterr().err)
    assert "and had 0.9900 in the search" in said
    card = (folder / "README.md").read_text()
    assert "0.9900 | validation, one seed" in card
    assert "validation, of these weights: trained again for this export" in card
    assert not (run.folder / "cache" / "prefix").exists()
