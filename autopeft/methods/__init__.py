"""Methods: ways to make part of a frozen model trainable. One plugin a file, its docstring the formula and the paper.

A recipe is one or more components on a frozen base; a component is a method, where it acts (module kinds × layers),
its size and its options. `training.recipe` resolves the places, attaches the components one after the other, and then
the head. A component trains what it adds or unfreezes. Listing methods and their keys imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

# The module kinds of a model, as `ModelView` names them. A space's `modules` chooses among these:
MODULE_KINDS = (
    "query", "key", "value", "qkv", "output", "cross_query", "cross_key", "cross_value", "cross_output", "up", "down",
    "convolution", "depthwise",
)  # fmt: skip

# Attention from a decoder to its encoder. In a default, and where no kinds are chosen, `query` stands for
# `cross_query`, too, as peft's own defaults do; a configuration that lists kinds means those in the list.
CROSS = {kind: f"cross_{kind}" for kind in ("query", "key", "value", "output")}

# Grouped convolutions. `modules: all` leaves them out, as few methods take them: a configuration has to name them.
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
        kinds: Like `modules`, for every module kind that the layers have, chosen or not.
        layers: Indices of the chosen blocks, ascending.
        blocks: Full names of the chosen blocks, in order.
        above: Full names of the modules between the last block and the head: a last norm, a pooler.
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
        scope: Where the component acts.
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
        trained: Names of parameters that the method trains in place.
        changed: Names of parameters that the method changes while it attaches, and does not train.
    """

    trained: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class During:
    """What a method does while its trial trains.

    Attributes:
        penalty: Returns a term of the loss, a scalar, for the last forward pass. Reported losses leave the term out.
        after_step: Called after each optimiser step with the step's number, from 1. The step's gradients are still
            there.
    """

    penalty: Callable[[], Any] | None = None
    after_step: Callable[[int], None] | None = None


class Method(Protocol):
    """Adds one component to a model, in place. A subclass inherits the defaults that suit most methods.

    Attributes:
        keys: Each key that the method reads beside COMMON_KEYS → one line about it.
        stock: The published default value of each key, for components that leave the key out.
        size: The key of the size. Size 0 means that the component, or its part in some modules, is absent. None for a
            method without a size.
        sized_by: What the size may differ by: "kind" (`rank.query`), "layer" (`rank.3`), both or nothing.
            `Scope.sizes` has the size at each module.
        modules: The module kinds that the method acts on if a configuration gives no `modules`. Kinds that the model
            lacks are left out. `qkv` stands for query, key and value if they are one module, `convolution` for all in
            a convolutional net. Empty for methods that choose parameters.
        is_peft: Whether stock `peft` can hold the component, so that it exports as a peft adapter.
        reads_weights: Whether the method's layers compute with the base's weight instead of the base's output. Then no
            gradient reaches parameters that another component trains in the same layer: such a recipe is refused.
        label: The method's name for people: "LoRA".
        baseline: The method's name as a baseline: "frozen head"; None for most.
        is_shallow: Whether the method trains next to nothing below the top. The time of its steps then says little
            about other methods.
        packs: Whether trials of the method can share a pass over the base.
        takes_quantised: Whether the method can act on layers whose weights are stored in 4 or 8 bits.
        merges: Whether a trained component can become part of the base's own weights, with `merge`.
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
    takes_quantised: bool = True
    merges: bool = False

    def copies(self, model: Any, site: Site) -> Copies:
        """Names the base parameters that the method trains or changes."""
        return Copies()

    def attach(self, model: Any, site: Site) -> During | None:
        """Changes the model in place: adds parameters inside the modules or blocks of the scope, or unfreezes some.

        Runs on the meta device too (counting), with nothing allocated. Draws on the CPU, from torch's global random
        state, which is seeded. By name, an added module lies inside a block, and acts only from that block on: outputs
        below the lowest trained block can be reused. Added parameters are trained unless the method turns
        `requires_grad` off; added buffers are saved with the trial.

        Args:
            model: A transformers model, all frozen. It shares its tensors with other trials, except `copies`.
            site: Where the component acts, its keys, and the number of steps.

        Raises:
            autopeft.errors.Refused: There is nothing to act on, or the method cannot handle a layer's type; says which.
        """

    def config(self, site: Site) -> Any:
        """Returns a fresh peft config with full module names, for attaching and exporting. Only if `is_peft`."""

    def merge(self, model: Any, site: Site) -> None:
        """Folds what `attach` added, and training changed, into the base's own tensors. Only if `merges`.

        Layers of peft need nothing: the caller merges them. What is trained in place needs nothing, either.

        Raises:
            autopeft.errors.Refused: This model cannot take it; says why.
        """

    def rate(self, name: str, keys: Mapping[str, Any]) -> float:
        """Returns the factor on the component's learning rate for one trained parameter, by full name."""
        return 1.0

    def count(self, model: Any, site: Site) -> int | None:
        """Counts the trained parameters by a formula, for methods whose `attach` allocates even on the meta device.
        Refuses whatever `attach` refuses. None: the caller attaches the component and counts."""
        return None

    def describe(self, keys: Mapping[str, Any]) -> str:
        """Describes size and options for people, without places and learning rate: "LoRA rank 8", "adapter of 48".

        If the size differs by kind or layer, its value in `keys` is a text: "8 (16 in layer 3)".
        """
        return f"{self.label} of {keys[self.size]}" if self.size else self.label
