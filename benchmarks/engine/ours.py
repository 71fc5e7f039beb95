"""Our side: one worker, a resident base, trial after trial, by the product's own pieces. Also what each part is worth.

Reads a job as JSON from the command line, prints one JSON line.

    names: configurations to run, in order
    epochs: of each trial
    setup: fields of Setup to override: `{"prefix_cache_bytes": 0}`
    chosen: {"precision", "attention"} as measured before; measured here where it is absent
    pool: batches a length-sorted pool; 1 turns the sorting off
    all_tokens: true lets the last block compute what the head does not read
    base_dropout: true lets the frozen model run in training mode, its dropout too
    task: "trials" (default), "floor" (step time against arithmetic), "memory" (many trials: does the worker grow?)
    ready, begin: files; the worker makes the first when it has loaded, and starts when the second appears
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from configurations import (
    ALL_LAYER_LORA,
    BATCH_SIZE,
    CONFIGURATIONS,
    MAX_LENGTH,
    MEMORY_STEPS,
    MEMORY_TRIALS,
    PRODUCTS,
    SEED,
    WARMUP,
    WEIGHT_DECAY,
)


def make_setup(job: Mapping[str, Any]) -> Any:
    """What the product's trials share, with the job's overrides. The test split is not looked at."""
    from autopeft.training.setup import Setup

    # Three files, so that nothing is carved: rows of train and validation are those of the plain stack.
    data = {
        "train": job["train"],
        "validation": job["validation"],
        "test": job["validation"],
        "text": "text",
        "label": "label",
    }
    setup = Setup.of(
        model=job["model"],
        task="text_classification",
        data=data,
        folder=job["folder"],
        cache=str(Path(job["folder"]) / "cache"),
        seed=SEED,
        epochs=job["epochs"],
        batch_size=BATCH_SIZE,
        micro_batch_size=BATCH_SIZE,
        max_length=MAX_LENGTH,
        warmup=WARMUP,
        weight_decay=WEIGHT_DECAY,
        keep="none",
    )
    return setup.but(**job.get("setup", {}))


def main() -> None:
    job = json.loads(sys.argv[1])
    from autopeft.training import batches, first_token
    from autopeft.training.loop import Worker
    from autopeft.training.measure import choose
    from autopeft.training.network import Network

    batches.POOL = job.get("pool", batches.POOL)
    short = dict(first_token.TOKEN_BY_TOKEN)
    if job.get("all_tokens") or job.get("task") == "floor":
        first_token.TOKEN_BY_TOKEN.clear()
    if job.get("base_dropout"):
        Network.train = lambda network: network.model.train()  # type: ignore[method-assign]
    setup = make_setup(job)
    chosen = job.get("chosen")
    measured: list[Any] = []
    if chosen is None:
        choice = choose(setup, "auto", "auto", CONFIGURATIONS[ALL_LAYER_LORA])
        chosen, measured = {"precision": choice.precision, "attention": choice.attention}, list(choice.candidates)
    worker = Worker(setup.but(**{**chosen, **job.get("setup", {})}))
    out: dict[str, Any] = {"chosen": chosen, "measured": measured, "once_cpu_seconds": cpu_seconds()}
    task = {"trials": trials, "floor": partial(floor, short=short), "memory": memory}[job.get("task", "trials")]
    print(json.dumps({**out, **task(worker, job)}))


def trials(worker: Any, job: Mapping[str, Any]) -> dict[str, Any]:
    """Trains and scores each configuration; CPU seconds of a trial include the caches that it built."""
    from autopeft.trial import Status, Trial

    if "begin" in job:
        Path(job["ready"]).touch()
        while not Path(job["begin"]).exists():
            time.sleep(0.01)
    rows, begin = [], time.perf_counter()
    for number, name in enumerate(job["names"]):
        cpu, wall = cpu_seconds(), time.perf_counter()
        *_, result = worker.evaluate(Trial(number, CONFIGURATIONS[name], SEED))
        if result.status is not Status.COMPLETE:
            sys.exit(f"{name}: {result.status}: {result.error}")
        rows.append(
            {
                "name": name,
                "accuracy": result.metrics["accuracy"],
                "trainable_parameters": int(result.metrics["trainable_parameters"]),
                "cpu_seconds": cpu_seconds() - cpu,
                "wall_seconds": time.perf_counter() - wall,
            }
        )
    return {"trials": rows, "wall_seconds": time.perf_counter() - begin}


def floor(worker: Any, job: Mapping[str, Any], short: Mapping[str, str]) -> dict[str, Any]:
    """CPU seconds of a training step of all-layer LoRA, and of its arithmetic alone.

    Operations are those of the model as transformers runs it, on the tokens that are real: each row of the epoch by
    itself, unpadded, forward and backward. The rate is that of the fastest of several matrix products, in the precision
    that the step uses. The step is the product's own, which leaves out what no head reads. Each step is followed by as
    much arithmetic in bare products, and the sums are compared: on a shared machine the rate changes twofold from one
    second to the next.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from autopeft.training import first_token
    from autopeft.trial import Trial

    trial = Trial(0, CONFIGURATIONS[ALL_LAYER_LORA], SEED)
    network = worker.network(trial)  # of all tokens
    lengths = worker.data.splits["train"].lengths
    network.train()
    operations: dict[int, int] = {}
    for row, length in enumerate(lengths):
        if int(length) not in operations:
            with FlopCounterMode(display=False) as counter:
                network.backward("train", torch.tensor([row]).numpy())
            operations[int(length)] = counter.get_total_flops()
    first_token.TOKEN_BY_TOKEN.update(short)
    network = worker.network(trial)
    epoch = -(-len(lengths) // BATCH_SIZE)
    a_step = sum(operations[int(length)] for length in lengths) / epoch
    steps = job["epochs"] * epoch

    products = [Product(shape, worker.setup.machine.precision) for shape in PRODUCTS]
    rates = {product.name: product.best_rate() for product in products}
    fastest = max(products, key=lambda product: rates[product.name])
    run = worker.train(network, SEED, steps + 1)
    next(run)  # warms up
    step = bare = done = 0.0
    for _ in range(steps):
        start = time.process_time()
        next(run)
        middle = time.process_time()
        done += fastest.run(a_step)
        step, bare = step + middle - start, bare + time.process_time() - middle
    bare *= steps * a_step / done  # whole products come to a little more or less
    return {
        "step_cpu_seconds": step / steps,
        "floor_seconds": bare / steps,
        "gflop_a_step": a_step / 1e9,
        "tokens_a_step": float(lengths.sum()) / epoch,
        "gflop_a_second": {shape: value / 1e9 for shape, value in rates.items()},
        "ratio": step / bare,
    }


class Product:
    """A matrix product of (rows, inner) by (inner, columns), to be timed."""

    def __init__(self, shape: tuple[int, int, int], precision: str) -> None:
        import torch

        rows, inner, columns = shape
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        self.a, self.b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
        self.name, self.operations = f"{rows}x{inner}x{columns}", 2 * rows * inner * columns

    def best_rate(self) -> float:
        """Operations a second, the fastest of 20."""
        seconds = []
        for _ in range(20):
            start = time.perf_counter()
            self.a @ self.b
            seconds.append(time.perf_counter() - start)
        return self.operations / min(seconds)

    def run(self, operations: float) -> int:
        """So many operations, to the nearest product, at least one. Returns how many they were."""
        count = max(1, round(operations / self.operations))
        for _ in range(count):
            self.a @ self.b
        return count * self.operations


def memory(worker: Any, job: Mapping[str, Any]) -> dict[str, Any]:
    """Peak bytes of the worker after a tenth of the trials of all-layer LoRA and after all, and the base's own."""
    from autopeft.trial import Status, Trial

    worker.setup = worker.setup.but(epochs=None, steps=MEMORY_STEPS)
    peaks = []
    for number in range(MEMORY_TRIALS):
        *_, result = worker.evaluate(Trial(number, CONFIGURATIONS[ALL_LAYER_LORA], number))
        if result.status is not Status.COMPLETE:
            sys.exit(f"trial {number}: {result.status}: {result.error}")
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    base = sum(p.numel() * p.element_size() for p in worker.base.parameters())
    return {"peak_bytes": [peaks[MEMORY_TRIALS // 10 - 1], peaks[-1]], "base_bytes": base}


def cpu_seconds() -> float:
    """Of this process so far, and of its children that ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


if __name__ == "__main__":
    main()
