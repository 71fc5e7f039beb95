"""What leaves the ledger for people goes through here: reports, cards, boards, front files, trackers, the terminal.

Masked are the userinfo of URIs, values of keys that are named so, tokens of known form, and all of these wherever else they
stand; and whose home a folder is in. The ledger itself and the run's `config.yaml` have them: a run must go on.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MASK = "***"
SHORTEST = 6  # a secret that is looked for in texts: a shorter one is a piece of ordinary words
# A key that ends in such a word: `hub_token`, `api-key`, `AWS_SECRET_ACCESS_KEY`; not `monkey`.
_NAMES = r"token|key|secret|password|passwd|credential"
_SECRET_KEY = re.compile(rf"(?i)(^|[_\-. ])({_NAMES})s?$")
_USERINFO = re.compile(r"(?i)\b([a-z][a-z0-9+.\-]*://)([^/\s@'\"<>]+)@")
_TOKENS = re.compile(r"\b(hf_[A-Za-z0-9]{8,}|gh[pousr]_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_\-]{16,}|AKIA[A-Z0-9]{12,})\b")
_PAIR = re.compile(rf"(?i)((?<![A-Za-z])(?:{_NAMES})[\"']?\s*[:=]\s*)(\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&\"'\[\]{{}}()<>]+)")

# `/home/alice`, `/Users/alice`, `C:\\Users\\alice`, also as JSON has it.
_HOME = r"(?:(?<![\w.~-])/(?:home|Users)/|\b[A-Za-z]:[\\/]+Users[\\/]+)[^/\\\s\"'<>:,;()]+"


@dataclass(frozen=True)
class Redactor:
    """Masks what must not be shown.

    Attributes:
        secrets: Values that are known to be secret, longest first: they are masked wherever they stand.
    """

    secrets: tuple[str, ...] = ()

    @staticmethod
    def of(config: Any) -> Redactor:
        """One that knows the secrets of a config: by their key's name, and the passwords of its URIs."""
        found = {secret for secret in _secrets(config) if len(secret) >= SHORTEST}
        return Redactor(tuple(sorted(found, key=lambda secret: (-len(secret), secret))))

    def data(self, value: Any) -> Any:
        """A config, as JSON data. Keys stay, so that a reader sees that there was something."""
        if isinstance(value, Mapping):
            return {
                key: MASK if isinstance(item, str) and item and _SECRET_KEY.search(str(key)) else self.data(item)
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self.data(item) for item in value]
        return self.text(value) if isinstance(value, str) else value

    def texts(self, value: Any) -> Any:
        """JSON data whose keys tell nothing of secrets: a param may be called `lora.rank.key`."""
        if isinstance(value, Mapping):
            return {key: self.texts(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.texts(item) for item in value]
        return self.text(value) if isinstance(value, str) else value

    def text(self, text: str) -> str:
        """Any text, HTML too: what is masked is never part of its syntax. Home folders become `~`."""
        return _homes().sub("~", self.secret(text))

    def secret(self, text: str) -> str:
        """The same with the folders as they are: for the user's own terminal, where paths are copied from."""
        for secret in self.secrets:
            text = text.replace(secret, MASK)
        return _TOKENS.sub(MASK, _USERINFO.sub(rf"\1{MASK}@", text))

    def message(self, text: str) -> str:
        """An error's text: also the values in `token: abc` and `password=abc`, which a library may have put there."""
        return self.text(_PAIR.sub(rf"\1{MASK}", text))


@functools.lru_cache
def _homes() -> re.Pattern[str]:
    """Home folders: of the usual places, and this user's, wherever it is."""
    own = str(Path.home())
    mine = rf"(?<![\w.~/-]){re.escape(own)}(?![\w.-])|" if len(own) > 1 else ""
    return re.compile(mine + _HOME)


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
        for found in _USERINFO.finditer(value):
            yield found[2].partition(":")[2]
