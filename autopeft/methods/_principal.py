"""LoRA that begins with a part of its layer's weight. The part is subtracted from the base, which is not trained."""

from __future__ import annotations

from typing import Any

from autopeft.methods import Copies, Site
from autopeft.methods._lora import LowRank, require_linear
from autopeft.methods._peft import inject


class Principal(LowRank):
    """LoRA whose initialisation in peft changes the base.

    A stock adapter would change the base again when it is loaded, so the export contains the changed weights.

    Attributes:
        beginning: peft's name of the initialisation.
    """

    beginning: str
    is_peft = False

    def copies(self, model: Any, site: Site) -> Copies:
        return Copies(changed=tuple(f"{name}.weight" for name in site.scope.names))

    def count(self, model: Any, site: Site) -> int | None:
        require_linear(model, site, self.label)
        return super().count(model, site)

    def attach(self, model: Any, site: Site) -> None:
        from peft.tuners.lora import LoraLayer

        require_linear(model, site, self.label)
        config = self.config(site)
        if not next(model.parameters()).is_meta:
            config.init_lora_weights = self.beginning
        before = {id(module) for module in model.modules()}
        inject(model, config)
        added: list[Any] = [m for m in model.modules() if isinstance(m, LoraLayer) and id(m) not in before]
        for layer in added:  # an SVD returns views with unusual strides
            for matrix in (layer.lora_A["default"], layer.lora_B["default"]):
                matrix.weight.data = matrix.weight.data.contiguous()
            weight = layer.get_base_layer().weight
            weight.data = weight.data.contiguous()
