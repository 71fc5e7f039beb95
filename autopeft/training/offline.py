"""Reads files on disk or in the hub's cache without the network, as a hub that is down costs minutes of retries."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from autopeft.errors import EnvironmentFault

T = TypeVar("T")


def from_disk_first(model: str, revision: str | None, call: Callable[[], T]) -> T:
    """Returns the result of a call that reads a model: without the network if all files are here, else with it.

    Args:
        model: A folder, or a name on the hub.
        revision: Commit of a hub model. A commit never changes. Without one, the hub is asked.
        call: Reads the model.
    """
    if Path(model).is_dir() or revision is not None:
        with contextlib.suppress(EnvironmentFault, OSError), without_network():
            return call()
    return call()


@contextlib.contextmanager
def without_network() -> Iterator[None]:
    """Makes the hub's clients use the disk only. transformers reads the first of these switches, peft the other."""
    from huggingface_hub import constants

    before, environment = constants.HF_HUB_OFFLINE, os.environ.get("HF_HUB_OFFLINE")
    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        if environment is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = environment
