"""Finding plugins: the file is the registration.

`autopeft/<kind>/<name>.py` ends in `plugin = TheClass`; packages from outside register an entry point in the group
`autopeft.<kind>`, `name = "package.module:TheClass"`. Listing names imports nothing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pkgutil
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from autopeft.errors import EnvironmentFault, UnknownName, UsageError

KINDS = ("methods", "tasks", "samplers", "stoppers", "executors", "trackers")


@lru_cache
def names(kind: str) -> tuple[str, ...]:
    """Lists the names of all plugins of a kind, ours and other people's, sorted."""
    return tuple(sorted({*_ours(kind), *(point.name for point in entry_points(kind))}))


@lru_cache
def _ours(kind: str) -> frozenset[str]:
    package = importlib.import_module(f"autopeft.{kind}")
    modules = pkgutil.iter_modules(package.__path__)
    return frozenset(module.name for module in modules if not module.name.startswith("_"))


@lru_cache
def entry_points(kind: str) -> tuple[importlib.metadata.EntryPoint, ...]:
    """Finds other people's plugins of a kind. Cached, as it reads the metadata of all installed packages (10 ms)."""
    return tuple(importlib.metadata.entry_points(group=f"autopeft.{kind}"))


def load(kind: str, name: str) -> Any:
    """Imports the module of a plugin and returns the plugin.

    Raises:
        UnknownName: No plugin has that name.
        UsageError: Two plugins have that name.
        EnvironmentFault: The plugin is somebody else's, and cannot be imported.
    """
    if name not in names(kind):
        raise UnknownName(kind.removesuffix("s"), name, names(kind))
    theirs = [point for point in entry_points(kind) if point.name == name]
    owners = [*(["autopeft"] if name in _ours(kind) else []), *(_owner(point) for point in theirs)]
    if len(owners) > 1:
        raise UsageError(
            f"{kind.removesuffix('s')} {name!r} comes with {' and with '.join(sorted(owners))}: uninstall one"
        )
    if not theirs:
        return importlib.import_module(f"autopeft.{kind}.{name}").plugin
    try:
        return theirs[0].load()
    except Exception as fault:
        raise EnvironmentFault(
            f"{kind.removesuffix('s')} {name!r}, which comes with {owners[0]}, cannot be loaded: "
            f"{type(fault).__name__}: {fault}. Repair or uninstall that package"
        ) from fault


def make(kind: str, name: str, options: Mapping[str, Any] | None = None, *given: Any, **more: Any) -> Any:
    """Builds an object of a plugin: `plugin(*given, **options, **more)`.

    Args:
        options: The user's options, as in the config.
        given, more: Arguments that every plugin of the kind gets.
    """
    return load(kind, name)(*given, **{**(options or {}), **more})


def taken(plugin: Any, offered: Mapping[str, Any]) -> dict[str, Any]:
    """Picks the offered arguments that a plugin's constructor names. So a plugin gets only what it needs."""
    parameters = inspect.signature(plugin).parameters
    return {name: value for name, value in offered.items() if name in parameters}


def about(kind: str, name: str) -> str:
    """Describes a plugin in a line: the first sentence of its module's docstring."""
    return sentence(sys.modules[load(kind, name).__module__].__doc__ or "")


def sentence(text: str) -> str:
    """Returns the first sentence of a text's first paragraph, on one line."""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    end = paragraph.find(". ")
    return paragraph[: end + 1] if end > 0 else paragraph


def _owner(point: importlib.metadata.EntryPoint) -> str:
    return f"the package {point.dist.name!r}" if point.dist is not None else point.value
