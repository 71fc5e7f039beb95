"""What every trial of a search shares: all that a worker needs to build `evaluate`, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Setup:
    """The part of the config that training reads. Picklable and JSON-able.

    Attributes:
        model: Local folder or hub name.
        revision: Of the hub; None for a folder.
        trust_remote_code: Whether code that came with the model may run.
        task: Name of the task's plugin.
        data: The config's data section, paths absolute.
        folder: The run's folder, absolute: trained tensors go to `<folder>/trials/<number>/`.
        cache: Folder of encoded data and cached activations, shared by the node's workers.
        encoded: Folder of the encoded data; None where it is looked for in `cache`, and made.
        seed: The search's seed: splits depend on it.
        epochs: Passes over the training split; None where `steps` is given.
        steps: Optimiser steps; None where `epochs` is given.
        batch_size: Rows of one optimiser step.
        max_length: Longest input in tokens; None for the model's own.
        optimizer, schedule, warmup, weight_decay, clip: `adamw`; `linear`, `cosine` or `constant`; share of the
            steps; decoupled; largest gradient norm (None: no clipping).
        precision, attention: As chosen, never "auto" here.
        micro_batch_size: Rows of one forward pass at most.
        threads: Of torch, in every executor.
        device: "cpu", "cuda", "cuda:0".
        trial_seconds: Time limit of one trial, None for none.
        rungs: Shares of the steps after which a trial reports, ascending, below 1.
        score_rungs: Whether validation is scored at rungs, beside the training loss.
        keep: "front", "all" or "none".
        prefix_cache_bytes: Bound on cached activations on disk; 0 turns the cache off.
    """

    model: str
    task: str
    data: Mapping[str, Any]
    folder: str
    cache: str
    encoded: str | None = None
    seed: int = 0
    revision: str | None = None
    trust_remote_code: bool = False
    epochs: float | None = 3
    steps: int | None = None
    batch_size: int = 32
    max_length: int | None = None
    optimizer: str = "adamw"
    schedule: str = "linear"
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip: float | None = 1.0
    precision: str = "fp32"
    attention: str = "eager"
    micro_batch_size: int = 32
    threads: int = 1
    device: str = "cpu"
    trial_seconds: float | None = None
    rungs: tuple[float, ...] = field(default=(0.1, 0.3))
    score_rungs: bool = False
    keep: str = "front"
    prefix_cache_bytes: int = 8 * 2**30
