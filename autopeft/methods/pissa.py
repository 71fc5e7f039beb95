"""PiSSA: (W − s B₀ A₀) x + s B A x, s = alpha / rank, begun at s B₀ A₀ = the `rank` principal components of W (Meng et
al., 2024, arXiv:2404.02948)."""

from __future__ import annotations

from autopeft.methods._principal import Principal


class Pissa(Principal):
    """LoRA of the weight's largest singular values."""

    label = "PiSSA"
    beginning = "pissa"


plugin = Pissa
