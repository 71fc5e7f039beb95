"""Regression: a number for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from autopeft.errors import ConfigError, Fault
from autopeft.objectives import Goal
from autopeft.tasks import Batch, Columns, Dataset, Kept, Raw, Scores, Source, Split, column_names
from autopeft.tasks._reading import read_table
from autopeft.tasks._targets import Numbers
from autopeft.tasks._texts import Texts

NO_SPREAD = 1e-6  # as a share of the largest value; a smaller spread is rounding noise of a constant


class Regression(Texts):
    """A number a row, learned in units of the training split's deviation from its mean; scored and answered as it was."""

    trivial_title = "mean of train"
    metrics: Mapping[str, Goal] = {
        "pearson": "maximize",
        "spearman": "maximize",
        "mean_absolute_error": "minimize",
        "root_mean_squared_error": "minimize",
        "loss": "minimize",
    }
    calls_model = False

    def read(self, data: Mapping[str, Any], seed: int) -> Dataset:
        dataset = read_table(data, column_names(self.columns, data, inputs_only=True), Numbers(data), seed)
        values = dataset.splits["train"].targets["value"]
        if not values.std() > 0:
            raise ConfigError([Fault("data.label", f"is {values[0]:g} in each row of train")], "data")
        return replace(dataset, about={**dataset.about, "mean": float(values.mean()), "deviation": float(values.std())})

    def encoder(self, source: Source, about: Mapping[str, Any]) -> Callable[[Raw], Split]:
        """Texts as token ids; target `value` (n_rows,): deviations from the mean."""
        encode_texts = super().encoder(source, about)

        def encode(raw: Raw) -> Split:
            split = encode_texts(raw)
            if not raw.targets:
                return split
            return replace(split, targets={"value": (raw.targets["value"] - about["mean"]) / about["deviation"]})

        return encode

    def weights(self, targets: Columns) -> np.ndarray:
        """Each row counts 1."""
        return np.ones(len(targets["value"]), dtype=np.float32)

    def loss(self, outputs: Any, targets: Mapping[str, Any]) -> Any:
        """Computes the squared error of each row, in units of the variance."""
        return (outputs[:, 0] - targets["value"]) ** 2

    def keep(self, outputs: Any, batch: Batch, model: Any) -> Mapping[str, Sequence[Any]]:
        """The number, in deviations."""
        return {"value": outputs[:, 0]}

    def score(self, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Scores:
        """Both correlations, and both errors in the data's units."""
        return of_numbers(_as_given(kept["value"], about), _as_given(targets["value"], about))

    def trivial(self, train: Columns, targets: Columns, about: Mapping[str, Any], base: Callable[[], Kept]) -> Scores:
        """Scores the mean of train as the answer for every row."""
        mean, values = float(np.asarray(train["value"]).mean()), np.asarray(targets["value"], dtype=np.float64)
        found = of_numbers(_as_given(np.full(len(values), mean), about), _as_given(values, about))
        return Scores({**found.metrics, "loss": float(((values - mean) ** 2).mean())})

    def truths(self, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Mapping[str, Any]:
        """The true `value`, in the data's units."""
        return {"value": _as_given(targets["value"], about)}

    def trivial_answers(
        self, train: Columns, targets: Columns, about: Mapping[str, Any], base: Callable[[], Kept]
    ) -> Mapping[str, Any]:
        """The mean of train, for each row."""
        return {"value": np.full(len(targets["value"]), about["mean"])}

    def answers(self, kept: Kept, about: Mapping[str, Any]) -> Mapping[str, Any]:
        """`value`, in the data's units."""
        return {"value": _as_given(kept["value"], about)}


def of_numbers(predicted: np.ndarray, values: np.ndarray) -> Scores:
    """Scores predicted numbers. The correlation with a constant is 0.0, by definition."""
    from scipy.stats import rankdata

    errors = predicted - values
    return Scores({
        "pearson": _correlation(predicted, values),
        # The ranks of a constant with rounding noise would be those of the noise.
        "spearman": _correlation(rankdata(predicted), rankdata(values)) if _spreads(predicted) else 0.0,
        "mean_absolute_error": float(np.abs(errors).mean()),
        "root_mean_squared_error": float(np.sqrt((errors**2).mean())),
    })  # fmt: skip


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if not (_spreads(a) and _spreads(b)):
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip((a @ b) / np.sqrt((a @ a) * (b @ b)), -1.0, 1.0))


def _spreads(values: np.ndarray) -> bool:
    return bool(np.ptp(values) > NO_SPREAD * np.abs(values).max())


def _as_given(deviations: Any, about: Mapping[str, Any]) -> np.ndarray:
    """Turns standardised numbers back into the data's units."""
    given: np.ndarray = np.asarray(deviations, dtype=np.float64) * about["deviation"] + about["mean"]
    return given


plugin = Regression
