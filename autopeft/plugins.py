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
    """The names of all plugins of a kind, ours and other people's, sorted."""
    return tuple(sorted({*_ours(kind), *(point.name for point in entry_points(kind))}))


@lru_cache
def _ours(kind: str) -> frozenset[str]:
    package = importlib.import_module(f"autopeft.{kind}")
    modules = pkgutil.iter_modules(package.__path__)
    return frozenset(module.name for module in modules if not module.name.startswith("_"))


@lru_cache
def entry_points(kind: str) -> tuple[importlib.metadata.EntryPoint, ...]:
    """Other people's plugins of a kind. Asked once: it reads the metadata of all that is installed (10 ms)."""
    return tuple(importlib.metadata.entry_points(group=f"autopeft.{kind}"))


def load(kind: str, name: str) -> Any:
    """The plugin of that name. Its module is imported here, and nothing before.

    Raises:
        UnknownName: There is none.
        UsageError: There are two: which one was meant, nobody said.
        EnvironmentFault: Somebody else's, and it cannot be imported.
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
    """An object of that plugin: `plugin(*given, **options, **more)`.

    Args:
        options: The user's, as the config has them.
        given, more: What the search gives every plugin of the kind.
    """
    return load(kind, name)(*given, **{**(options or {}), **more})


def taken(plugin: Any, offered: Mapping[str, Any]) -> dict[str, Any]:
    """Of what is offered, what the constructor of a plugin names among its parameters: a plugin says what it needs."""
    parameters = inspect.signature(plugin).parameters
    return {name: value for name, value in offered.items() if name in parameters}


def about(kind: str, name: str) -> str:
    """What a plugin is, in a line: the first sentence of its module's docstring."""
    return sentence(sys.modules[load(kind, name).__module__].__doc__ or "")


def sentence(text: str) -> str:
    """The first paragraph on one line, up to a full stop that ends a sentence."""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    end = paragraph.find(". ")
    return paragraph[: end + 1] if end > 0 else paragraph


def _owner(point: importlib.metadata.EntryPoint) -> str:
    return f"the package {point.dist.name!r}" if point.dist is not None else point.value
