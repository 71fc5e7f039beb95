"""What the engine benchmark runs, for both sides: data, epochs, batches, and twelve mixed configurations of MiniLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TRAIN_ROWS = 1500  # of SST-2, stratified, by SEED; its whole validation split (872 rows) scores
EPOCHS = 2
QUICK_ROWS, QUICK_VALIDATION_ROWS = 960, 436
BATCH_SIZE = 32
MAX_LENGTH = 128
WARMUP = 0.06
WEIGHT_DECAY = 0.01
SEED = 0

UPPER, LAST = [3, 4, 5], [5]
EVERYWHERE = ["query", "key", "value", "output", "up", "down"]


def _lora(rank: int, modules: list[str], layers: Any, lr: float) -> dict[str, Any]:
    own = {"rank": rank, "alpha": 16, "modules": modules, "layers": layers, "lr": lr}
    return {"method": "lora", **{f"lora.{key}": value for key, value in own.items()}, "head.lr": 1e-3}


CONFIGURATIONS: Mapping[str, Mapping[str, Any]] = {
    "lora all": _lora(8, ["query", "value"], "all", 1e-3),
    "lora all, every module": _lora(4, EVERYWHERE, "all", 1e-3),
    "lora upper half": _lora(8, ["query", "value"], UPPER, 1e-3),
    "lora upper half, rank 32": _lora(32, ["query", "value"], UPPER, 1e-3),
    "lora last": _lora(8, ["query", "value"], LAST, 1e-3),
    "biases": {"method": "bias", "bias.layers": "all", "bias.lr": 1e-3, "head.lr": 1e-3},
    "norms": {"method": "norm", "norm.layers": "all", "norm.lr": 1e-3, "head.lr": 1e-3},
    "ia3": {"method": "ia3", "ia3.layers": "all", "ia3.lr": 5e-3, "head.lr": 1e-3},
    "last layer": {"method": "last_layers", "last_layers.count": 1, "last_layers.lr": 1e-4, "head.lr": 1e-3},
    "last two layers": {"method": "last_layers", "last_layers.count": 2, "last_layers.lr": 1e-4, "head.lr": 1e-3},
    "head": {"method": "head", "head.lr": 3e-3},
    "full": {"method": "full", "full.lr": 5e-5, "head.lr": 1e-3},
}
QUICK = ("lora all", "lora upper half", "biases", "head")
TWO_WORKERS = ("lora all", "lora upper half")  # each worker runs both
ALL_LAYER_LORA = "lora all"
# Rows, inner size, columns: the fastest is the floor's.
PRODUCTS = ((768, 384, 384), (768, 384, 1536), (1024, 1024, 1024), (2048, 2048, 2048))
MEMORY_TRIALS, MEMORY_ROWS, MEMORY_STEPS = 200, 8, 1  # tiny trials of all-layer LoRA: does the worker grow?
