"""Our side: one search by the product, as a user starts it. Reads a job as JSON, prints one JSON line.

    config: the config, as in a YAML file
    folder: of the run
    tokens_a_step: real tokens of one optimiser step of a trial, where tokens a second are wanted

The executor is the config's. Nothing here needs Ray, MLflow, Optuna or `datasets`: the sampler is `fixed`, there are no
trackers, and the files are Parquet.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main() -> None:
    job = json.loads(sys.argv[1])
    import peft  # noqa: F401 — libraries are loaded before the clock starts, on both sides
    import torch
    import transformers  # noqa: F401

    from autopeft import app
    from autopeft.config import load
    from autopeft.trial import Status

    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")

    card, start = Card(), time.perf_counter()
    run = app.search(load(job["config"]), Path(job["folder"]), quiet=True)
    seconds = time.perf_counter() - start
    busy, records = card.share(), run.history.records
    lost = [f"{record.number}: {record.error}" for record in records if record.status is not Status.COMPLETE]
    if lost:
        sys.exit(f"trials without a score: {lost}")
    trials = [
        {
            "method": record.params["method"], "accuracy": record.metrics.get("accuracy"),
            "loss": record.metrics["loss"], "steps": [report.step for report in record.reports],
            "report_seconds": list(record.report_seconds), "asked": record.asked_seconds, "told": record.told_seconds,
            "trainable_parameters": record.known["trainable_parameters"], "detail": about(record.metrics),
        }
        for record in records
    ]  # fmt: skip
    out: dict[str, Any] = {"seconds": seconds, "busy": busy, "trials": trials, "chosen": run.history.header["chosen"]}
    out["search_seconds"] = max(trial["told"] for trial in trials)
    if "tokens_a_step" in job:
        done = sum((trial["steps"][-1] - trial["steps"][0]) * job["tokens_a_step"] for trial in trials)
        # Between the first and the last rung: what is done once, loading and compiling, is in `seconds` alone.
        out["tokens_a_second"] = done / covered([(t["report_seconds"][0], t["report_seconds"][-1]) for t in trials])
    print(json.dumps(out))


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """Seconds in which at least one trial was between its first and its last report."""
    total, end = 0.0, float("-inf")
    for begin, stop in sorted(spans):
        total += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return total


def about(metrics: Any) -> dict[str, float]:
    """Where a trial's time went."""
    return {key: value for key, value in metrics.items() if key.endswith(("_seconds", "_bytes"))}


class Card:
    """Samples how busy the card is: `nvidia-smi`'s utilisation, the share of time in which some kernel runs.

    NVML's own sample covers a sixth of a second to a second, and a card counts as busy while any kernel runs, however
    small. So the figure says that the card does not wait; it does not say that it is full.
    """

    def __init__(self) -> None:
        query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-i", "0", "-lms", "200"]
        self.samples = tempfile.TemporaryFile("w+")  # noqa: SIM115 — a pipe would be full after an hour
        self.process = None
        if shutil.which("nvidia-smi"):
            self.process = subprocess.Popen(["nvidia-smi", *query], stdout=self.samples, stderr=subprocess.DEVNULL)

    def share(self) -> float | None:
        """Ends sampling; None where there is no card, or none that tells."""
        if self.process is None:
            return None
        self.process.terminate()
        self.process.wait()
        self.samples.seek(0)
        samples = [float(value) for value in self.samples.read().split() if value.isdigit()]
        return statistics.mean(samples) / 100 if samples else None


if __name__ == "__main__":
    main()
