"""Settings that all trials of a search share: everything that a worker needs to build `evaluate`, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from autopeft import plugins
from autopeft.errors import UsageError
from autopeft.tasks import Source, Task
from autopeft.tasks._own_metrics import OwnMetric, scored_by

ATTENTIONS = ("eager", "sdpa")


@dataclass(frozen=True)
class ModelSpec:
    """Which pretrained model, and how it computes.

    Attributes:
        path: Local folder or hub name.
        revision: Revision on the hub; None for a folder.
        trust_remote_code: Whether code that came with the model may run.
        attention: One of `ATTENTIONS`, never "auto" here.
        kinds: Module kind → names inside a block, for modules whose names and shapes do not show their kind.
        quantisation: How the frozen base is stored, one of `quantisations.QUANTISATIONS`; None for fp32.
    """

    path: str
    revision: str | None = None
    trust_remote_code: bool = False
    attention: str = "eager"
    kinds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    quantisation: str | None = None

    def __post_init__(self) -> None:
        # The name comes from a ledger or an export, and transformers would load any other name from the hub, as code.
        if self.attention not in ATTENTIONS:
            raise UsageError(f"expected the attention {' or '.join(ATTENTIONS)}, got {self.attention!r}")


@dataclass(frozen=True)
class TaskSpec:
    """What is learned from which data.

    Attributes:
        name: Name of the task's plugin.
        options: The task's own options, as the config gives them.
        data: The config's data section, paths absolute.
        max_length: Longest input in tokens; None for the model's own.
        own_metrics: Metrics of the user's, beside those of the task.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    max_length: int | None = None
    own_metrics: tuple[OwnMetric, ...] = ()

    def make(self) -> Task:
        """Makes the task with its options and the user's metrics. Loads no code of the user's."""
        return scored_by(plugins.make("tasks", self.name, self.options), self.own_metrics)


@dataclass(frozen=True)
class TrainSpec:
    """How each trial trains.

    Attributes:
        epochs: Passes over the training split; None if `steps` is given.
        steps: Optimiser steps; None if `epochs` is given.
        batch_size: Rows of one optimiser step.
        optimizer: "adamw" or "sgd".
        schedule: "linear", "cosine" or "constant".
        warmup: Share of the steps.
        weight_decay: Weight decay of each component that has none of its own.
        clip: Largest gradient norm; None for no clipping.
        rungs: Shares of the steps after which a trial reports, ascending, below 1.
        score_rungs: Whether validation is scored at rungs, beside the training loss.
        trial_seconds: Time limit of one trial; None for none.
    """

    epochs: float | None = 3
    steps: int | None = None
    batch_size: int = 32
    optimizer: str = "adamw"
    schedule: str = "linear"
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip: float | None = 1.0
    rungs: tuple[float, ...] = (0.1, 0.3)
    score_rungs: bool = False
    trial_seconds: float | None = None


@dataclass(frozen=True)
class Machine:
    """Where a trial computes, and in which precision.

    Attributes:
        device: "cpu", "cuda", "cuda:0".
        threads: Number of torch threads, in every executor.
        precision: One of `precision.PRECISIONS`, never "auto" here.
        micro_batch_size: Most rows of one forward pass.
        prefix_cache_bytes: Bound on cached activations on disk; 0 turns the cache off.
        layout: "padded": each batch as wide as its longest row; "flat": static shapes, rows end to end (`static`).
        compile: "on", "off", or "auto": the blocks of trials in static shapes, where it pays, on a GPU (`compiled`).
        gradient_checkpointing: "on", "off", or "auto": for trials of which not even one row fits without.
    """

    device: str = "cpu"
    threads: int = 1
    precision: str = "fp32"
    micro_batch_size: int = 32
    prefix_cache_bytes: int = 8 * 2**30
    layout: str = "padded"
    compile: str = "auto"
    gradient_checkpointing: str = "auto"


@dataclass(frozen=True)
class Setup:
    """The part of the config that training reads. Picklable.

    Attributes:
        model, task, train, machine: The four parts.
        folder: The run's folder, absolute: trained tensors go to `<folder>/trials/<number>/`.
        cache: Folder of encoded data and cached activations, shared by the node's workers.
        encoded: Folder of the encoded data; None to look for it in `cache`, and to make it there if needed.
        seed: The search's seed: splits depend on it.
        keep: Trials whose trained tensors are kept: "front", "all" or "none".
    """

    model: ModelSpec
    task: TaskSpec
    train: TrainSpec = field(default_factory=TrainSpec)
    machine: Machine = field(default_factory=Machine)
    folder: str = ""
    cache: str = ""
    encoded: str | None = None
    seed: int = 0
    keep: str = "front"

    @property
    def source(self) -> Source:
        """Settings of the task's encoder."""
        model, task = self.model, self.task
        return Source(model.path, model.revision, model.trust_remote_code, task.max_length, task.data)

    @staticmethod
    def of(*, model: str, task: str, **values: Any) -> Setup:
        """Makes a setup from single values. Each goes into the part that has a field of that name."""
        return Setup(ModelSpec(model), TaskSpec(task)).but(**values)

    def but(self, **values: Any) -> Setup:
        """Returns a copy with other values. Each goes into the part that has a field of that name.

        Raises:
            TypeError: No part has such a field.
        """
        out, parts = self, ("model", "task", "train", "machine")
        for name in parts:
            part: Any = getattr(self, name)
            own = {field.name: values.pop(field.name) for field in fields(part) if field.name in values}
            if own:
                changed: dict[str, Any] = {name: replace(part, **own)}
                out = replace(out, **changed)
        return replace(out, **values)
