"""Finding plugins: the file is the registration.

`autopeft/<kind>/<name>.py` ends in `plugin = TheClass`; packages from outside register the entry point group
`autopeft.<kind>`. Listing names imports nothing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from functools import lru_cache
from typing import Any

from autopeft.errors import UnknownName

KINDS = ("methods", "tasks", "samplers", "stoppers", "executors", "trackers")


@lru_cache
def names(kind: str) -> tuple[str, ...]:
    """The names of all plugins of a kind, ours and other people's, sorted."""
    package = importlib.import_module(f"autopeft.{kind}")
    ours = [module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")]
    theirs = [point.name for point in entry_points(kind)]
    return tuple(sorted({*ours, *theirs}))


@lru_cache
def entry_points(kind: str) -> tuple[importlib.metadata.EntryPoint, ...]:
    """Other people's plugins of a kind. Asked once: it reads the metadata of all that is installed (10 ms)."""
    return tuple(importlib.metadata.entry_points(group=f"autopeft.{kind}"))


def load(kind: str, name: str) -> Any:
    """The plugin of that name. Its module is imported here, and nothing before.

    Raises:
        UnknownName: There is none.
    """
    if name not in names(kind):
        raise UnknownName(kind.removesuffix("s"), name, names(kind))
    for point in entry_points(kind):
        if point.name == name:
            return point.load()
    return importlib.import_module(f"autopeft.{kind}.{name}").plugin
