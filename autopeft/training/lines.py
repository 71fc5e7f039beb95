"""Lines of text, each answered as it comes: what `autopeft predict --follow` reads and writes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from autopeft.errors import UsageError
from autopeft.training.export import Exported

WRITTEN = ("text", "texts", "conversation")  # kinds of columns that a line can hold


def answered(exported: Exported, lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yields the answer to each line, before the next line is asked for: its columns, or `error` with the reason.

    A line is a JSON object with the input columns (others are not looked at), or, for an adapter of one input column,
    the text itself; of a conversation, what the user says.

    Raises:
        UsageError: The adapter reads no texts.
    """
    inputs: Mapping[str, str] = exported.about["inputs"]
    if not inputs or not all(kind in WRITTEN for kind in inputs.values()):
        read = ", ".join(sorted(set(inputs.values()))) or "no column"
        raise UsageError(f"lines are texts, and this adapter reads {read}: predict a file or a folder")
    for line in lines:
        try:
            row = _row(line, inputs)
            frame = exported.predict({name: [row[name]] for name in inputs})
            yield {name: _plain(frame[name].iloc[0]) for name in frame}
        except UsageError as fault:
            yield {"error": " ".join(str(fault).split())}


def _row(line: bytes, inputs: Mapping[str, str]) -> Mapping[str, Any]:
    """Reads a line.

    Raises:
        UsageError: It is no row of these columns.
    """
    try:
        text = line.decode("utf-8").strip("\r\n")
    except UnicodeDecodeError as fault:
        raise UsageError(f"the line is not UTF-8: {fault.reason} at byte {fault.start}") from fault
    if not text.strip():
        raise UsageError("the line is empty")
    columns = ", ".join(inputs)
    if not text.lstrip().startswith("{"):
        if len(inputs) > 1:
            raise UsageError(f"expected a JSON object with {columns}, got {text!r:.40}")
        ((name, kind),) = inputs.items()
        is_said = kind == "conversation" and not text.lstrip().startswith("[")
        return {name: [{"role": "user", "content": text}] if is_said else text}
    try:
        row = json.loads(text)
    except ValueError as fault:
        raise UsageError(f"the line begins with {{ and is no JSON ({fault})") from fault
    absent = [name for name in inputs if name not in row]
    if absent:
        raise UsageError(f"expected {columns}; the line has no {', '.join(absent)}")
    return {name: row[name] for name in inputs}


def _plain(value: Any) -> Any:
    """Returns a value of a frame as JSON has it."""
    return value.item() if isinstance(value, np.generic) else value
