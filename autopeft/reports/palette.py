"""One colour and one shape a method, the same in every figure, light and dark.

A recipe's look depends on its name alone, never on the rest of the figure. Each method of ours has a pair of its own;
any other name gets a pair by its hash. The shape repeats the colour, for readers who do not see the colours differ.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

SHAPES = ("circle", "square", "diamond", "up", "down", "cross", "plus", "pentagon")

# (on a light ground, on a dark one): at least 3 to 1 against white and against #16181d.
_BLUE, _ORANGE, _TEAL = ("#2a6fcf", "#5b9bf0"), ("#d4571f", "#f0834f"), ("#138a66", "#35b98f")
_AMBER, _PINK, _GREEN = ("#a87400", "#e0a526"), ("#c7437c", "#ee7fae"), ("#4b7f12", "#86bd3f")
_VIOLET, _RED, _BROWN = ("#6a4fc9", "#a493f5"), ("#c22f38", "#f1737a"), ("#87613f", "#c39b76")
_SLATE, _INK = ("#66707d", "#98a2b0"), ("#25292f", "#e8eaee")
_HUES = (_BLUE, _ORANGE, _TEAL, _AMBER, _PINK, _GREEN, _VIOLET, _RED, _BROWN)

_KNOWN: dict[str, tuple[tuple[str, str], str]] = {
    "head": (_SLATE, "square"),
    "full": (_INK, "diamond"),
    "last_layers": (_BROWN, "square"),
    "bias": (_GREEN, "up"),
    "norm": (_RED, "down"),
    "lora": (_BLUE, "circle"),
    "vera": (_VIOLET, "circle"),
    "ia3": (_TEAL, "plus"),
    "serial_adapter": (_ORANGE, "square"),
    "parallel_adapter": (_AMBER, "diamond"),
    "prefix": (_PINK, "pentagon"),
    "serial_adapter+parallel_adapter+prefix": (_VIOLET, "pentagon"),
}


@dataclass(frozen=True, slots=True)
class Look:
    """How a method is drawn.

    Attributes:
        light, dark: Colours as `#rrggbb`.
        shape: One of `SHAPES`.
    """

    light: str
    dark: str
    shape: str


def look(method: str) -> Look:
    """Returns the look of a recipe."""
    if method in _KNOWN:
        (light, dark), shape = _KNOWN[method]
        return Look(light, dark, shape)
    digest = hashlib.sha256(method.encode()).digest()
    light, dark = _HUES[digest[0] % len(_HUES)]
    return Look(light, dark, SHAPES[digest[1] % len(SHAPES)])
