"""Do flips and shifts of training pictures help? CIFAR-10 with MobileNetV2: three configurations, without and with them.

    python benchmarks/augmentation/run.py            # a quarter of an hour of one core
    python benchmarks/augmentation/run.py --rows 2000 --epochs 8 --seeds 5

One JSON line for each configuration and each way of changing pictures: accuracy and loss on validation, mean and half width
of the 95 % interval over the seeds; `gain`, the same of the difference to no changes, seed by seed; and CPU seconds of a
trial. All ways have the same rows, seeds and learning rates. Without changes, the activations of frozen blocks are cached.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shared import shared

# The points of cifar10/REPORT.md, with their learning rates.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "head": {"method": "head", "head.lr": 2.1e-3},
    "ia3": {"method": "ia3", "ia3.lr": 9.6e-3, "ia3.layers": [0, 1, 2, 4, 5, 6, 7, 8, 9, 11, 12, 14, 15],
            "ia3.modules": "all"},
    "full": {"method": "full", "full.lr": 2.7e-4},
}  # fmt: skip
WAYS: dict[str, list[str]] = {"none": [], "flip": ["flip"], "flip, crop": ["flip", "crop"]}


def trial(setup: Any, params: Mapping[str, Any], seed: int, rows: int) -> dict[str, float]:
    """Trains one configuration, and scores it on so many rows of validation, drawn by chance, the same for all."""
    from autopeft.training.loop import Worker
    from autopeft.training.measure import some_rows
    from autopeft.trial import Status, Trial

    worker = Worker(setup)
    splits = dict(worker.data.splits)
    splits["validation"] = some_rows(splits["validation"], rows, 0)
    worker.data = replace(worker.data, splits=splits)
    start = time.process_time()
    *_, result = worker.evaluate(Trial(seed, params, seed))
    if result.status is not Status.COMPLETE:
        sys.exit(f"{params['method']}: {result.error}")
    return {**{name: result.metrics[name] for name in ("accuracy", "loss")}, "seconds": time.process_time() - start}


def shown(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and half width of the 95 % interval."""
    from autopeft.reports.statistics import interval

    found = interval(values)
    return {"mean": round(found.mean, 4), "half_width": found.half_width and round(found.half_width, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000, help="training rows")
    parser.add_argument("--validation-rows", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=list(CONFIGURATIONS))
    options = parser.parse_args()
    import torch

    from autopeft.training.setup import Setup

    torch.set_num_threads(1)
    data = shared() / "data" / "cifar10_subset"
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup.of(
            model=str(shared() / "models" / "mobilenet_v2_1.0_224"), task="image_classification", epochs=options.epochs,
            data={**{split: str(data / f"{split}.parquet") for split in ("train", "validation", "test")},
                  "image_size": 64, "train_rows": options.rows},
            folder=f"{folder}/run", cache=f"{folder}/cache", keep="none", precision="fp32", attention="eager",
            batch_size=32, rungs=(), device="cpu", layout="padded",
        )  # fmt: skip
        for name in options.only or CONFIGURATIONS:
            plain: list[float] = []
            for way, augment in WAYS.items():
                of_way = setup.but(options={"augment": augment})
                found = [
                    trial(of_way, CONFIGURATIONS[name], seed, options.validation_rows) for seed in range(options.seeds)
                ]
                scores = [each["accuracy"] for each in found]
                plain = plain or scores
                print(json.dumps({
                    "configuration": name, "augment": way, "rows": options.rows, "epochs": options.epochs,
                    "validation_rows": options.validation_rows, "seeds": options.seeds, "accuracy": shown(scores),
                    "gain": shown([score - other for score, other in zip(scores, plain, strict=True)]),
                    "loss": shown([each["loss"] for each in found]),
                    "cpu_seconds": round(sum(each["seconds"] for each in found) / len(found), 1),
                    "torch": torch.__version__,
                }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
