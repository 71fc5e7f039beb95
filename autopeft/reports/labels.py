"""Places names in a figure so that no name covers another name or a point of the front."""

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
        """Returns the common area."""
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
    """Finds a place near its anchor for each label, in order; None for a label if there is no room.

    Candidates lie on rings around the anchor. A candidate that leaves the bounds, or touches a hard box or an earlier
    label, is out. Of the rest, the nearest one that covers least of the soft boxes wins. At equal cost the label goes
    above left, as a front leaves that part of the figure empty.

    Args:
        anchors: (x, y) of each label's point.
        sizes: (width, height) of each label.
        bounds: All labels lie inside.
        hard: Boxes that are never covered: the front's points, texts that are there already.
        soft: Boxes that are better not covered: the other points, the front's line.
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
    """Returns a box whose nearest side or corner is `distance` from the point at `angle` (0 is right, then down)."""
    dx, dy = math.cos(angle), math.sin(angle)
    centre_x = x + distance * dx + width / 2 * max(-1.0, min(1.0, 1.6 * dx))
    centre_y = y + distance * dy + height / 2 * max(-1.0, min(1.0, 1.6 * dy))
    return Box(centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)


def text_width(text: str, size: float) -> float:
    """Estimates the width of a sans-serif text in pixels, for figures drawn without a font at hand."""
    return 1.06 * size * sum(_WIDTHS.get(char, 0.7 if char.isupper() else 0.56) for char in text)


_WIDTHS = {
    **dict.fromkeys("ijl.,:;'|!()[]", 0.3),
    **dict.fromkeys("frt /-–", 0.36),
    **dict.fromkeys("mwMW—%@", 0.9),
}
