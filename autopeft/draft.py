"""A config while it is read: its content, the line of each key, its faults so far; overrides, paths, its space."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autopeft import spaces, yaml_file
from autopeft.errors import ConfigError, Fault, UnknownName
from autopeft.space import Space

FILES = ("train", "validation", "test")  # keys of `data` that are paths


@dataclass
class Draft:
    """A config while it is read: its content, the line of each key, and its faults so far.

    Attributes:
        content: Content of the file, as JSON data. The name of a space is replaced by the space's content.
        label: Name of the config in messages.
        folder: Folder to which its paths are relative.
        lines: Key path → its line; None if the key comes from `--set`.
        stem: The file's name without its ending.
        are_files_checked: Whether files must exist.
        space_file: Name of the space's own file, if it has one.
        space_lines: Key path → line, in the space's own file.
        faults: Faults so far.
    """

    content: dict[str, Any]
    label: str
    folder: Path = field(default_factory=Path.cwd)
    lines: dict[str, int | None] = field(default_factory=dict)
    stem: str | None = None
    are_files_checked: bool = True
    space_file: str = ""
    space_lines: Mapping[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def line(self, path: str) -> int | None:
        """Returns the line of a path, or of its nearest part that has a line."""
        return nearest(self.lines, path)

    def beside(self, path: str) -> Path:
        """Returns the folder to which a key's path is relative: the file's, or the working folder for `--set`."""
        return Path.cwd() if path in self.lines and self.lines[path] is None else self.folder

    def fault(self, path: str, message: str) -> None:
        self.faults.append(Fault(path, message, self.line(path)))

    def raise_faults(self) -> None:
        """Raises all faults at once, in the file's order, if there are any."""
        if self.faults:
            unique = {(fault.path, fault.message): fault for fault in self.faults}.values()
            in_order = sorted(unique, key=lambda fault: math.inf if fault.line is None else fault.line)
            raise ConfigError(in_order, self.label)


def nearest(lines: Mapping[str, int | None] | Mapping[str, int], path: str) -> int | None:
    """Returns the line of a path, or of its nearest part that has one."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in lines:
            return lines[".".join(parts[:length])]
    return None


def override(draft: Draft, text: str, defaults: Mapping[str, str]) -> None:
    """Sets `a.b=value`; the value is YAML.

    Args:
        defaults: Section that is a plugin → the name of that plugin if the file has no such section.
    """
    path, equals, written = (part.strip() for part in text.partition("="))
    if not equals or not path:
        draft.faults.append(Fault("--set", f"expected key=value such as budget.trials=60, got {text!r}"))
        return
    try:
        value = yaml_file.value(written)
    except ValueError as fault:
        draft.faults.append(Fault(f"--set {path}", str(fault)))
        return
    at: Any = draft.content
    keys = path.split(".")
    for index, key in enumerate(keys[:-1]):
        inner = _child(at, key)
        if isinstance(inner, str) or (inner is None and index == 0 and key in defaults):
            inner = {"path" if key == "model" else "name": inner or defaults[key]}  # a bare name gains options
        elif inner is None:
            inner = {}
        if not isinstance(inner, (dict, list)) or not _put(at, key, inner):
            draft.faults.append(Fault(f"--set {path}", f"{'.'.join(keys[: index + 1])} has no keys of its own"))
            return
        at = inner
    if not _put(at, keys[-1], value):
        message = f"{'.'.join(keys[:-1])} is a list of {len(at)}: give an index from 0"
        draft.faults.append(Fault(f"--set {path}", message))
        return
    for known in [known for known in draft.lines if known.startswith(f"{path}.")]:
        del draft.lines[known]
    draft.lines[path] = None


def _child(at: Any, key: str) -> Any:
    if isinstance(at, list):
        return at[int(key)] if key.isdigit() and int(key) < len(at) else None
    return at.get(key)


def _put(at: Any, key: str, value: Any) -> bool:
    """Sets a key, or an existing entry of a list. Returns whether this was possible."""
    if isinstance(at, list):
        if not (key.isdigit() and int(key) < len(at)):
            return False
        at[int(key)] = value
    else:
        at[key] = value
    return True


def place_paths(draft: Draft) -> None:
    """Makes paths absolute. A text that is not a path on this disk is taken as a name on the hub."""
    data, model, runs = (draft.content.get(key) for key in ("data", "model", "runs"))
    if isinstance(runs, str):
        draft.content["runs"] = str(Path(runs).expanduser())
    if isinstance(data, dict):
        for key in FILES:
            if isinstance(data.get(key), str):
                data[key] = str((draft.beside(f"data.{key}") / Path(data[key]).expanduser()).resolve())
        if isinstance(data.get("hub"), str):
            data["hub"] = _folder_or_name(data["hub"], draft.beside("data.hub"))
    _place_metrics(draft)
    if isinstance(model, dict) and isinstance(model.get("path"), str):
        model["path"] = _folder_or_name(model["path"], draft.beside("model.path"))
    elif isinstance(model, str):
        draft.content["model"] = _folder_or_name(model, draft.beside("model"))


def _place_metrics(draft: Draft) -> None:
    """Makes the files of the user's metrics absolute: `scores.py:function`."""
    metrics = draft.content.get("metrics")
    if not isinstance(metrics, dict):
        return
    for name, entry in metrics.items():
        function = entry.get("function") if isinstance(entry, dict) else entry
        place, _, of = function.rpartition(":") if isinstance(function, str) else ("", "", "")
        if place.endswith(".py"):
            placed = f"{(draft.beside(f'metrics.{name}') / Path(place).expanduser()).resolve()}:{of}"
            metrics[name] = {**entry, "function": placed} if isinstance(entry, dict) else placed


def _folder_or_name(text: str, beside: Path) -> str:
    """Returns an absolute path if the text is a folder, or can only mean a folder; else the text as a name."""
    path = beside / Path(text).expanduser()
    is_meant = text.startswith((".", "/", "~")) or text.count("/") > 1
    if not is_meant and "/" in text:
        is_meant = (beside / text.split("/")[0]).is_dir()
    return str(path.resolve()) if path.is_dir() or is_meant else text


def read_space(draft: Draft) -> None:
    """Replaces a space's name or path by its content. Faults name the lines of the space file."""
    name = draft.content.get("space")
    if not isinstance(name, str):
        return
    try:
        path = spaces.find(name, draft.beside("space"))
        document = yaml_file.read(path, path.name)
    except UnknownName as fault:
        draft.fault("space", str(fault))
        draft.content["space"] = {}
    except ConfigError as fault:
        for inner in fault.faults:
            draft.fault("space", f"{fault.source} {inner}".replace(" line ", ", line ", 1))
        draft.content["space"] = {}
    else:
        draft.content["space"] = document.content
        draft.space_lines, draft.space_file = document.lines, path.name


def check_space(draft: Draft, n_layers: int | None) -> Space | None:
    spec = draft.content.get("space")
    if not isinstance(spec, dict):
        return None
    if not spec:
        if not any(fault.path.startswith("space") for fault in draft.faults):
            message = "is empty: expected a name such as small, a path, or `method: [head, lora]` and its keys"
            draft.fault("space", message)
        return None
    space, faults = spaces.read(spec, n_layers)
    for fault in sorted(faults, key=lambda fault: nearest(draft.space_lines, fault.path) or 0):
        _place_space_fault(draft, fault)
    return space


def _place_space_fault(draft: Draft, fault: Fault) -> None:
    """Notes a fault of a space file at the config's `space:` key, with the space file and its line."""
    path = f"space.{fault.path}".rstrip(".")
    if not draft.space_file:
        draft.fault(path, fault.message)
        return
    line = nearest(draft.space_lines, fault.path)
    where = draft.space_file if line is None else f"{draft.space_file}, line {line}"
    draft.faults.append(Fault(path, f"({where}) {fault.message}", draft.line("space")))
