"""NSGA-II of Optuna: a genetic algorithm, for searches of many cheap trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from autopeft.history import Record
from autopeft.objectives import Objective
from autopeft.samplers import Sizes
from autopeft.samplers._optuna import OptunaSampler, check_count, check_share, quiet
from autopeft.space import Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial, TrialState


class NSGA2Sampler(OptunaSampler):
    """Children of the elite: non-dominated sorting, ties by crowding distance (Deb et al., 2002).

    Two things differ from Optuna's defaults. First, crossover knows the conditional space: a child takes each dimension
    from a parent that has it. Optuna crosses only dimensions that all trials share, and draws the rest at random.
    Second, the k-th complete trial belongs to generation k // population_size, so a ledger can replay the generations.
    Optuna numbers generations when it is asked. With one trial at a time, both give the same.

    Refused, failed and stopped trials are never parents, and take no place in a population. The study holds the parents
    and their generation only, so that searches of 10,000 trials stay fast.

    Args:
        space: The space of configurations.
        objectives: The search's objectives.
        sizes: Not used.
        population_size: Complete trials a generation; the first generation is drawn at random.
        crossover: Probability that a child has two parents.
        swap: Probability that a dimension comes from the second one.
        mutation: Probability that a dimension is drawn anew; None for one dimension a child on average.
    """

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Objective],
        sizes: Sizes,
        *,
        population_size: int = 16,
        crossover: float = 0.9,
        swap: float = 0.5,
        mutation: float | None = None,
    ) -> None:
        super().__init__(space, objectives, startup=0)
        self.population_size = check_count("nsga2", "population_size", population_size, 2)
        self.crossover = check_share("nsga2", "crossover", crossover)
        self.swap = check_share("nsga2", "swap", swap)
        self.mutation = None if mutation is None else check_share("nsga2", "mutation", mutation)

    @property
    def is_starting(self) -> bool:
        return self.completed < self.population_size

    def looks_at(self, record: Record) -> bool:
        return record.is_complete

    def tell(self, record: Record) -> None:
        super().tell(record)
        if record.is_complete and self.completed % self.population_size == 0:
            self._begin_generation()

    def _begin_generation(self) -> None:
        """Selects the parents of the next generation from the complete generation and its parents. Drops the others."""
        complete = self.study.get_trials(deepcopy=False, states=_complete_states())
        generation = len(complete) // self.population_size
        with quiet():
            sampler: Any = self.sampler(0)
        parents = sampler.get_parent_population(self.study, generation) if generation > 1 else complete
        self.study = self.new_study()
        self.study.add_trials(parents)

    def sampler(self, seed: int) -> BaseSampler:
        rng = np.random.default_rng(seed)

        def child(study: Study, axes: dict[str, BaseDistribution], parents: list[FrozenTrial]) -> dict[str, Any]:
            first = _tournament(parents, rng)
            second = _tournament(parents, rng) if rng.random() < self.crossover else first
            mutation = self.mutation if self.mutation is not None else 1 / max(len(first.params), 1)
            values = {}
            for axis in axes:
                either = [parent.params[axis] for parent in (first, second) if axis in parent.params]
                takes_second, mutates = rng.random(2) < (self.swap, mutation)
                if either and not mutates:  # a dimension that is left out is drawn at random
                    values[axis] = either[-1] if takes_second else either[0]
            return values

        sampler: BaseSampler = _sampler_class()(
            self.axes.distributions, population_size=self.population_size, seed=seed, child_generation_strategy=child
        )
        return sampler


def _tournament(parents: Sequence[FrozenTrial], rng: np.random.Generator) -> FrozenTrial:
    """Draws two parents at random. Returns the one that dominates the other, else the first."""
    first, second = (parents[int(index)] for index in rng.integers(len(parents), size=2))
    pairs = list(zip(second.values, first.values))
    dominates = all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
    return second if dominates else first


def _complete_states() -> tuple[TrialState]:
    from optuna.trial import TrialState

    return (TrialState.COMPLETE,)


def _sampler_class() -> Any:
    """Makes the sampler class in a function, as its base class needs Optuna, which is imported only if it is used."""
    from optuna.samplers import NSGAIISampler

    def complete(study: Study) -> list[FrozenTrial]:
        return study.get_trials(deepcopy=False, states=_complete_states())

    class ByOrderOfTelling(NSGAIISampler):
        def __init__(self, axes: Mapping[str, BaseDistribution], *, population_size: int, **options: Any) -> None:
            super().__init__(population_size=population_size, **options)
            self.axes, self.size = axes, population_size

        def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
            return dict(self.axes)

        def get_trial_generation(self, study: Study, trial: FrozenTrial) -> int:
            return len(complete(study)) // self.size

        def get_population(self, study: Study, generation: int) -> list[FrozenTrial]:
            return complete(study)[generation * self.size : (generation + 1) * self.size]

    return ByOrderOfTelling


plugin = NSGA2Sampler
