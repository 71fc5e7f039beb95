"""Methods: ways to make part of a frozen model trainable. One plugin a file, its docstring the formula and the paper.

A recipe is one or more components on a frozen base; a component is a method, where it acts (module kinds × layers),
its size and its options. `training.recipe` resolves where, attaches the components one after the other, then the
head; what a component makes trainable is what it adds or unfreezes. Listing methods and their keys imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

# The module kinds a model is made of, as `ModelView` names them. What can be chosen in a space's `modules`:
MODULE_KINDS = ("query", "key", "value", "qkv", "output", "up", "down", "convolution", "depthwise")

# Grouped convolutions: `modules: all` does not stand for them, as few methods take them; a configuration names them.
FEW_TAKE = "depthwise"

# Keys that `training.recipe` reads for every component; a method need not name them.
COMMON_KEYS = {
    "lr": "learning rate of the component's own optimiser group",
    "weight_decay": "decoupled weight decay of the component's group; the config's where absent",
    "modules": "module kinds to act on, a subset",
    "layers": "blocks to act on, a subset of their indices from 0; or 'all', 'last_<k>', 'first_<k>', '<a>-<b>'",
}


@dataclass(frozen=True, slots=True)
class Scope:
    """Where one component acts on one model: names of the model's modules, resolved.

    Attributes:
        modules: Chosen module kind → full names of its modules in the chosen layers, in order; none of size 0.
        sizes: Full name of each chosen module → the component's size there; empty for a method without a size.
        kinds: The same of every kind that the layers have, chosen or not.
        layers: Indices of the chosen blocks, ascending.
        blocks: Full names of the chosen blocks, in order.
        above: Full names of the modules that run after the blocks and are no head: a last norm, a pooler.
        head: Full names of the modules that make the head; never among `modules`.
    """

    modules: Mapping[str, tuple[str, ...]]
    sizes: Mapping[str, int]
    kinds: Mapping[str, tuple[str, ...]]
    layers: tuple[int, ...]
    blocks: tuple[str, ...]
    above: tuple[str, ...]
    head: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """All chosen modules, in the model's order within each kind."""
        return [name for names in self.modules.values() for name in names]


@dataclass(frozen=True, slots=True)
class Site:
    """All that a method may know of its component.

    Attributes:
        scope: Where it acts.
        keys: The component's own keys without its name: `{"rank": 8, "lr": 1e-3, ...}`; stock values are filled in.
        steps: Optimiser steps of the trial; None while counting, exporting and loading.
        batches: Gives the model's inputs of the training split, batch after batch, in the trial's own order; None while
            counting, exporting and loading.
    """

    scope: Scope
    keys: Mapping[str, Any]
    steps: int | None = None
    batches: Callable[[], Iterator[Mapping[str, Any]]] | None = None


@dataclass(frozen=True, slots=True)
class Copies:
    """Full names of base parameters that are cloned for the trial before a method attaches.

    Attributes:
        trained: Those that it trains in place.
        changed: Those that it changes while it attaches, and does not train.
    """

    trained: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class During:
    """What a method does while its trial trains.

    Attributes:
        penalty: A term of the loss, a scalar, computed anew in each forward pass. Reported losses are without it.
        after_step: Called after each optimiser step, with its number from 1; the step's gradients are still there.
    """

    penalty: Callable[[], Any] | None = None
    after_step: Callable[[int], None] | None = None


class Method(Protocol):
    """Adds one component to a model, in place. Inherit from it for what most methods leave as it is.

    Attributes:
        keys: The keys it reads beside COMMON_KEYS → one line each.
        stock: Its published default values by key; what a component that leaves a key out gets.
        size: The key whose 0 means that the component, or its part in some modules, is not there; None without one.
        sized_by: What the size may differ by: "kind" (`rank.query`), "layer" (`rank.3`), both or nothing.
            `Scope.sizes` has what it is where.
        modules: The module kinds it acts on when `modules` is not given, those of them that the model has. `qkv`
            stands for query, key and value where they are one module, `convolution` for all in a convolutional net.
            Empty for methods that choose parameters.
        is_peft: Whether stock `peft` holds it, so that it exports as a peft adapter.
        reads_weights: Whether its layers compute with the base's weight instead of the base's output. No gradient would
            reach what another component trains of that layer, or inside it: such a recipe is refused.
        label: How a person calls it: "LoRA".
        baseline: What it is called where all else is measured against it: "frozen head"; None for most.
        is_shallow: Whether it trains next to nothing below the top: its steps say little of what others cost.
        packs: Whether trials of it can share a pass over the base.
    """

    keys: Mapping[str, str] = {}
    stock: Mapping[str, Any]
    size: str | None = None
    sized_by: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    is_peft: bool = False
    reads_weights: bool = False
    label: str
    baseline: str | None = None
    is_shallow: bool = False
    packs: bool = False

    def copies(self, model: Any, site: Site) -> Copies:
        """The base parameters that it trains or changes."""
        return Copies()

    def attach(self, model: Any, site: Site) -> During | None:
        """Changes the model in place: adds parameters inside the modules or blocks of the scope, or unfreezes some.

        Runs on the meta device too (counting), with nothing allocated. Draws on the CPU and from torch's global
        random state, which is seeded. What is added lies inside a block by name, and acts from there on: below the
        lowest trained block nothing is computed anew. Added parameters train but for those whose `requires_grad` it
        turns off; buffers that it adds are saved with the trial.

        Args:
            model: A transformers model, all frozen, which shares its frozen tensors with other trials, but for
                `copies`.
            site: Where, what, how long.

        Raises:
            autopeft.errors.Refused: Nothing to act on, or a layer type it cannot handle; says which.
        """

    def config(self, site: Site) -> Any:
        """Only where `is_peft`: a fresh peft config with full module names; attaching and exporting share it."""

    def rate(self, name: str, keys: Mapping[str, Any]) -> float:
        """What multiplies the component's learning rate for one of its trained parameters, by full name."""
        return 1.0

    def count(self, model: Any, site: Site) -> int | None:
        """How many parameters it trains, by a formula, where attaching allocates even on the meta device; refuses what
        `attach` does. None: it is attached to count."""
        return None

    def describe(self, keys: Mapping[str, Any]) -> str:
        """Its size and options for a person, without where and learning rate: "LoRA rank 8", "adapter of 48".

        Where the size differs by kind or layer, it is a text here: "8 (16 in layer 3)".
        """
        return f"{self.label} of {keys[self.size]}" if self.size else self.label
