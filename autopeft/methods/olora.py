"""OLoRA: (W − s B₀ A₀) x + s B A x, s = alpha / rank, begun at B₀ = Q and A₀ = R of W = Q R, the first `rank` of each
(Büyükakyüz, 2024, arXiv:2406.01775)."""

from __future__ import annotations

from autopeft.methods._principal import Principal


class OLora(Principal):
    """LoRA with an orthonormal beginning."""

    label = "OLoRA"
    beginning = "olora"


plugin = OLora
