"""Putting a peft tuner into a model in place: the model's own forward goes on working, nothing wraps it."""

from __future__ import annotations

import warnings
from typing import Any

from autopeft.errors import Refused

# What model code reads of a convolution that a tuner layer has replaced (MobileNet's TensorFlow padding).
CONVOLUTION_ATTRIBUTES = ("stride", "padding", "kernel_size", "dilation", "groups", "in_channels", "out_channels")


def inject(model: Any, config: Any) -> None:
    """Injects a peft adapter, called `default`, into the modules that its config names.

    Where another method's adapter sits already, the new one goes around it.

    Raises:
        Refused: Nothing is chosen, or a module's type is not one that the tuner handles.
    """
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not config.target_modules:
        raise Refused("empty: no module is chosen")
    around = any(isinstance(module, BaseTunerLayer) for module in model.modules())
    is_meta = any(parameter.is_meta for parameter in model.parameters())
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuner(model, config, "default", low_cpu_mem_usage=is_meta)
    except (ValueError, TypeError, NotImplementedError) as fault:
        hint = "; named before the other peft method it may fit" if around else ""
        raise Refused(f"unsupported: {' '.join(str(fault).split())[:200]}{hint}") from fault
    del model.peft_config  # the tuner is gone: to the next one this is a plain model
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and hasattr(module.get_base_layer(), "stride"):
            for name in CONVOLUTION_ATTRIBUTES:
                if not hasattr(module, name):
                    setattr(module, name, getattr(module.get_base_layer(), name))
