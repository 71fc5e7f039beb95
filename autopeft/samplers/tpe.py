"""The tree-structured Parzen estimator of Optuna, multi-objective: the default."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autopeft.objectives import Objective
from autopeft.samplers import Sizes
from autopeft.samplers._optuna import OptunaSampler, check_count, check_share
from autopeft.space import Space

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class TPESampler(OptunaSampler):
    """Of 24 candidates drawn from the density of the good trials l, the one with the largest l(x) / g(x).

    g is the density of all others, refused and stopped ones included. Both are kernel estimates, joint over the
    dimensions that occur together (Bergstra et al., 2011; Ozaki et al., 2022, doi.org/10.1613/jair.1.13188).

    A quarter of the trials that ran counts as good, complete ones only. Optuna's default is a tenth, which suits a
    single optimum: of 40 trials it is four, fewer than the points of a front. On two synthetic conditional surfaces
    (tests/statistical, 12 seeds) a quarter has the larger mean hypervolume after 40 trials, 1.334 against 1.318 and
    .703 against .690, about one standard error each. After 70 and 120 trials the two are level. Both are always ahead
    of random search. Optuna also counts refused trials, so if few configurations may run, its good trials include
    refused ones.

    Args:
        space: The space of configurations.
        objectives: The search's objectives.
        sizes: Not used.
        n_startup_trials: Number of told trials, without refused ones, before TPE begins. The methods' stock defaults
            count.
        n_candidates: Draws from l for each ask.
        good_share: Share of the trials that count as good.
    """

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Objective],
        sizes: Sizes,
        *,
        n_startup_trials: int = 10,
        n_candidates: int = 24,
        good_share: float = 0.25,
    ) -> None:
        super().__init__(space, objectives, check_count("tpe", "n_startup_trials", n_startup_trials, 0))
        self.n_candidates = check_count("tpe", "n_candidates", n_candidates, 1)
        self.good_share = check_share("tpe", "good_share", good_share)

    def sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import TPESampler as OptunaTPE

        n_good = min(math.ceil(self.good_share * self.ran), self.completed)
        return OptunaTPE(
            n_startup_trials=0,
            n_ei_candidates=self.n_candidates,
            gamma=lambda _: n_good,
            seed=seed,
            multivariate=True,
            group=True,
            constant_liar=False,  # it uses running trials, which a refilled study does not have
        )


plugin = TPESampler
