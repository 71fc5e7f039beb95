"""A base in 4 or 8 bits: how it is loaded, what of it is quantised, and what trials share of it.

Which layers are quantised is decided on the meta device, so that what cannot train on them is refused before a trial.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from autopeft.errors import EnvironmentFault, UsageError
from autopeft.quantisations import QUANTISATIONS, missing_library


def quantised_names(meta: Any, blocks: tuple[str, ...]) -> tuple[str, ...]:
    """Names the linear layers in the blocks of a model that a quantised load replaces: all but those kept in fp32."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = list(getattr(meta, "_keep_in_fp32_modules", None) or [])
    starts = tuple(f"{block}." for block in blocks)
    return tuple(
        name
        for name, module in meta.named_modules()
        if _is_linear(module) and name.startswith(starts) and should_convert_module(name, kept)
    )


def require_library(name: str | None) -> None:
    """Raises EnvironmentFault if the library of a quantisation is not installed here."""
    lacking = missing_library(name) if name is not None else None
    if lacking is not None:
        raise EnvironmentFault(lacking)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def loading_config(name: str, meta: nn.Module, names: tuple[str, ...]) -> Any:
    """Makes the config by which transformers quantises these layers while it loads a model.

    Args:
        name: One of QUANTISATIONS.
        meta: The model on the meta device.
        names: Its quantised layers.

    Raises:
        EnvironmentFault: The library is not installed.
        UsageError: The model has layers that the library does not know.
    """
    require_library(name)
    import transformers

    skipped = [n for n, module in meta.named_modules() if _is_linear(module) and n not in set(names)]
    if name == "torchao_int8":
        if any(not isinstance(meta.get_submodule(n), nn.Linear) for n in names):
            raise UsageError(f"torchao knows no Conv1D, which {type(meta).__name__} has: take nf4 or int8")
        from torchao.quantization import Int8WeightOnlyConfig

        return transformers.TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=skipped)
    if name == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=name, llm_int8_skip_modules=skipped
    )  # fmt: skip


def settle(model: nn.Module) -> None:
    """Brings the layers of a loaded model into a state that passes do not change, as trials share it."""
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # a line a pass on rounding to fp16
    for module in _packed(model):
        if hasattr(module, "support_avx512bf16_for_cpu"):  # else a pass without gradient repacks the weights in place
            module.support_avx512bf16_for_cpu = False
        if hasattr(module, "init_8bit_state") and module.weight.CB is not None:  # else the first pass takes them away
            module.init_8bit_state()


def shared_state(model: nn.Module) -> dict[int, Any]:
    """Returns what a clone shares beside parameters, by id: scales and codes, which modules hold as plain attributes."""
    found: list[Any] = []
    for module in _packed(model):
        found.append(getattr(module, "quant_state", None))
        state = getattr(module, "state", None)
        found += [getattr(state, key, None) for key in ("CB", "SCB")]
    return {id(value): value for value in found if value is not None}


def _packed(model: nn.Module) -> Iterator[Any]:
    """Yields the layers of bitsandbytes."""
    for module in model.modules():
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt") and not hasattr(module, "base_layer"):
            yield module


def compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Makes 4-bit layers multiply in this type."""
    for module in _packed(model):
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = dtype


def dequantise(model: Any, name: str, names: tuple[str, ...]) -> None:
    """Replaces quantised layers by plain ones with the weights that they stand for, fp32. Outputs stay but for rounding.

    Raises:
        UsageError: There are no such weights.
    """
    if not QUANTISATIONS[name].merges:
        raise UsageError(
            f"a base in {name} cannot be merged into: it rounds activations, too, so that no weights have its outputs; "
            "export the adapter, or take it to the base as it was"
        )
    from autopeft.training.model import replace_module

    for layer in names:
        old = model.get_submodule(layer)
        new = nn.Linear(old.in_features, old.out_features, old.bias is not None, device="meta")
        new.weight = nn.Parameter(weight_of(old), requires_grad=False)
        if old.bias is not None:
            new.bias = nn.Parameter(old.bias.detach().clone(), requires_grad=False)
        replace_module(model, layer, new)
    for key in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, key):
            delattr(model.config, key)
    for key in ("hf_quantizer", "quantization_method", "is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        model.__dict__.pop(key, None)
    model.autopeft_quantised = False


def weight_of(layer: Any) -> torch.Tensor:
    """Returns the weight (outputs, inputs) that a 4-bit or torchao layer stands for, fp32."""
    weight = layer.weight
    if type(layer).__name__ == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit

        found: torch.Tensor = dequantize_4bit(weight.data, weight.quant_state)
        return found.float()
    return weight.dequantize().float()  # type: ignore[no-any-return]
