"""One LoRA on a base in fp32, bf16, and in 4 and 8 bits: its scores, the bytes of its weights, and seconds a step.

    PYTHONPATH=benchmarks python benchmarks/quantised/run.py                 # MiniLM on SST-2, minutes on a CPU
    PYTHONPATH=benchmarks python benchmarks/quantised/run.py --on gsm8k      # SmolLM2-135M on GSM8K's shortest rows

One JSON line a way of storing the base: mean and range over the seeds. All ways have the same rows, batches and seeds.
`weights_mib` is what the base and the trial hold of parameters and scales, each tensor once; under `bf16` that is
fp32 with the bf16 copies beside it, as trials of one worker share both. `peak_memory_mib` is of a GPU's allocator. Ways
whose library is not installed are left out, and said.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shared import minilm, shared, smollm2

WAYS = {"fp32": None, "bf16": None, "nf4": "nf4", "int8": "int8", "torchao_int8": "torchao_int8"}
PARAMS = {"method": "lora", "lora.modules": "all", "lora.rank": 8, "lora.alpha": 16}


def setups(on: str, folder: str, device: str, steps: int | None) -> dict[str, Any]:
    """The values of each setup, all but how the base is stored."""
    data = shared() / "data"
    if on == "sst2":
        return {
            "model": minilm(), "task": "text_classification", "steps": steps or 60, "batch_size": 16, "max_length": 64,
            "data": {"train": str(data / "sst2" / "train.parquet"), "text": "text", "label": "label", "train_rows": 2000,
                     "validation_share": 0.015, "test_share": 0.01},
        }  # fmt: skip
    return {
        "model": smollm2(), "task": "causal_language_modelling", "options": {"generate_rows": 0}, "steps": steps or 10,
        "batch_size": 4, "max_length": 128,
        "data": {"train": str(data / "gsm8k" / "train.parquet"), "prompt": "Question: {question}\nAnswer:",
                 "completion": " {answer}", "train_rows": 200, "validation_share": 0.004, "test_share": 0.004},
    }  # fmt: skip


def bytes_of(*models: Any) -> int:
    """Counts the bytes of parameters and of what unpacks them, each tensor once."""
    import torch

    found: dict[int, int] = {}

    def note(value: Any) -> None:
        if (
            isinstance(value, torch.Tensor)
            and type(value) not in (torch.Tensor, torch.nn.Parameter)
            and hasattr(value, "__tensor_flatten__")
        ):
            for name in value.__tensor_flatten__()[0]:
                note(getattr(value, name))
        elif isinstance(value, torch.Tensor):
            found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()

    for model in models:
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                note(parameter.data)
                state = getattr(parameter, "quant_state", None)
                for key in ("absmax", "code"):
                    note(getattr(state, key, None))
            for key in ("CB", "SCB"):
                note(getattr(getattr(module, "state", None), key, None))
    return sum(found.values())


def one(values: dict[str, Any], way: str, seed: int, folder: str, device: str, rate: float) -> dict[str, float]:
    import torch

    from autopeft.training.loop import Worker
    from autopeft.training.measure import clock_of
    from autopeft.training.setup import Setup
    from autopeft.trial import Trial

    setup = Setup.of(
        **values, folder=folder, cache=f"{folder}/cache", device=device, quantisation=WAYS[way], keep="none",
        precision="bf16" if way == "bf16" else "fp32", attention="eager", prefix_cache_bytes=0, rungs=(),
    )  # fmt: skip
    worker = Worker(setup)
    trial = Trial(seed, {**PARAMS, "lora.lr": rate}, seed)
    network, clock = worker.network(trial), clock_of(worker)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    start = clock()
    for _ in worker.train(network, seed, setup.train.steps):
        pass
    seconds = (clock() - start) / setup.train.steps
    found = {"step_seconds": seconds, "weights_mib": bytes_of(worker.base, network.model) / 2**20}
    if device != "cpu":
        found["peak_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    scores = worker.scores(network, "validation").metrics
    if values["task"] == "causal_language_modelling":
        untouched = worker.base_answers(worker.data.splits["validation"], worker.task)
        found["untouched_loss"] = untouched.scores(worker.data.weights["validation"], worker.data.about).metrics["loss"]
    return {**found, **{name: scores[name] for name in ("accuracy", "token_accuracy", "loss") if name in scores}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", choices=("sst2", "gsm8k"), default="sst2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rate", type=float, default=1e-3)
    options = parser.parse_args()
    import torch
    import transformers

    from autopeft.quantisations import missing_library

    with tempfile.TemporaryDirectory() as folder:
        values = setups(options.on, folder, options.device, options.steps)
        for way, name in WAYS.items():
            lacking = missing_library(name) if name else None
            if lacking:
                print(f"{way} is left out: {lacking}", file=sys.stderr)
                continue
            begun = time.perf_counter()
            runs = [one(values, way, seed, folder, options.device, options.rate) for seed in range(options.seeds)]
            shown = {
                key: {"mean": round(statistics.mean(run[key] for run in runs), 4),
                      "range": [round(min(run[key] for run in runs), 4), round(max(run[key] for run in runs), 4)]}
                for key in runs[0]
            }  # fmt: skip
            print(json.dumps({
                "on": options.on, "base": way, "seeds": options.seeds, "steps": values["steps"], "rate": options.rate,
                "device": options.device, "torch": torch.__version__, "transformers": transformers.__version__,
                "seconds": round(time.perf_counter() - begun), **shown,
            }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
