"""Programs of trials that ended, kept for the next trial of the same structure: what was captured serves again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from autopeft.space import canonical
from autopeft.training.network import Network
from autopeft.training.program import Program
from autopeft.training.recipe import Attached, trained_state
from autopeft.trial import Trial

MOST = 8  # programs kept, the least recently used goes first; memory that runs out drops them all


class Programs:
    """Gives each trial a program: one of a trial of the same structure that ended, or a new one.

    Two trials have the same structure if their configurations differ in learning rates only.

    Args:
        most: Most programs kept.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._kept: list[tuple[str, Program]] = []  # the least recently used first

    def take(self, trial: Trial, network: Network, total: int) -> Program:
        """Returns a program that has begun the trial. A kept one has copied the network's tensors into its own."""
        key = structure(trial.params)
        for index in reversed(range(len(self._kept))):
            kept, program = self._kept[index]
            if kept == key and program.total == total and is_same(program.network.attached, network.attached):
                del self._kept[index]
                break
        else:
            program = Program(network, total)
        program.begin(network.attached, trial.seed)
        return program

    @contextmanager
    def lent(self, trial: Trial, network: Network, total: int) -> Iterator[Program]:
        """Takes a program, and keeps it when the trial has ended or was left, unless by a fault."""
        program = self.take(trial, network, total)
        try:
            yield program
        except GeneratorExit:
            self.keep(trial, program)
            raise
        except BaseException:
            program.launcher.wait()  # its memory is free from now on
            raise
        self.keep(trial, program)

    def keep(self, trial: Trial, program: Program) -> None:
        """Keeps the program of a trial that has ended."""
        program.launcher.wait()  # a trial that was left may still have steps on the device
        self._kept.append((structure(trial.params), program))
        del self._kept[: -self.most]

    def drop(self, most: int | None = None) -> bool:
        """Drops kept programs, for their memory. Returns whether there were any.

        Args:
            most: Number of programs to drop, the least recently used first; None for all.
        """
        had_some = bool(self._kept)
        del self._kept[:most]
        return had_some


def structure(params: Mapping[str, Any]) -> str:
    """Returns a configuration's text without its learning rates, which are tensors of a program."""
    return canonical({name: value for name, value in params.items() if name.rpartition(".")[2] != "lr"})


def is_same(one: Attached, other: Attached) -> bool:
    """Whether copying the own tensors of one clone into the other makes them equal.

    It does not if the clones differ in anything else: a tensor that no state has, as one drawn from the seed.
    """
    ours, theirs = trained_state(one), trained_state(other)
    if [(n, t.shape, t.dtype) for n, t in ours.items()] != [(n, t.shape, t.dtype) for n, t in theirs.items()]:
        return False
    own = {tensor.data_ptr() for tensor in (*ours.values(), *theirs.values())}
    rest = [dict(_hidden(attached.model)) for attached in (one, other)]
    if rest[0].keys() != rest[1].keys():
        return False
    pairs = [(tensor, rest[1][name]) for name, tensor in rest[0].items() if tensor.data_ptr() not in own]
    return all(a is b or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)) for a, b in pairs)


def _hidden(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors that are neither parameters nor saved buffers: attributes of modules, and of their hooks."""
    for name, module in model.named_modules():
        held: dict[str, Any] = {**module.__dict__, **module._buffers}
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        held.update({f"hook {index}": getattr(hook, "__dict__", {}) for index, hook in enumerate(hooks)})
        for key, value in held.items():
            parts = value.items() if isinstance(value, Mapping) and key not in _KNOWN else [("", value)]
            for part, tensor in parts:
                if isinstance(tensor, torch.Tensor):
                    yield f"{name} {key} {part}", tensor


_KNOWN = frozenset({"_parameters", "_buffers", "_modules"})
