"""Changes of pictures that keep their class: flips and shifts, new for each batch. Flip and crop as for CIFAR-10 in He et
al., 2015, arXiv:1512.03385."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SHARE = 8  # a picture is shifted by up to this part of its height and width, 4 pixels of 32


def flip(pixels: Any) -> Any:
    """Mirrors each picture of a batch (n, channels, height, width), left to right, with a chance of one half."""
    import torch

    is_flipped = torch.rand(len(pixels), 1, 1, 1, device=pixels.device) < 0.5
    return torch.where(is_flipped, pixels.flip(-1), pixels)


def crop(pixels: Any) -> Any:
    """Shifts each picture of a batch (n, channels, height, width) by chance. What comes in is mirrored at its border."""
    n_rows, _, height, width = pixels.shape
    down, right = (_places(n_rows, size, pixels.device) for size in (height, width))
    rows = pixels.gather(2, down[:, None, :, None].expand_as(pixels))
    return rows.gather(3, right[:, None, None, :].expand_as(pixels))


def _places(n_rows: int, size: int, device: Any) -> Any:
    """Returns from where each place of a shifted line is taken (n_rows, size)."""
    import torch

    most = max(1, size // SHARE)
    shift = torch.randint(-most, most + 1, (n_rows, 1), device=device)
    place = (torch.arange(size, device=device) + shift).abs()
    return torch.where(place >= size, 2 * (size - 1) - place, place)


CHANGES: dict[str, Callable[[Any], Any]] = {"flip": flip, "crop": crop}
