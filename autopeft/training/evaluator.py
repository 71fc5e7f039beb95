"""Travels from an executor to its workers and builds `evaluate` there, from files that may have other paths there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from autopeft.files import trial_folder
from autopeft.training.setup import Setup
from autopeft.trial import Evaluate

if TYPE_CHECKING:
    from autopeft.training.pack import Pack


@dataclass(frozen=True)
class Evaluator:
    """Makes `evaluate`, once a worker. Picklable. `autopeft.executors.Portable` describes its methods.

    Attributes:
        setup: What all trials share, with the folder of the encoded data.
        split: Split of the final score; "test" only to confirm.

    Example:
        evaluate = Evaluator.of(setup)(should_end)
        for event in evaluate(trial): ...
    """

    setup: Setup
    split: str = "validation"

    @classmethod
    def of(cls, setup: Setup, split: str = "validation") -> Evaluator:
        """Makes an evaluator. Encodes the data here first, if that was not done before."""
        from autopeft.training.data import prepare

        return cls(setup.but(encoded=str(prepare(setup).folder)), split)

    def __call__(self, should_end: Callable[[], bool]) -> Evaluate:
        from functools import partial

        from autopeft.training.loop import Worker

        worker = Worker(self.setup, should_end)
        # Only a watchdog needs phases, and each event is a message through Ray. Without a time limit there is none.
        is_watched = self.setup.train.trial_seconds is not None
        return partial(worker.phases if is_watched else worker.evaluate, split=self.split)

    def pack(self, should_end: Callable[[], bool]) -> Pack:
        """Makes a worker for trials side by side (`autopeft.executors.Packing`)."""
        from autopeft.training.loop import Worker
        from autopeft.training.pack import Pack

        return Pack(Worker(self.setup, should_end), self.split)

    @property
    def reads(self) -> tuple[str, ...]:
        """Returns the folder of the encoded data, and that of the model unless it is a hub model."""
        assert self.setup.encoded is not None, "made by `of`"
        model = self.setup.model.path
        return (self.setup.encoded, model) if os.path.isabs(model) else (self.setup.encoded,)

    @property
    def folder(self) -> str:
        return self.setup.folder

    def kept(self, number: int) -> Path:
        """Returns the folder of a trial's trained tensors."""
        return trial_folder(self.setup.folder, number)

    def check(self) -> None:
        """Raises EnvironmentFault if this node lacks the device or the model, ImportError if it lacks a package."""
        from peft import PeftModel  # noqa: F401  (methods import it when they attach)

        from autopeft.training.faults import require_device
        from autopeft.training.model import meta_model
        from autopeft.training.quantised import require_library

        setup = self.setup
        require_device(setup.machine.device)
        require_library(setup.model.quantisation)
        meta_model(setup.model, setup.task.make().auto_class, 0)  # downloads a hub model to this node, once

    def at(self, places: Mapping[str, str], folder: str | None) -> Evaluator:
        """Returns the evaluator for a node on which some folders that it reads, or its own folder, have other paths."""
        setup = self.setup.but(
            path=places.get(self.setup.model.path, self.setup.model.path),
            encoded=places.get(str(self.setup.encoded), self.setup.encoded),
        )
        if folder is not None:
            setup = setup.but(folder=folder, cache=str(Path(folder) / "cache"))
        return replace(self, setup=setup)
