"""Orders to a running search, from another terminal: files in the run's folder, which its driver looks for.

orders/stop.json    `now`: whether running trials end at once, untold. Dropped when a search begins or goes on.
orders/add-*.json   a configuration to try next. It goes when the ledger has it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

LOOK_SECONDS = 0.5  # between two looks at the folder, as searches ask between all steps

Stop = Literal["", "soon", "now"]


class Orders:
    """Gives orders, and finds those that were given.

    Args:
        run: The run's folder.
    """

    def __init__(self, run: Path) -> None:
        self.folder = run / "orders"
        self._stop: Stop = ""
        self._looked = -LOOK_SECONDS

    def give_stop(self, now: bool) -> None:
        """Orders the search to end: after its running trials, or now."""
        self._write("stop.json", {"now": now})

    def give_trial(self, params: Mapping[str, Any]) -> None:
        """Orders the search to try a configuration."""
        self._write(f"add-{time.time_ns():020d}-{secrets.token_hex(4)}.json", dict(params))

    def clear_stop(self) -> None:
        """Drops an order to stop, of an earlier search."""
        (self.folder / "stop.json").unlink(missing_ok=True)
        self._stop = ""

    def stop(self) -> Stop:
        """Returns whether the search should end."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            with contextlib.suppress(OSError, ValueError):
                order = json.loads((self.folder / "stop.json").read_text())
                if isinstance(order, dict):
                    self._stop = "now" if order.get("now") else "soon"
        return self._stop

    def next_trial(self) -> tuple[Path, Mapping[str, Any]] | None:
        """Returns the configuration that was ordered first, with its file; None if there is none."""
        for path in sorted(self.folder.glob("add-*.json")):
            with contextlib.suppress(OSError, ValueError):
                order = json.loads(path.read_text())
                if isinstance(order, dict) and isinstance(order.get("method"), str):
                    return path, order
        return None

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        self.folder.mkdir(exist_ok=True)
        temporary = self.folder / f".{secrets.token_hex(8)}"
        temporary.write_text(json.dumps(content))
        os.replace(temporary, self.folder / name)
