"""The configurations that both sides train: the six methods of the space `small`; LoRA of language models."""

from __future__ import annotations

from typing import Any

MODULES = ("query", "key", "value", "output", "up", "down")
# Method → the range of its learning rate, both as in search_spaces/small.yaml.
MIXED = {
    "head": (3e-4, 3e-2),
    "bias": (1e-4, 1e-2),
    "norm": (1e-4, 1e-2),
    "last_layers": (1e-5, 1e-3),
    "lora": (5e-5, 5e-3),
    "full": (5e-6, 3e-4),
}

# What ours is told of them. The list of configurations is fixed, so that the two sides train the same.
MIXED_SPACE: dict[str, Any] = {
    "method": list(MIXED),
    **{method: {"lr": {"float": list(ends), "log": True, "default": ends[0]}} for method, ends in MIXED.items()},
}
MIXED_SPACE["last_layers"]["count"] = {"int": [1, 3], "default": 1}
MIXED_SPACE["lora"] |= {
    "rank": {"int": [1, 32], "log": True, "default": 8},
    "alpha": 16,
    "modules": {"subset": "modules", "default": "all"},
    "layers": {"subset": "layers", "default": "all"},
}
LORA_SPACE: dict[str, Any] = {
    "method": ["lora"],
    "lora": {"rank": 8, "alpha": 16, "modules": {"subset": ["query", "value"], "default": "all"}, "layers": "all",
             "lr": {"float": [1e-4, 1e-3], "log": True, "default": 2e-4}},
}  # fmt: skip


def mixed(count: int, n_layers: int, seed: int) -> list[dict[str, Any]]:
    """Draws of the space `small`; its six methods take turns, so that any six in a row are one of each."""
    import numpy as np

    rng = np.random.default_rng(seed)

    def between(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    def some(items: list[Any]) -> list[Any]:
        return sorted(rng.choice(len(items), rng.integers(1, len(items) + 1), replace=False).tolist())

    out = []
    for number in range(count):
        method = list(MIXED)[number % len(MIXED)]
        params: dict[str, Any] = {"method": method, "head.lr": between(*MIXED["head"])}
        if method != "head":
            params[f"{method}.lr"] = between(*MIXED[method])
        if method == "last_layers":
            params["last_layers.count"] = int(rng.integers(1, min(3, n_layers) + 1))
        if method == "lora":
            params |= {
                "lora.rank": round(between(1, 32)),
                "lora.alpha": 16,
                "lora.modules": [MODULES[index] for index in some(list(MODULES))],
                "lora.layers": some(list(range(n_layers))),
            }
        out.append(params)
    return out


def lora_trials(count: int) -> list[dict[str, Any]]:
    """LoRA of rank 8 on query and value of all layers; learning rates over a decade."""
    own = {"lora.rank": 8, "lora.alpha": 16, "lora.modules": ["query", "value"], "lora.layers": "all"}
    return [{"method": "lora", **own, "lora.lr": 1e-4 * 10 ** (number / count)} for number in range(count)]
