"""AdaLoRA: W x + (alpha / rank₀) P Λ Q x, a singular value decomposition whose least important triplets are dropped
during training, until each module has `rank` of them on average (Zhang et al., 2023, arXiv:2303.10512).

The loss has a term that keeps P and Q orthogonal. Importance is the smoothed sensitivity of a triplet's numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from autopeft.methods import During, Site
from autopeft.methods._peft import PeftMethod, inject

COUNTING_STEPS = 100  # stands for the trial's steps if nothing is trained: counts do not depend on the steps


class AdaLora(PeftMethod):
    """Low-rank updates whose ranks are distributed over the modules while they train."""

    label = "AdaLoRA"
    peft = "AdaLoraConfig"
    keys: Mapping[str, str] = {
        "rank": "rank of a module at the end, on average; it begins with half as much again",
        "alpha": "numerator of its scale",
        "dropout": "on its input",
        "orthogonality": "weight of the loss's term",
        "begin": "share of the steps before ranks shrink",
        "end": "share of the steps after ranks have shrunk",
    }
    arguments: Mapping[str, str] = {
        "rank": "target_r",
        "alpha": "lora_alpha",
        "dropout": "lora_dropout",
        "orthogonality": "orth_reg_weight",
    }
    stock: Mapping[str, Any] = {
        "rank": 8, "alpha": 16, "dropout": 0.0, "orthogonality": 0.1, "begin": 0.1, "end": 0.3, "lr": 1e-3,
    }  # fmt: skip
    size = "rank"

    def given(self, site: Site) -> dict[str, Any]:
        steps = site.steps or COUNTING_STEPS
        return {
            **super().given(site),
            "init_r": -(-3 * site.keys["rank"] // 2),
            "total_step": steps,
            "tinit": round(site.keys["begin"] * steps),
            "tfinal": round(site.keys["end"] * steps),
            "deltaT": max(1, steps // 100),
        }

    def numbers(self, keys: Mapping[str, Any], kind: str, inputs: int, outputs: int, size: int) -> int | None:
        return (inputs + outputs + 1) * -(-3 * size // 2) if keys["begin"] + keys["end"] < 1 else None

    def attach(self, model: Any, site: Site) -> During:
        config, before = self.config(site), {id(module) for module in model.modules()}
        inject(model, config)
        for name, parameter in model.named_parameters():
            if ".ranknum." in name:  # a constant; on the meta device peft forgets to freeze it
                parameter.requires_grad_(False)
        return Allocation(model, config, before).during()


class Allocation:
    """Lowers the ranks of one trial's modules, by peft's allocator.

    Args:
        model: With AdaLoRA's layers in place.
        config: The peft config.
        before: Ids of the modules that were there before, to leave other adapters alone.
    """

    def __init__(self, model: Any, config: Any, before: set[int]) -> None:
        from peft.tuners.adalora import layer as peft_layer

        self.config = config
        found: dict[str, Any] = {
            name: module for name, module in model.named_modules() if isinstance(module, peft_layer.AdaLoraLayer)
        }
        self.layers = {name: module for name, module in found.items() if id(module) not in before}
        make: Any = peft_layer.RankAllocator
        self.allocator = make(self, config, "default")
        self.pattern: Any = None

    def named_parameters(self) -> Iterator[tuple[str, Any]]:
        """Yields names and parameters: all that the allocator reads of a model."""
        for name, layer in self.layers.items():
            for own, parameter in layer.named_parameters():
                if own.startswith(("lora_A.", "lora_B.", "lora_E.")):
                    yield f"{name}.{own}", parameter

    def during(self) -> During:
        return During(self.penalty, self.after_step)

    def penalty(self) -> Any:
        """Returns the weighted mean of ‖P ᵀP − I‖ and ‖Q Qᵀ − I‖ over the modules."""
        import torch

        found = []
        for name, p in self.named_parameters():
            if "lora_E" not in name:
                gram = p @ p.T if "lora_A" in name else p.T @ p
                found.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)))
        return self.config.orth_reg_weight * torch.stack(found).mean()

    def after_step(self, step: int) -> None:
        """Drops triplets by the schedule. Triplets dropped at the schedule's end stay dropped."""
        last = self.config.total_step - self.config.tfinal
        if step < last:
            self.allocator.update_and_allocate(self, step)
        elif step == last:
            _, self.pattern = self.allocator.update_and_allocate(self, step, force_mask=True)
        else:
            self.allocator.mask_using_rank_pattern(self, self.pattern)


plugin = AdaLora
