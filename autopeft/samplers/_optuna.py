"""Common part of the Optuna samplers: the space as distributions, records as Optuna's trials, one study in memory.

How the study is told of a record:

COMPLETE        COMPLETE with its losses (parameters on log10; all are minimised)
refused         PRUNED with a violated constraint: Optuna ignores FAIL, and would propose similar ones again. If it
                equals a trial's configuration it is not told, as that one can run
OUT_OF_MEMORY   the same: its region cannot run here
STOPPED         PRUNED, without values and without a constraint: among the worse, and no partial score taken as final
FAILED          as STOPPED: diverging and being too slow are traits of a configuration
lost            not told, while it may run again: its worker died, which says nothing of it. Lost twice it is FAILED: then
                its memory is what kills workers, and one point among the worse forbids nothing.

A configuration that was told, or runs, is not proposed again.

From one ask to the next, only the study and the known configurations are kept. Both follow from the told events alone.
So a study that is filled from a ledger makes the same proposals as the live one.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from autopeft.errors import UsageError
from autopeft.history import Record
from autopeft.objectives import Objective, losses
from autopeft.space import Choice, Domain, Float, Int, Space, Subset, canonical
from autopeft.trial import Status, derive_seed

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

DRAWS = 100  # to find a member of the space that was not told yet


class Shared(dict[str, "BaseDistribution"]):
    """Distributions of some axes, which do not change. Optuna copies each trial deeply, and so does not copy these."""

    def __deepcopy__(self, memo: object) -> Shared:
        return self


class Axes:
    """The space in Optuna's terms: each dimension as none, one or several axes.

    A real or whole number is one axis. A choice is an axis over the indices of its options, as Optuna cannot store
    every option. The axis is ordered if the options are ascending numbers, else categorical. A subset is a boolean axis
    for each item. A domain with a single value has no axis.

    Attributes:
        distributions: By axis name: `lora.rank`, `lora.layers=3`.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self._of = {name: _distributions(name, dimension.domain) for name, dimension in space.dimensions.items()}
        self.distributions: dict[str, BaseDistribution] = {k: v for axes in self._of.values() for k, v in axes.items()}
        self._shared: dict[tuple[str, ...], Shared] = {}

    def encode(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], Shared]:
        """Returns a member of the space as values by axis, and the distributions of these axes."""
        values: dict[str, Any] = {}
        for name, value in params.items():
            values |= _encode(name, self.space.dimensions[name].domain, value, self._of[name])
        of = tuple(values)
        if of not in self._shared:
            self._shared[of] = Shared({axis: self.distributions[axis] for axis in of})
        return values, self._shared[of]

    def suggest(self, trial: optuna.Trial, seed: int) -> dict[str, Any]:
        """Asks Optuna for a member of the space, dimension by dimension in the space's order.

        If a subset is too small, further items are drawn by the seed, as this is cheaper than a refusal.
        """
        params: dict[str, Any] = {}
        for name, dimension in self.space.dimensions.items():
            if name == "method" or self.space.exists(name, params):
                values = {axis: _suggest(trial, axis, of) for axis, of in self._of[name].items()}
                params[name] = _decode(name, dimension.domain, values, derive_seed(seed, name))
        return params


class OptunaSampler:
    """Startup trials by the space's own draw, then an Optuna sampler that is made anew for each ask.

    The space draws a subset's size first. Optuna draws independent booleans, which are hardly ever one layer, or all.

    Optuna would propose known configurations again, many times in a small space. A new draw of the space replaces them.

    Args:
        space: The space of configurations.
        objectives: The search's objectives; their losses are Optuna's values.
        startup: Number of told trials, without refused ones, before Optuna is asked.

    Attributes:
        ran: Number of told trials, without refused ones.
        completed: Number of these that completed.
    """

    def __init__(self, space: Space, objectives: Sequence[Objective], startup: int) -> None:
        self.space, self.objectives, self.startup = space, tuple(objectives), startup
        self.ran = self.completed = 0
        self.axes = Axes(space)
        self._known: set[str] = set()  # canonical params of what began or was told
        self.study = self.new_study()

    def new_study(self) -> optuna.Study:
        """Makes an empty study in memory."""
        with quiet():
            import optuna

            return optuna.create_study(directions=["minimize"] * len(self.objectives))

    def ask(self, number: int, seed: int) -> Mapping[str, Any]:
        rng = np.random.default_rng(seed)
        params = self.space.draw(rng) if self.is_starting else self._asked(seed)
        for _ in range(DRAWS):
            if canonical(params) not in self._known:
                break
            params = self.space.draw(rng)
        return params

    @property
    def is_starting(self) -> bool:
        """Whether it is too early for Optuna."""
        return self.ran < self.startup

    def _asked(self, seed: int) -> Mapping[str, Any]:
        """Returns Optuna's proposal."""
        import optuna

        with quiet():
            self.study.sampler = self.sampler(seed)
            trial = self.study.ask()
            params = self.axes.suggest(trial, seed)
            # Asking leaves a failed trial in the study, which no sampler reads.
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return params

    def begin(self, record: Record) -> None:
        self._known.add(canonical(record.params))

    def tell(self, record: Record) -> None:
        is_lost = record.may_run_again
        self.ran += not record.refusal and not is_lost
        self.completed += record.is_complete
        if not self.space.contains(record.params):
            return  # refused for this reason; Optuna has no place for it
        self._known.add(canonical(record.params))
        if self.looks_at(record) and not is_lost:
            self.study.add_trial(self.as_trial(record))

    def as_trial(self, record: Record) -> optuna.trial.FrozenTrial:
        """Converts a record of a member of the space to Optuna's trial."""
        from optuna.trial import TrialState, create_trial

        values, distributions = self.axes.encode(record.params)
        infeasible = bool(record.refusal) or record.status is Status.OUT_OF_MEMORY
        complete = record.is_complete
        trial = create_trial(
            state=TrialState.COMPLETE if complete else TrialState.PRUNED,
            values=losses(self.objectives, record.metrics).tolist() if complete else None,
            params=values,
            distributions=distributions,
            constraints={"may run": 1.0} if infeasible else None,
        )
        trial.distributions = distributions  # `create_trial` made a copy
        return trial

    def looks_at(self, record: Record) -> bool:
        """Whether the study holds a record. The study holds all records from which the Optuna sampler can learn."""
        return True

    def sampler(self, seed: int) -> BaseSampler:
        """Makes the Optuna sampler for one ask."""
        raise NotImplementedError


def check_count(sampler: str, option: str, value: object, least: int) -> int:
    """Returns the value if it is a whole number of at least `least`; else raises."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"sampler {sampler!r}: {option} is a whole number from {least}, not {value!r}")
    return value


def check_share(sampler: str, option: str, value: object) -> float:
    """Returns the value if it is a number in [0, 1]; else raises."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise UsageError(f"sampler {sampler!r}: {option} is a number between 0 and 1, not {value!r}")
    return float(value)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides Optuna's messages on each study, and its warnings that an option is experimental or ends with version 6."""
    logger = logging.getLogger("optuna")
    level = logger.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"optuna|autopeft\.samplers")
        warnings.filterwarnings("ignore", category=FutureWarning)
        try:
            logger.setLevel(logging.ERROR)
            yield
        finally:
            logger.setLevel(level)


def _distributions(name: str, domain: Domain) -> dict[str, BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if domain.size == 1:
        return {}
    if isinstance(domain, Float):
        return {name: FloatDistribution(domain.low, domain.high, log=domain.log)}
    if isinstance(domain, Int):
        return {name: IntDistribution(domain.low, domain.high, log=domain.log)}
    if isinstance(domain, Subset):
        return {f"{name}={item!r}": CategoricalDistribution((False, True)) for item in domain.items}
    count = len(domain.options)
    if _is_ascending(domain.options):
        return {name: IntDistribution(0, count - 1)}
    return {name: CategoricalDistribution(tuple(range(count)))}


def _is_ascending(options: Sequence[Any]) -> bool:
    """Whether options are numbers in rising order, so that neighbours are similar."""
    numbers = all(isinstance(option, (int, float)) and not isinstance(option, bool) for option in options)
    return numbers and list(options) == sorted(options)


def _suggest(trial: optuna.Trial, axis: str, of: BaseDistribution) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(of, FloatDistribution):
        return trial.suggest_float(axis, of.low, of.high, log=of.log)
    if isinstance(of, IntDistribution):
        return trial.suggest_int(axis, of.low, of.high, log=of.log)
    assert isinstance(of, CategoricalDistribution)
    return trial.suggest_categorical(axis, of.choices)


def _encode(name: str, domain: Domain, value: Any, axes: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    if not axes:
        return {}
    if isinstance(domain, Subset):
        return {axis: item in value for axis, item in zip(axes, domain.items)}
    if isinstance(domain, Choice):
        value = _index(domain, value)
    return {name: float(value) if isinstance(domain, Float) else value}


def _decode(name: str, domain: Domain, values: Mapping[str, Any], seed: int) -> Any:
    if not values:
        return _only(domain)
    if isinstance(domain, Subset):
        chosen = {item for item, is_in in zip(domain.items, values.values()) if is_in}
        rest = [item for item in domain.items if item not in chosen]
        lacking = max(domain.min_size - len(chosen), 0)
        chosen |= {rest[index] for index in np.random.default_rng(seed).permutation(len(rest))[:lacking]}
        return [item for item in domain.items if item in chosen]
    if isinstance(domain, Choice):
        return domain.options[values[name]]
    if isinstance(domain, Float):
        return min(max(float(values[name]), domain.low), domain.high)
    return int(values[name])


def _only(domain: Domain) -> Any:
    """Returns the value of a domain with a single value."""
    if isinstance(domain, Subset):
        return list(domain.items) if domain.min_size else []
    return domain.options[0] if isinstance(domain, Choice) else domain.low


def _index(domain: Choice, value: Any) -> int:
    """Returns the index of an option. 1, 1.0 and True are three options."""
    return next(i for i, option in enumerate(domain.options) if type(option) is type(value) and option == value)
