"""Masks secrets in all that is written or shown: ledger, reports, cards, boards, front files, trackers, the terminal.

Secrets are the userinfo of URIs, the values of keys and environment variables such as `hub_token`, and tokens of known
form. A value that is secret in one place is masked in all places. A config with a secret is refused, as the run keeps
its config; ledgers of earlier versions may hold some. Where people look, home folders become `~`, too.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

MASK = "***"
SHORTEST = 6  # characters of a secret that is searched in texts: a shorter one would match within ordinary words
# A key that ends in one of these words: `hub_token`, `api-key`, `AWS_SECRET_ACCESS_KEY`; not `monkey`.
_NAMES = r"token|key|secret|password|passwd|credential"
_SECRET_KEY = re.compile(r"(?i)(^|[_\-. ])(token|(key|secret|password|passwd|credential)s?)$")  # `tokens` are words
_SECRET_VARIABLE = re.compile(r"(?i)(token|secret|password|passwd|credentials?|(^|_)key)$")  # PGPASSWORD, too
_USERINFO = re.compile(r"(?i)\b([a-z][a-z0-9+.\-]*://)([^/\s@'\"<>]+)@")
_TOKENS = re.compile(r"\b(hf_[A-Za-z0-9]{8,}|gh[pousr]_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_\-]{16,}|AKIA[A-Z0-9]{12,})\b")
_PAIR = re.compile(rf"(?i)((?<![A-Za-z])(?:{_NAMES})[\"']?\s*[:=]\s*)(\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&\"'\[\]{{}}()<>]+)")

# `/home/alice`, `/Users/alice`, `C:\\Users\\alice`, also as JSON has it.
_HOME = r"(?:(?<![\w.~-])/(?:home|Users)/|\b[A-Za-z]:[\\/]+Users[\\/]+)[^/\\\s\"'<>:,;()]+"

# Control characters, and those that turn the direction of text round.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Redactor:
    """Masks secrets and home folders.

    Attributes:
        secrets: Values known to be secret, longest first. They are masked wherever they appear.
    """

    secrets: tuple[str, ...] = ()

    @staticmethod
    def of(config: Any) -> Redactor:
        """Builds a redactor that knows the secrets of a config and of the environment.

        These are the values of keys and variables with a secret name, and passwords in URIs.
        """
        found = {secret for secret in (*_secrets(config), *_environment()) if len(secret) >= SHORTEST}
        return Redactor(tuple(sorted(found, key=lambda secret: (-len(secret), secret))))

    def data(self, value: Any) -> Any:
        """Masks a config, given as JSON data. Keys stay, so that a reader sees which values are masked."""
        if isinstance(value, Mapping):
            return {
                key: MASK if isinstance(item, str) and item and _SECRET_KEY.search(str(key)) else self.data(item)
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self.data(item) for item in value]
        return self.text(value) if isinstance(value, str) else value

    def texts(self, value: Any) -> Any:
        """Masks the texts of JSON data and ignores the keys' names: a param may be called `lora.rank.key`."""
        if isinstance(value, Mapping):
            return {key: self.texts(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.texts(item) for item in value]
        return self.text(value) if isinstance(value, str) else value

    def text(self, text: str) -> str:
        """Masks a text; home folders become `~`. Works on HTML too: a mask never covers its syntax."""
        return _homes().sub("~", self.secret(text))

    def secret(self, text: str) -> str:
        """Masks a text but leaves home folders, for the user's own terminal, from which paths are copied."""
        for secret in self.secrets:
            text = text.replace(secret, MASK)
        return _TOKENS.sub(MASK, _USERINFO.sub(rf"\1{MASK}@", text))

    def message(self, text: str) -> str:
        """Masks an error's text, also values in `token: abc` and `password=abc`, which a library may have written."""
        return self.text(_PAIR.sub(rf"\1{MASK}", text))


def shareable(text: str) -> str:
    """Masks secrets in a text that goes into a ledger, such as an error of a library; paths stay."""
    return Redactor.of(None).secret(text) if text else text


def printable(text: str) -> str:
    """Replaces characters that steer a terminal, such as escape sequences in names; line breaks and tabs stay."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


@functools.lru_cache
def _homes() -> re.Pattern[str]:
    """Returns the pattern of home folders: those in the usual places, and this user's."""
    own = str(Path.home())
    mine = rf"(?<![\w.~/-]){re.escape(own)}(?![\w.-])|" if len(own) > 1 else ""
    return re.compile(mine + _HOME)


def is_secret(key: str, value: str) -> bool:
    """Whether the value of a key is a secret, or holds one: a token, or a password within a URI."""
    named = _SECRET_KEY.search(key) is not None and value != ""
    return named or _TOKENS.search(value) is not None or any(":" in found[2] for found in _USERINFO.finditer(value))


def _environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if _SECRET_VARIABLE.search(name):
            yield value
        yield from _passwords(value)


def _passwords(value: str) -> Iterator[str]:
    """Yields the passwords of the URIs in a text, as they stand there and as libraries decode them."""
    for found in _USERINFO.finditer(value):
        password = found[2].partition(":")[2]
        yield password
        yield unquote(password)


def _secrets(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _secrets(item, str(name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _secrets(item, key)
    elif isinstance(value, str):
        if _SECRET_KEY.search(key):
            yield value
        yield from _passwords(value)
