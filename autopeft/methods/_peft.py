"""Methods of peft: its tuner changes a model in place. Nothing wraps the model: its own forward goes on working."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from autopeft.errors import Refused
from autopeft.methods import Method, Scope, Site

# Attributes of a convolution that model code still reads after a tuner layer replaced it (MobileNet's TensorFlow
# padding).
CONVOLUTION_ATTRIBUTES = ("stride", "padding", "kernel_size", "dilation", "groups", "in_channels", "out_channels")


class PeftMethod(Method):
    """A method that peft implements. Most subclasses only set these attributes.

    Attributes:
        peft: Name of its config's class in peft.
        arguments: Key → the config's argument that takes it.
        fixed: Further arguments of the config.
    """

    peft: str
    arguments: Mapping[str, str] = {}
    fixed: Mapping[str, Any] = {}
    modules: tuple[str, ...] = ("query", "value")
    is_peft = True
    merges = True

    def config(self, site: Site) -> Any:
        """Builds a new peft config on each call, as peft changes the config that it is given."""
        import peft

        if not site.scope.names:
            raise Refused("empty: no module is chosen")
        with refusing():
            return getattr(peft, self.peft)(**self.given(site))

    def given(self, site: Site) -> dict[str, Any]:
        """Returns the config's arguments."""
        own = {theirs: site.keys[ours] for ours, theirs in self.arguments.items()}
        return {"target_modules": site.scope.names, **own, **self.fixed}

    def attach(self, model: Any, site: Site) -> Any:
        inject(model, self.config(site))

    def count(self, model: Any, site: Site) -> int | None:
        """Sums `numbers` over the modules; None if one of them is no plain linear layer."""
        return sum_of_linear(model, site, lambda kind, i, o, size: self.numbers(site.keys, kind, i, o, size))

    def numbers(self, keys: Mapping[str, Any], kind: str, inputs: int, outputs: int, size: int) -> int | None:
        """Counts the parameters trained at one linear layer; None if there is no formula."""
        return None

    def describe(self, keys: Mapping[str, Any]) -> str:
        return f"{self.label} {self.size.replace('_', ' ')} {keys[self.size]}" if self.size else self.label


def sum_of_linear(
    model: Any, site: Site, numbers: Callable[[str, int, int, int], int | None], sizes: int = 0
) -> int | None:
    """Sums a function of (kind, inputs, outputs, size) over the chosen modules. None if a module is no plain linear
    layer, or if the function returns None for one."""
    import torch

    total = 0
    for kind, names in site.scope.modules.items():
        for name in names:
            layer = model.get_submodule(name)
            if type(layer) is not torch.nn.Linear:
                return None
            found = numbers(kind, layer.in_features, layer.out_features, site.scope.sizes.get(name, sizes))
            if found is None:
                return None
            total += found
    return total


def by_module(scope: Scope) -> tuple[int, dict[str, int]]:
    """Returns (the largest size, peft's pattern of the modules with another size)."""
    largest = max(scope.sizes.values(), default=0)
    return largest, {f"^{re.escape(name)}$": value for name, value in scope.sizes.items() if value != largest}


def inject(model: Any, config: Any) -> Any:
    """Injects a peft adapter, called `default`, into the modules that its config names. Returns peft's tuner.

    If a module already has another component's adapter, of whatever method, the new adapter goes around it.

    Raises:
        Refused: peft raised anything else than out of memory.
    """
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTunerLayer

    around = any(isinstance(module, BaseTunerLayer) for module in model.modules())
    is_meta = any(parameter.is_meta for parameter in model.parameters())
    make = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    inner = _taken_out(model, config.target_modules, make)
    with refusing("; named before the other peft method it may fit" if around else ""), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuner = make(model, config, "default", low_cpu_mem_usage=is_meta)
    for name, layer in inner.items():
        model.get_submodule(name).base_layer = layer
    del model.peft_config  # the tuner is done: to the next tuner this is a plain model
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and hasattr(module.get_base_layer(), "stride"):
            for name in CONVOLUTION_ATTRIBUTES:
                if not hasattr(module, name):
                    setattr(module, name, getattr(module.get_base_layer(), name))
    return tuner


def _taken_out(model: Any, names: Iterable[str], tuner: Any) -> dict[str, Any]:
    """Puts back the bare layer in place of each adapter of the same tuner, as peft would overwrite the adapter.

    Returns:
        Full module name → the layer with its adapter, to go inside the new one.
    """
    found = {name: model.get_submodule(name) for name in sorted(names)}
    inner = {name: layer for name, layer in found.items() if isinstance(layer, tuner.tuner_layer_cls)}
    for name, layer in inner.items():
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, layer.get_base_layer())
    return inner


@contextlib.contextmanager
def refusing(hint: str = "") -> Iterator[None]:
    """Turns whatever peft raises into Refused, with the error's type and text; except out of memory."""
    try:
        yield
    except Refused:
        raise
    except Exception as fault:
        if isinstance(fault, MemoryError) or "out of memory" in str(fault):
            raise
        text = " ".join(str(fault).split())[:200]
        raise Refused(f"unsupported: {type(fault).__name__}: {text}{hint}") from fault
