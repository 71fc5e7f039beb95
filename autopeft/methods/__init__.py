"""Methods: ways to make part of a frozen model trainable. One plugin a file, its docstring the formula and the paper.

A recipe is one or more components on a frozen base; a component is a method, where it acts (module kinds × layers),
its size and its options. `training.recipe` resolves where, attaches the components one after the other, then the
head; what a component makes trainable is what it adds or unfreezes. Listing methods and their keys imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

# The module kinds a model is made of, as `ModelView` names them. What can be chosen in a space's `modules`:
MODULE_KINDS = ("query", "key", "value", "qkv", "output", "up", "down", "convolution", "depthwise")
# Beside them, for the methods that act on parameters of a kind wherever they are:
PARAMETER_KINDS = ("norm", "bias", "embedding", "head")

# Keys that `training.recipe` reads for every component; a method need not name them.
COMMON_KEYS = {
    "lr": "learning rate of the component's own optimiser group",
    "weight_decay": "decoupled weight decay of the component's group; the config's where absent",
    "modules": "module kinds to act on, a subset",
    "layers": "blocks to act on, a subset of their indices from 0; or 'all', or 'last_<k>'",
}


@dataclass(frozen=True, slots=True)
class Scope:
    """Where one component acts on one model: names of the model's modules, resolved.

    Attributes:
        modules: Chosen module kind → full names of its modules in the chosen layers, in order.
        kinds: The same of every kind that the layers have, chosen or not.
        layers: Indices of the chosen blocks, ascending.
        blocks: Full names of the chosen blocks, in order.
        above: Full names of the modules that run after the blocks and are no head: a last norm, a pooler.
        head: Full names of the modules that make the head; never among `modules`.
    """

    modules: Mapping[str, tuple[str, ...]]
    kinds: Mapping[str, tuple[str, ...]]
    layers: tuple[int, ...]
    blocks: tuple[str, ...]
    above: tuple[str, ...]
    head: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """All chosen modules, in the model's order within each kind."""
        return [name for names in self.modules.values() for name in names]


class Method(Protocol):
    """Adds one component to a model, in place.

    Attributes:
        keys: The keys it reads beside COMMON_KEYS → one line each. A key may go on after a dot (`rank.query`).
        stock: Its published default values by key; what a component that leaves a key out gets.
        modules: The module kinds it acts on when `modules` is not given, those of them that the model has. `qkv`
            stands for query, key and value where they are one module, `convolution` for all in a convolutional net.
            Empty for methods that choose parameters.
        is_peft: Whether stock `peft` holds it, so that it exports as a peft adapter.
        label: How a person calls it: "LoRA".
    """

    keys: Mapping[str, str]
    stock: Mapping[str, Any]
    modules: tuple[str, ...]
    is_peft: bool
    label: str

    def attach(self, model: Any, scope: Scope, params: Mapping[str, Any]) -> None:
        """Changes the model in place: adds parameters inside the modules or blocks of the scope, or unfreezes some.

        Runs on the meta device too (counting), with nothing allocated. Draws on the CPU and from torch's global
        random state, which is seeded. What is added lies inside a block by name, and acts from there on: below the
        lowest trained block nothing is computed anew.

        Args:
            model: A transformers model, all frozen, which shares its frozen tensors with other trials.
            scope: Where.
            params: The component's own keys without its name: `{"rank": 8, "lr": 1e-3, ...}`.

        Raises:
            autopeft.errors.Refused: Nothing to act on, or a layer type it cannot handle; says which.
        """

    def config(self, scope: Scope, params: Mapping[str, Any]) -> Any:
        """Only where `is_peft`: a fresh peft config with full module names; attaching and exporting share it."""

    def unfreezes(self, model: Any, scope: Scope, params: Mapping[str, Any]) -> list[str]:
        """Full names of base parameters that it trains in place: they are cloned for the trial before `attach`."""

    def describe(self, params: Mapping[str, Any]) -> str:
        """Its size and options for a person, without where and learning rate: "LoRA rank 8", "adapter of 48"."""
