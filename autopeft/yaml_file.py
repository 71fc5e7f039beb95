"""A YAML file as plain data, with the line of each key. A fault in the file is a ConfigError that names the line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopeft.errors import ConfigError, Fault, did_you_mean

ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class Document:
    """One file.

    Attributes:
        content: As JSON data: keys are strings, dates are text.
        lines: `a.b` → the line of that key, from 1; entries of lists by index: `a.0`.
    """

    content: dict[str, Any]
    lines: Mapping[str, int]


def read(path: Path, label: str | None = None) -> Document:
    """Reads YAML 1.2: `1e-4` is a number, `off` is text.

    Args:
        path: The file.
        label: The file's name in messages; the path if absent.

    Raises:
        ConfigError: The file does not exist, or holds no YAML, or no mapping.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    label = label or str(path)
    text = _text(path, label)
    try:
        node = YAML(typ="safe", pure=True).compose(text)
        content = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        problem = str(fault.problem).splitlines()[0]
        raise ConfigError([Fault("", f"is no YAML: {problem}", mark.line + 1 if mark else None)], label) from None
    except (YAMLError, ValueError) as fault:
        raise ConfigError([Fault("", f"is no YAML: {str(fault).splitlines()[0]}")], label) from None
    if not isinstance(content, dict):
        what = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigError([Fault("", f"expected a mapping of sections (`model: …`), got {what}")], label)
    lines: dict[str, int] = {}
    _note(node, "", lines, set())
    try:
        return Document(plain(content), lines)
    except (ValueError, RecursionError):
        raise ConfigError([Fault("", "holds an alias of something that holds it")], label) from None


def value(text: str) -> Any:
    """Parses one value, written as after a colon.

    Raises:
        ValueError: The text is no YAML.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return json.loads(json.dumps(YAML(typ="safe", pure=True).load(text), default=str))
    except YAMLError as fault:
        raise ValueError(f"{text!r} is no YAML") from fault


def plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a deep copy as JSON data."""
    copy: dict[str, Any] = json.loads(json.dumps(data, default=str))
    return copy


def _text(path: Path, label: str) -> str:
    if path.is_dir():
        raise ConfigError([Fault("", "is a folder; expected a YAML file")], label)
    if not path.is_file():
        near = [entry.name for entry in path.parent.glob("*") if entry.suffix in ENDINGS]
        raise ConfigError([Fault("", f"there is no such file.{did_you_mean(path.name, near)}")], label)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as fault:
        line = path.read_bytes()[: fault.start].count(b"\n") + 1
        raise ConfigError([Fault("", "is not UTF-8 text", line)], label) from None


def _note(node: Any, path: str, lines: dict[str, int], seen: set[int]) -> None:
    """Notes the lines of the keys below a node. Keys behind an alias have the lines where they were first written."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if type(node).__name__ == "MappingNode":
        for key, inner in node.value:
            at = f"{path}.{key.value}" if path else str(key.value)
            lines[at] = key.start_mark.line + 1
            _note(inner, at, lines, seen)
    elif type(node).__name__ == "SequenceNode":
        for index, inner in enumerate(node.value):
            lines[f"{path}.{index}"] = inner.start_mark.line + 1
            _note(inner, f"{path}.{index}", lines, seen)
