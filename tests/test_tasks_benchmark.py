"""benchmarks/tasks: which rows there are, which points are confirmed, and the line of the table, from a recorded run."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from autopeft import open_run
from tests.conftest import PROJECT

LEDGER = PROJECT / "tests" / "ledgers" / "schema-1" / "ledger.jsonl"  # the demo's: eight trials, two seeds confirmed


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    """benchmarks/tasks/run.py, as a module."""
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location("tasks_benchmark", PROJECT / "benchmarks" / "tasks" / "run.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path
    del sys.modules["shared"]


def test_every_benchmark_with_a_config_is_a_row_but_those_named(benchmark: ModuleType) -> None:
    configs = {path.parent.name for path in (PROJECT / "benchmarks").glob("*/config.yaml")}
    assert set(benchmark.rows()) == configs - set(benchmark.NO_ROW)
    assert set(benchmark.NO_ROW) | set(benchmark.ROWS) <= configs, "each name is a folder"


def test_a_line_is_of_the_retrainings_of_three_points(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "benchmark-demo").mkdir()
    (tmp_path / "benchmark-demo" / "ledger.jsonl").write_text(LEDGER.read_text())
    run = open_run(tmp_path / "benchmark-demo")
    assert "small point" not in benchmark.points(run), "none has a hundredth of a base this small"
    monkeypatch.setattr(sys.modules["shared"], "SMALL_SHARE", 0.5)
    chosen = benchmark.points(run)
    assert "full fine-tuning" not in chosen, "no such trial is complete"
    head, small = run.pick(chosen["frozen head"]), run.pick(chosen["small point"])
    assert head.params["method"] == "head" != small.params["method"]
    assert small.metrics["trainable_parameters"] <= 0.5 * run.history.header["model"]["parameters"]
    options = argparse.Namespace(runs=tmp_path, quick=False)
    cells = [cell.strip() for cell in benchmark.line("demo", benchmark.Row("digits"), options).strip("|").split("|")]
    values = [c.metrics["accuracy"] for c in run.history.confirmations if c.number == head.number]
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    assert len(values) == 2 and cells[5].startswith(f"{np.mean(values):.3f} ± {half:.3f}")
    assert cells[-1] == "–"
    assert cells[:2] == ["digits", "[demo](../demo/REPORT.md)"] and cells[3] == "accuracy"
    assert len(cells) == benchmark.HEAD[0].count("|") - 1


def test_a_confirmation_that_lost_a_worker_is_finished(benchmark: ModuleType) -> None:
    """The benchmarks' run.py goes on with what is left, and confirms nothing twice."""
    import shared

    run = open_run(LEDGER.parent)
    assert shared.is_confirmed(run)
    lost = SimpleNamespace(confirmations=run.history.confirmations[:-1], rounds=run.history.rounds)
    assert not shared.is_confirmed(SimpleNamespace(history=lost))
    assert not shared.is_confirmed(SimpleNamespace(history=SimpleNamespace(confirmations=[], rounds=[])))


def test_a_report_beside_the_code_quotes_no_rows(benchmark: ModuleType) -> None:
    import shared

    report = (
        "# r\n\n## Most wrong: best, trial 5\n\n| 1 | a text | x |\n\n## Curves\n\n## Most wrong: knee\n\n| 2 | b |\n"
    )
    assert shared.without_rows(report) == "# r\n\n## Curves\n\n"


def test_quick_scores_some_rows_of_validation_and_test(benchmark: ModuleType, tmp_path: Path) -> None:
    shared: Any = sys.modules["shared"]
    whole = pd.DataFrame({"text": [f"row {n}" for n in range(shared.QUICK_ROWS + 50)], "label": 0})
    for split, rows in (("train", len(whole)), ("validation", shared.QUICK_ROWS), ("test", len(whole))):
        whole[:rows].to_parquet(tmp_path / f"{split}.parquet")
    given = ["model=m", *(f"data.{split}={tmp_path / split}.parquet" for split in ("train", "validation", "test"))]
    found = shared.few(given, tmp_path / "few")
    assert found[:3] == given[:3], "train has `train_rows`, and validation is small enough"
    some = pd.read_parquet(found[3].removeprefix("data.test="))
    assert len(some) == shared.QUICK_ROWS and set(some["text"]) < set(whole["text"])
