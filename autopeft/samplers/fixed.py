"""A fixed list of configurations, one after another: yours, or another search's front again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autopeft.errors import ConfigError, Fault, UsageError
from autopeft.history import Record
from autopeft.objectives import Objective
from autopeft.samplers import Sizes
from autopeft.space import Space


class FixedSampler:
    """Number n gets the n-th configuration of the list; after the last one the search is over.

    The search does not train stock defaults first, only the list.

    Args:
        space: Space that contains all configurations of the list.
        objectives, sizes: Not used.
        params: The list. Give this or `file`.
        file: A JSON list of configurations, or JSON Lines with one each; relative to the working folder.

    Raises:
        ConfigError: There is no list, or some configurations are not in the space. Names all faults at once.
    """

    has_list = True

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Objective],
        sizes: Sizes,
        *,
        params: Sequence[Mapping[str, Any]] | None = None,
        file: str | None = None,
    ) -> None:
        if (params is None) == (file is None):
            raise UsageError("the sampler 'fixed' takes its configurations from `params` or `file`: give one of them")
        source = file or "sampler.params"
        listed = params if params is not None else _read(Path(str(file)))
        faults = [
            Fault(str(index), why_not)
            for index, member in enumerate(listed)
            if (why_not := space.why_not(member) if isinstance(member, Mapping) else f"{member!r} is no mapping")
        ]
        if not listed:
            faults = [Fault("", "an empty list: the search would end before its first trial")]
        if faults:
            raise ConfigError(faults, source)
        self.params = tuple(space.typed(member) for member in listed)

    def ask(self, number: int, seed: int) -> Mapping[str, Any] | None:
        return self.params[number] if number < len(self.params) else None

    def begin(self, record: Record) -> None:
        """Does nothing: the list is fixed."""

    def tell(self, record: Record) -> None:
        """Does nothing: the list is fixed."""


def _read(path: Path) -> list[Any]:
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except OSError as fault:
        raise UsageError(f"cannot read the configurations of the sampler 'fixed': {path}: {fault.strerror}") from fault
    try:
        if text.lstrip().startswith("["):
            return list(json.loads(text))
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as fault:
        raise UsageError(f"{path} is neither a JSON list nor JSON Lines: {fault}") from fault


plugin = FixedSampler
