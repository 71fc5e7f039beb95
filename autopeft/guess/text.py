"""A guessed config as YAML, with the reason for each value beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from typing import Any

from autopeft.guess.tasks import Guess

PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./@-]*")
# What YAML would not read as text.
WORDS = ("true", "false", "null", "yes", "no", "on", "off", "none", "y", "n")
WIDTH = 44  # of keys and values, before the reasons
LONGEST = 120  # of a reason


def written(guesses: tuple[Guess, ...], beside: Path) -> str:
    """Returns the text of a config file in the folder `beside`. Paths below that folder are relative to it."""
    return "\n".join([*_lines(guesses, beside), ""])


def _lines(guesses: tuple[Guess, ...], beside: Path) -> Iterator[str]:
    sections = dict.fromkeys(guess.key.split(".")[0] for guess in guesses)
    for section in sections:
        own = [guess for guess in guesses if guess.key.split(".")[0] == section]
        if len(own) == 1 and own[0].key in (section, f"{section}.name"):
            yield _line("", section, own[0], beside)
            continue
        yield f"{section}:"
        for guess in own:
            yield _line("  ", guess.key.partition(".")[2], guess, beside)


def _line(indent: str, key: str, guess: Guess, beside: Path) -> str:
    line = f"{indent}{key}: {_value(guess.value, beside)}"
    why = shorten(guess.why, LONGEST, placeholder=" …")
    return f"{line:<{WIDTH}}  # {why}" if why else line


def _value(value: Any, beside: Path) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_value(inner, beside) for inner in value)}]"
    if isinstance(value, str):
        path = Path(value)
        if path.is_absolute() and path.is_relative_to(beside):
            value = str(path.relative_to(beside))
            value = value if "/" in value or path.is_file() else f"./{value}"
        is_plain = PLAIN.fullmatch(value) and value.lower() not in WORDS
        return value if is_plain else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)
