"""Putting a peft tuner into a model in place: the model's own forward goes on working, nothing wraps it."""

from __future__ import annotations

import warnings
from typing import Any

from autopeft.errors import Refused

# What model code reads of a convolution that a tuner layer has replaced (MobileNet's TensorFlow padding).
CONVOLUTION_ATTRIBUTES = ("stride", "padding", "kernel_size", "dilation", "groups")


def inject(model: Any, config: Any) -> None:
    """Injects one peft adapter, called `default`, into the modules that its config names.

    Raises:
        Refused: A module's type is not one that the tuner handles, or a peft adapter sits there already.
    """
    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise Refused("two peft methods in one recipe: a model holds one peft adapter beside autopeft's own components")
    if not config.target_modules:
        raise Refused("empty: no module is chosen")
    is_meta = any(parameter.is_meta for parameter in model.parameters())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            get_peft_model(model, config, low_cpu_mem_usage=is_meta)
    except (ValueError, TypeError, NotImplementedError) as fault:
        raise Refused(f"unsupported: {str(fault).splitlines()[0][:200]}") from fault
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and hasattr(module.get_base_layer(), "stride"):
            for name in CONVOLUTION_ATTRIBUTES:
                setattr(module, name, getattr(module.get_base_layer(), name))
