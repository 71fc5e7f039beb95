"""Where to write names in a figure so that none covers another, nor a point of the front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels; y grows downwards, as on a screen."""

    left: float
    top: float
    right: float
    bottom: float

    @staticmethod
    def around(x: float, y: float, half: float) -> Box:
        return Box(x - half, y - half, x + half, y + half)

    def overlap(self, other: Box) -> float:
        """The common area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return width * height if width > 0 and height > 0 else 0.0

    def lies_in(self, other: Box) -> bool:
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )


def place(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    *,
    bounds: Box,
    hard: Sequence[Box],
    soft: Sequence[Box] = (),
    unit: float = 1.0,
) -> list[Box | None]:
    """A place near its anchor for each label, the first ones first; None where there is no room.

    Candidates lie on rings around the anchor. One that leaves the bounds or touches a hard box or an earlier label
    is out; of the rest the one that covers least of the soft boxes and stays nearest wins, above left at even cost:
    there a front leaves the figure empty.

    Args:
        anchors: (x, y) of each label's point.
        sizes: (width, height) of each label.
        bounds: All labels lie inside.
        hard: Never covered: the front's points, texts that are there already.
        soft: Better not covered: the other points, the front's line.
        unit: Pixels to a point of the font's size, for pictures of a higher resolution.
    """
    taken = list(hard)
    placed: list[Box | None] = []
    for (x, y), (width, height) in zip(anchors, sizes, strict=True):
        best: tuple[float, Box] | None = None
        for distance in (9.0, 16.0, 26.0, 40.0, 58.0, 80.0):
            for step in range(24):
                angle = 2 * math.pi * step / 24
                box = _beside(x, y, width, height, distance * unit, angle)
                if not box.lies_in(bounds) or any(box.overlap(other) for other in taken):
                    continue
                covered = sum(box.overlap(other) for other in soft) / (width * height)
                away_from_empty = 1 + math.cos(angle - 1.25 * math.pi)  # 0 towards lower right … 2 towards upper left
                cost = 9 * covered + distance / 20 - 0.35 * away_from_empty
                if best is None or cost < best[0]:
                    best = (cost, box)
        placed.append(None if best is None else best[1])
        if best is not None:
            taken.append(best[1])
    return placed


def _beside(x: float, y: float, width: float, height: float, distance: float, angle: float) -> Box:
    """A box whose nearest side or corner lies `distance` from the point in that direction (0 is right, then down)."""
    dx, dy = math.cos(angle), math.sin(angle)
    centre_x = x + distance * dx + width / 2 * max(-1.0, min(1.0, 1.6 * dx))
    centre_y = y + distance * dy + height / 2 * max(-1.0, min(1.0, 1.6 * dy))
    return Box(centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)


def text_width(text: str, size: float) -> float:
    """About how wide a sans-serif text is, in pixels: for figures drawn without a font at hand."""
    return 1.06 * size * sum(_WIDTHS.get(char, 0.7 if char.isupper() else 0.56) for char in text)


_WIDTHS = {
    **dict.fromkeys("ijl.,:;'|!()[]", 0.3),
    **dict.fromkeys("frt /-–", 0.36),
    **dict.fromkeys("mwMW—%@", 0.9),
}
