"""Every task on real data: searches each benchmark's config, confirms three points of it, and prints one table.

`python benchmarks/tasks/run.py` runs all of them one after the other, on two cores; `--only NAME` one, several times for
several; `--quick` all of them in miniature, two at a time: it shows that each goes all the way, and its scores say
nothing. Each is a process of its own with the benchmark's own run.py; what is done already is not done again (`--runs`).
The table goes to TABLE.md beside this file when everything ran at its whole size.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from shared import points  # noqa: E402

TRIVIAL = "majority"  # what the ledger calls the trivial baseline of any task


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        task: What is learned, in words.
        whole: Overrides of the benchmark's config: its size here fits the time of all rows. With --quick they are its own.
        is_own_report: Whether the benchmark's own REPORT.md is written; else it holds a larger run already.
    """

    task: str
    whole: tuple[str, ...] = ()
    is_own_report: bool = True


# Sizes: some 80,000 tokens a trial of MiniLM, half a minute of one core in bf16, a minute in fp32.
ROWS: Mapping[str, Row] = {
    "sst2": Row("sentiment of a sentence", ("space=small_heads", "budget.trials=24", "data.train_rows=1500"), False),
    "financial_phrasebank": Row("sentiment of financial news", ("data.train_rows=1000", "training.epochs=2")),
    "cola": Row("is a sentence acceptable", ("data.train_rows=2000",)),
    "rte": Row("does one text follow from another", ("data.train_rows=600",)),
    "mrpc": Row("do two texts say the same", ("data.train_rows=800",)),
    "restaurant_ratings": Row("rating of a pair, as a number", ("training.epochs=2",)),
    "recommendation": Row("restaurants of a user, ranked", ("training.epochs=1",)),
    "clinc150": Row("intent of a message, or none", ("data.train_rows=3020", "training.epochs=3")),
    "trec": Row("two labels of a question", ("data.train_rows=2000",)),
    "fewclue_eprstmt": Row("sentiment, Chinese"),
    "fewclue_tnews": Row("topics, Chinese"),
    "fewclue_bustm": Row("pairs, Chinese"),
    "cifar10": Row("pictures", ("budget.trials=24", "data.train_rows=1000"), False),
    "cifar10_vit": Row("pictures of classes new to the base, vision transformer"),
    "fsdd": Row("spoken digits"),
    "esc10": Row("sounds"),
}
# Benchmarks with a config that are no row: a GPU's, and others on data that has its row.
NO_ROW = ("language_model", "sst2_heads", "cifar10_heads", "cifar10_hundredth")


def rows() -> dict[str, Row]:
    """The rows above, then every other benchmark with a config, at its own size."""
    found = sorted(path.parent.name for path in HERE.parent.glob("*/config.yaml"))
    others = [name for name in found if name not in ROWS and name not in NO_ROW]
    return {**{name: row for name, row in ROWS.items() if name in found}, **{name: Row(name) for name in others}}


def main() -> None:
    known = rows()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(known), help="this one; several times for several")
    parser.add_argument("--quick", action="store_true", help="all of them in miniature")
    parser.add_argument("--runs", type=Path, default=Path("runs", "tasks"), help="folder of run folders")
    parser.add_argument("--seeds", type=int, help="fresh seeds to confirm with; 3, or 2 with --quick")
    options = parser.parse_args()
    names, begun = options.only or list(known), time.monotonic()

    def one(name: str) -> str | None:
        """A row's line; None where its run failed."""
        start = time.monotonic()
        print(f"… {name}", file=sys.stderr, flush=True)
        if not run(name, known[name], options):
            return None
        found = line(name, known[name], options)
        print(f"{found}  <!-- {(time.monotonic() - start) / 60:.1f} minutes -->", flush=True)
        return found

    # A quick row is one process of one thread; a whole one has two slots.
    with ThreadPoolExecutor(2 if options.quick else 1) as pool:
        found = dict(zip(names, pool.map(one, names), strict=True))
    lines = [row for row in found.values() if row is not None]
    failed = [name for name, row in found.items() if row is None]
    table = "\n".join([*HEAD, *lines]) + "\n"
    print(f"\n{table}\n{(time.monotonic() - begun) / 60:.0f} minutes; failed: {', '.join(failed) or 'none'}")
    if not (options.quick or options.only or failed):
        (HERE / "TABLE.md").write_text(table)
    sys.exit(1 if failed else 0)


def run(name: str, row: Row, options: argparse.Namespace) -> bool:
    """Searches and confirms by the benchmark's own run.py. Returns whether it ended well."""
    seeds = ["--seeds", str(options.seeds or (2 if options.quick else 3))]
    command = [sys.executable, str(HERE.parent / name / "run.py"), "--points", "--runs", str(options.runs), *seeds]
    if options.quick:
        command.append("--quick")
    elif not row.is_own_report:
        command.append("--no-report")
    for override in () if options.quick else row.whole:
        command += ["--set", override]
    return subprocess.run(command).returncode == 0


HEAD = [
    "| task | data | rows to train on, to test | score | trivial | frozen head | small point | full fine-tuning |",
    "|---|---|---|---|---|---|---|---|",
]


def line(name: str, row: Row, options: argparse.Namespace) -> str:
    """A row of the table, from the run's ledger: means over fresh seeds on the test split, with 95 % intervals."""
    from autopeft import app

    found = app.open_run(options.runs / f"benchmark-{name}{'-quick' if options.quick else ''}")
    history, metric = found.history, found.history.objectives[0].metric
    sizes, chosen = history.header["dataset"]["sizes"], points(found)
    cells = [score(found, metric, TRIVIAL)]
    for title in ("frozen head", "small point", "full fine-tuning"):
        cells.append(score(found, metric, chosen[title]) if title in chosen else "–")
    if "small point" in chosen:
        record = found.pick(chosen["small point"])
        share = record.metrics["trainable_parameters"] / history.header["model"]["parameters"]
        cells[2] += f": {found.describe(record.params)}, {share:.2%} of the parameters"
    data = f"[{name}](../{name}/REPORT.md)" if row.is_own_report and not options.quick else name
    return f"| {row.task} | {data} | {sizes['train']:,}, {sizes['test']:,} | {metric} | {' | '.join(cells)} |"


def score(run: Any, metric: str, which: str) -> str:
    """Mean and interval of the retrainings of `trial=17`, or of the trivial baseline, which has none."""
    from autopeft.reports.statistics import interval

    name = which.replace("trial=", "trial ")
    values = [c.metrics[metric] for c in run.history.confirmations if c.name == name and metric in c.metrics]
    if not values:
        return "–"
    if name == TRIVIAL:
        return f"{values[-1]:.3f}"
    mean = interval(values)
    return f"{mean.mean:.3f}" + (f" ± {mean.half_width:.3f}" if mean.half_width is not None else "")


if __name__ == "__main__":
    main()
