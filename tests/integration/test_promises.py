"""Promises that no other test holds whole: the same bytes twice, the score of an export, what a resume refuses."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from tests.security.stranger import call, write_rows, write_search


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """Two folders in which the same search ran."""
    folders = []
    for name in ("first", "second"):
        folder = tmp_path_factory.mktemp(name) / "job"
        folder.mkdir()
        write_rows(folder / "rows.csv")
        write_search(folder, seed=3, keep="all")
        code, said = call("search", "my.yaml", "--name", "r", cwd=folder)
        assert code == 0, said
        folders.append(folder)
    return folders


def test_the_same_seed_gives_the_same_leaderboard_byte_for_byte(twice):
    for words in (("--by", "all"), ("--by", "method"), ()):
        one, other = (call("leaderboard", "runs/r", "--format", "csv", *words, cwd=folder)[1] for folder in twice)
        assert one == other
        assert one.count("\n") > 2
    one, other = (
        [path.read_bytes() for path in sorted(folder.glob("runs/r/trials/*/trained.safetensors"))] for folder in twice
    )
    assert one == other
    assert len(one) == 2


def test_an_exported_adapter_has_the_score_that_the_ledger_has(twice):
    """Loaded anew, it is asked about the validation rows; their labels give the score."""
    folder = twice[0]
    code, said = call("export", "runs/r", "--pick", "best", "--to", "out", cwd=folder)
    assert code == 0, said
    assert call("predict", "out", "rows.csv", "--output", "answers.csv", cwd=folder)[0] == 0
    answers, rows = pd.read_csv(folder / "answers.csv"), pd.read_csv(folder / "rows.csv")
    chosen = json.loads((folder / "runs" / "r" / "splits.json").read_text())["validation"]["rows"]
    found = (answers["label"][chosen] == rows["label"][chosen]).mean()
    metrics = json.loads((folder / "out" / "autopeft.json").read_text())["metrics"]
    assert found == pytest.approx(metrics["accuracy"], abs=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("seed=9", "seed: 3 → 9"),
        ("training.steps=7", "training.steps: 2 → 7"),
        ("space.lora.rank=3", "space.lora.rank: 2 → 3"),
        ("sampler=tpe", 'sampler.name: "random" → "tpe"'),
    ],
)
def test_a_resume_with_another_config_is_refused_and_shows_the_difference(twice, change, said):
    before = (twice[1] / "runs" / "r" / "ledger.jsonl").read_bytes()
    code, found = call("resume", "runs/r", "--set", change, cwd=twice[1])
    assert code == 2
    assert said in found
    assert (twice[1] / "runs" / "r" / "ledger.jsonl").read_bytes() == before


def test_a_run_of_a_later_version_is_refused(twice, tmp_path):
    first, rest = (twice[1] / "runs" / "r" / "ledger.jsonl").read_text().split("\n", 1)
    (tmp_path / "ledger.jsonl").write_text(json.dumps({**json.loads(first), "schema": 99}) + "\n" + rest)
    for words in (("resume",), ("front",), ("report",), ("export",), ("confirm",)):
        code, said = call(*words, str(tmp_path), cwd=tmp_path)
        assert (code, "this autopeft reads up to" in said) == (2, True)
