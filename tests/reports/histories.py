"""Synthetic histories for the tests of reports: events as a search writes them, no training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autopeft.history import History

OBJECTIVES = (
    {"metric": "accuracy", "goal": "maximize", "reference": 0.25, "scale": "linear"},
    {"metric": "trainable_parameters", "goal": "minimize", "reference": 22_700_000.0, "scale": "log10"},
)
SIZES = {
    "lora": 3072,
    "vera": 120,
    "ia3": 900,
    "serial_adapter": 768,
    "bias": 20_000,
    "norm": 9_000,
    "last_layers": 1_770_000,
    "full": 22_700_000,
    "prefix": 1500,
}
HEAD = 1540
METHODS = ("head", "bias", "norm", "lora", "ia3", "vera", "serial_adapter", "prefix", "last_layers", "full")


def header(**changes: Any) -> dict[str, Any]:
    """A search's first event."""
    return {
        "event": "search",
        "seconds": 0.0,
        "schema": 1,
        "id": "0123456789abcdef",
        "created": "2026-11-24T02:00:00+00:00",
        "config": {
            "model": {"path": "models/mini"},
            "task": {"name": "text_classification"},
            "seed": 0,
            "sampler": {"name": "tpe"},
            "stopper": {"name": "dominated"},
            "budget": {"trials": 40},
            "data": {"train": "train.csv"},
        },
        "objectives": [dict(objective) for objective in OBJECTIVES],
        "signal": "train_loss",
        "dataset": {
            "label_names": ["no", "yes", "maybe", "other"],
            "sizes": {"train": 4000, "validation": 400, "test": 872},
            "origin": {"train": "train.csv"},
        },
        "model": {
            "name": "mini",
            "path": "models/mini",
            "revision": "sha256:0011",
            "n_layers": 6,
            "parameters": 22_700_000,
        },
        "baselines": {"majority": {"accuracy": 0.26, "f1": 0.1}},
        "chosen": {"precision": "fp32", "attention": "eager", "micro_batch_size": 32, "candidates": []},
        "provenance": {"autopeft": "0.1.0", "commit": "abc1234", "dirty": False, "versions": {"torch": "2.13.0"}},
        **changes,
    }


def ask(number: int, params: Mapping[str, Any], size: float | None = None) -> dict[str, Any]:
    known = (
        {}
        if size is None
        else {"trainable_parameters": size, "adapter_parameters": max(size - HEAD, 0), "head_parameters": HEAD}
    )
    return {
        "event": "ask",
        "number": number,
        "params": dict(params),
        "seed": 1000 + number,
        "known": known,
        "seconds": float(number),
    }


def refuse(number: int, params: Mapping[str, Any], reason: str) -> dict[str, Any]:
    return {
        "event": "refuse",
        "number": number,
        "params": dict(params),
        "seed": 1000 + number,
        "reason": reason,
        "seconds": float(number),
    }


def tell(number: int, metrics: Mapping[str, float], status: str = "COMPLETE", error: str = "") -> dict[str, Any]:
    return {
        "event": "tell",
        "number": number,
        "status": status,
        "metrics": dict(metrics),
        "error": error,
        "seconds": number + 0.9,
    }


def report(number: int, step: int, **metrics: float) -> dict[str, Any]:
    return {"event": "report", "number": number, "step": step, "metrics": metrics, "seconds": number + 0.5}


def confirm(name: str, number: int | None, params: Mapping[str, Any], seed: int, accuracy: float) -> dict[str, Any]:
    return {
        "event": "confirm",
        "name": name,
        "number": number,
        "params": dict(params),
        "seed": seed,
        "status": "COMPLETE",
        "metrics": {"accuracy": accuracy, "trainable_parameters": 1000.0},
        "error": "",
        "seconds": 500.0,
    }


def draw(rng: np.random.Generator, method: str) -> dict[str, Any]:
    """Params of a method, as a small space would draw them."""
    params: dict[str, Any] = {"method": method}
    if method in ("lora", "vera", "serial_adapter", "prefix"):
        key = {"lora": "rank", "vera": "rank", "serial_adapter": "size", "prefix": "size"}[method]
        params[f"{method}.{key}"] = int(2 ** rng.integers(0, 7))
    if method == "lora":
        params["lora.modules"] = [["query", "value"], ["query"], ["query", "key", "value", "output"]][rng.integers(3)]
    if method not in ("head", "full"):
        low = int(rng.integers(0, 6))
        params[f"{method}.layers"] = list(range(low, 6))
        params[f"{method}.lr"] = float(10 ** rng.uniform(-4, -2))
    params["head.lr"] = float(10 ** rng.uniform(-4, -2))
    return params


def outcome(rng: np.random.Generator, params: Mapping[str, Any]) -> tuple[float, float]:
    """(accuracy, trainable parameters): larger is better with decreasing gain, a learning rate far off costs."""
    method = params["method"]
    layers = len(params.get(f"{method}.layers", range(6)))
    rank = params.get(f"{method}.rank", params.get(f"{method}.size", 8))
    size = float(HEAD if method == "head" else HEAD + SIZES[method] * (rank / 4 if rank != 8 else 2) * layers / 6)
    size = min(size, 22_700_000.0) if method != "full" else 22_700_000.0
    off = abs(math.log10(params.get(f"{method}.lr", 1e-3)) + 3)
    grown = 1 - math.exp(-0.9 * max(math.log10(size / HEAD), 0))
    accuracy = 0.71 + 0.2 * grown + 0.03 * layers / 6 - 0.07 * off + rng.normal(0, 0.012)
    return round(float(np.clip(accuracy, 0.2, 0.99)) * 400) / 400, round(size)


def search(trials: int = 40, seed: int = 0, methods: Sequence[str] = METHODS, **changes: Any) -> list[dict[str, Any]]:
    """The events of a search: complete, stopped, failed, out of memory, refused and running trials."""
    rng = np.random.default_rng(seed)
    events = [header(**changes)]
    for number in range(trials):
        method = methods[number] if number < len(methods) else methods[int(rng.integers(len(methods)))]
        params = draw(rng, method)
        accuracy, size = outcome(rng, params)
        if number > len(methods) and number % 11 == 0:
            events.append(refuse(number, params, "over the budget of 100,000 trainable parameters"))
            continue
        events.append(ask(number, params, size))
        if number == trials - 1 and trials > 5:
            continue  # still running
        events.append(report(number, 40, train_loss=1.4 - accuracy / 2, accuracy=accuracy - 0.15))
        events.append(report(number, 120, train_loss=1.2 - accuracy / 1.5, accuracy=accuracy - 0.05))
        metrics = {
            "accuracy": accuracy,
            "f1": accuracy - 0.02,
            "train_loss": 1.1 - accuracy / 1.4,
            "trainable_parameters": size,
            "head_parameters": HEAD,
            "adapter_parameters": max(size - HEAD, 0),
            "train_seconds": 8.0 + number % 5,
        }
        if number > len(methods) and number % 13 == 0:
            events.append(tell(number, {"trainable_parameters": size}, "FAILED", "the training loss is nan at step 33"))
        elif number > len(methods) and number % 17 == 0:
            events.append(tell(number, {}, "OUT_OF_MEMORY", "OutOfMemoryError: tried to allocate 2.0 GiB"))
        elif number > len(methods) and number % 7 == 0:
            events.append(tell(number, {**metrics, "accuracy": 0.99}, "STOPPED"))
        else:
            events.append(tell(number, metrics))
    return events


def confirmed(events: Sequence[Mapping[str, Any]], seeds: int = 5, seed: int = 0) -> list[dict[str, Any]]:
    """The events with a confirmation of the front and the baselines."""
    history = History(events)
    rng = np.random.default_rng(seed)
    out = [dict(event) for event in events]
    records = history.front()
    records += [r for r in history.records if r.is_complete and r.params["method"] in ("head", "full")]
    for k in range(seeds):
        for record in {record.number: record for record in records}.values():
            accuracy = float(np.clip(record.metrics["accuracy"] - 0.012 + rng.normal(0, 0.006), 0, 1))
            out.append(confirm(f"trial {record.number}", record.number, record.params, 77 + k, round(accuracy, 4)))
    out.append(confirm("majority", None, {}, 0, 0.255))
    return out


def describe(params: Mapping[str, Any]) -> str:
    """A stand-in for `naming.describe`, of about its length."""
    method = params["method"]
    labels = {
        "lora": "LoRA",
        "ia3": "(IA)³",
        "vera": "VeRA",
        "bias": "biases",
        "norm": "norms",
        "head": "head only",
        "full": "full fine-tuning",
        "prefix": "prefix",
        "serial_adapter": "serial adapter",
        "last_layers": "last layers",
    }
    parts = [labels.get(method, method)]
    for key in ("rank", "size"):
        if f"{method}.{key}" in params:
            parts.append(f"rank {params[f'{method}.{key}']}" if key == "rank" else f"of {params[f'{method}.{key}']}")
    if f"{method}.modules" in params:
        parts.append("on " + ", ".join(params[f"{method}.modules"]))
    if f"{method}.layers" in params:
        layers = params[f"{method}.layers"]
        parts.append(f"{'of' if 'on' in ' '.join(parts) else 'on'} layers {layers[0]}–{layers[-1]}")
    rate = params.get(f"{method}.lr", params.get("head.lr"))
    return " ".join(parts) + (f", lr {rate:.2g}" if rate is not None else "")
