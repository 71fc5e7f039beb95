"""The same search from Python lists and frames, as scikit-learn estimators.

classifier = AutoPEFTClassifier("prajjwal1/bert-tiny", trials=24).fit(texts, labels)
classifier.predict(["a new text"])
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from autopeft import app
from autopeft.runs import Run, open_run

if TYPE_CHECKING:
    import pandas as pd

    from autopeft.training.export import Exported

TEXTS, PAIR = ["text"], ["text", "text_pair"]


class AutoPEFT(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What classifier and regressor share: a search over adapters of one model, and predictions by one of its trials.

    Args:
        model: Local folder or hub name of the pretrained model.
        space: Name of a space, path of a space file, or its content.
        trials: Most trials; None for no bound, if `hours` is given.
        hours: Most hours; None for no bound, if `trials` is given.
        parameters: Largest number of trainable parameters; None for no bound.
        pick: The trial that predicts: "best", "knee", "max-params=50k" or "trial=17".
        validation_share: Share of the rows that the search validates on.
        settings: Further sections of the config: `{"training": {"epochs": 5}, "executor": "ray_tune"}`.
        runs: Folder in which the run gets a folder of its own.
        random_state: Seed of everything.
        verbose: Whether the search shows its progress.

    Attributes:
        run_: The run: `run_.confirm()`, `run_.report()`, `run_.folder`.
        front_: Frame of the complete trials that no other dominates, the best score first.
        best_config_: Configuration of the trial that predicts.
        n_features_in_: Columns of texts, 1 or 2.
    """

    _task: str

    def __init__(
        self,
        model: str = "",
        *,
        space: str | Mapping[str, Any] = "small_heads",
        trials: int | None = 24,
        hours: float | None = None,
        parameters: int | None = None,
        pick: str = "best",
        validation_share: float = 0.1,
        settings: Mapping[str, Any] | None = None,
        runs: str = "runs",
        random_state: int = 0,
        verbose: bool = False,
    ) -> None:
        self.model, self.space, self.trials, self.hours, self.parameters = model, space, trials, hours, parameters
        self.pick, self.validation_share, self.settings = pick, validation_share, settings
        self.runs, self.random_state, self.verbose = runs, random_state, verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.target_tags.required = True
        return tags

    def _fit(self, columns: Mapping[str, list[str]], targets: Sequence[Any]) -> None:
        """Searches, and exports the trial that predicts."""
        if not self.model:
            raise ValueError("model: give the folder or the hub name of a pretrained model")
        n_rows = len(next(iter(columns.values())))
        if n_rows != len(targets):
            raise ValueError(f"X has {n_rows} rows, y has {len(targets)}")
        data = {"train": str(self._write(columns, targets)), "text": list(columns), "label": "label"}
        if len(columns) == 1:
            data["text"] = next(iter(columns))
        self.run_ = app.run(self._config(data), quiet=not self.verbose)
        self.n_features_in_ = len(columns)
        picked = self.run_.pick(self.pick)
        self.best_config_ = dict(picked.params)
        self._files = _contents(self.run_.export(f"trial={picked.number}"))
        self._exported: Exported | None = None

    def _write(self, columns: Mapping[str, list[str]], targets: Sequence[Any]) -> Path:
        """Writes the rows beside the runs, where resume and confirm find them. The same rows are one file."""
        names = [*columns, "label"]
        rows = zip(*columns.values(), targets, strict=True)
        content = "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows).encode()
        path = Path(self.runs) / f"rows-{hashlib.sha256(content).hexdigest()[:16]}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(content)
        os.replace(temporary, path)
        return path

    def _config(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the config of the search, with the settings of the user over ours."""
        budget = {"trials": self.trials, "hours": self.hours, "parameters": self.parameters}
        given = {name: value for name, value in (self.settings or {}).items() if name != "data"}
        return {
            "model": self.model,
            "task": self._task,
            "space": self.space,
            "executor": "serial",
            "trackers": ["console"] if self.verbose else [],
            "budget": {name: value for name, value in budget.items() if value is not None},
            "seed": self.random_state,
            "runs": self.runs,
            **given,
            "data": {**data, "validation_share": self.validation_share, **(self.settings or {}).get("data", {})},
        }

    def _answers(self, X: Any) -> pd.DataFrame:
        """Predicts rows with the exported adapter, which is loaded once."""
        check_is_fitted(self, "run_")
        columns = _columns(X)
        if len(columns) != self.n_features_in_:
            raise ValueError(f"X has {len(columns)} columns of texts, it was fitted on {self.n_features_in_}")
        if self._exported is None:
            from autopeft.training.export import load

            with tempfile.TemporaryDirectory() as folder:
                for name, content in self._files.items():
                    (Path(folder) / name).write_bytes(content)
                self._exported = load(folder, base=self.model)
        frame: pd.DataFrame = self._exported.predict(columns)
        return frame

    @property
    def front_(self) -> pd.DataFrame:
        trials = self.leaderboard()
        return trials[trials["on_front"]].reset_index(drop=True)

    def leaderboard(self) -> pd.DataFrame:
        """Returns all trials: status, metrics and configuration, the best score first. Scores are those of the search."""
        check_is_fitted(self, "run_")
        (objective, *_) = self.run_.history.objectives
        trials = self.run_.trials
        return trials.sort_values(objective.metric, ascending=objective.goal == "minimize", ignore_index=True)

    def __getstate__(self) -> dict[str, Any]:
        """A pickle holds the adapter, and says where the run and the base are; it holds neither."""
        state = dict(super().__getstate__())
        if "run_" in state:
            state |= {"run_": str(self.run_.folder), "_exported": None}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "run_" in state:
            self.__dict__["run_"] = _Away(state["run_"])


class AutoPEFTClassifier(ClassifierMixin, AutoPEFT):  # type: ignore[misc]
    """Classifies texts, or pairs of texts. The arguments and attributes are those of `AutoPEFT`.

    Attributes:
        classes_: The classes, sorted; the order of the columns of `predict_proba`.
    """

    _task = "text_classification"

    def fit(self, X: Any, y: Any) -> AutoPEFTClassifier:
        """Searches.

        Args:
            X: Texts: (n_rows,), a list, array, series or frame with one column; or (n_rows, 2), pairs of texts.
            y: (n_rows,), class labels of one type.

        Raises:
            ValueError: X holds no texts, or X and y do not fit.
            autopeft.errors.AutoPEFTError: The search failed.
        """
        labels = _targets(y)
        check_classification_targets(labels)
        columns = _columns(X)
        self.classes_ = np.unique(labels)
        if len(self.classes_) < 2:
            raise ValueError(f"the classifier needs samples of two classes or more; y has {len(self.classes_)} class")
        names = [str(name) for name in self.classes_]
        if len(set(names)) < len(names):
            raise ValueError(f"y has classes that are written alike: {', '.join(names)}")
        self._fit(columns, [str(label) for label in labels])
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Returns the most probable class of each row (n_rows,)."""
        chances = self.predict_proba(X)
        found: np.ndarray = self.classes_[chances.argmax(axis=1)]
        return found

    def predict_proba(self, X: Any) -> np.ndarray:
        """Returns the probability of each class (n_rows, n_classes), in the order of `classes_`."""
        frame = self._answers(X)
        return np.stack([frame[f"p({name})"] for name in map(str, self.classes_)], axis=1)


class AutoPEFTRegressor(RegressorMixin, AutoPEFT):  # type: ignore[misc]
    """Predicts a number for a text, or for a pair of texts. Arguments and attributes are those of `AutoPEFT`."""

    _task = "regression"

    def fit(self, X: Any, y: Any) -> AutoPEFTRegressor:
        """Searches. See `AutoPEFTClassifier.fit`; y holds numbers."""
        values = _targets(y)
        if not np.issubdtype(values.dtype, np.number) or not np.isfinite(values.astype(float)).all():
            raise ValueError(f"y must hold finite numbers, not {values.dtype}")
        self._fit(_columns(X), values.astype(float).tolist())
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Returns the number of each row (n_rows,)."""
        return np.asarray(self._answers(X)["value"])


class _Away:
    """Stands for the run of an estimator that was pickled: opens the run when it is needed."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not (self.folder.is_dir()):
            raise AttributeError(f"the run is not at {self.folder}: predictions do not need it, {name} does")
        run: Run = open_run(self.folder)
        return getattr(run, name)


def _columns(X: Any) -> dict[str, list[str]]:
    """Returns the columns of texts by name: one, or two for pairs.

    Raises:
        ValueError: There are no rows, a row is no text, or there are three columns or more.
    """
    if issparse(X):
        raise ValueError("X is a sparse matrix: expected texts (str)")
    if hasattr(X, "columns"):
        parts = [list(X[name]) for name in X.columns]
    else:
        rows = list(np.asarray(X) if hasattr(X, "__array__") else X)
        is_pairs = bool(rows) and not isinstance(rows[0], str) and isinstance(rows[0], (Sequence, np.ndarray))
        if is_pairs and len({len(row) for row in rows}) > 1:
            raise ValueError("the rows of X differ in their number of texts")
        parts = [list(part) for part in zip(*rows, strict=True)] if is_pairs else [rows]
    if not parts or not parts[0]:
        raise ValueError("X has no rows: expected a text or more")
    if len(parts) > len(PAIR):
        raise ValueError(f"X has {len(parts)} columns: expected one text a row, or a pair of texts")
    for part in parts:
        row, value = next(((r, v) for r, v in enumerate(part) if not isinstance(v, str)), (None, None))
        if row is not None:
            raise ValueError(f"X holds a {type(value).__name__} in row {row}: expected texts (str)")
    names = TEXTS if len(parts) == 1 else PAIR
    return dict(zip(names, ([str(text) for text in part] for part in parts), strict=True))


def _targets(y: Any) -> np.ndarray:
    """Returns the targets as an array (n_rows,).

    Raises:
        ValueError: y is missing, is no column, or has missing values.
    """
    if y is None:
        raise ValueError("this estimator requires y to be passed, but the target y is None")
    targets = np.asarray(y)
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    if targets.ndim != 1:
        raise ValueError(f"y must have one target a row, not the shape {targets.shape}")
    if np.iscomplexobj(targets):
        raise ValueError("y is complex. Complex data not supported")
    if targets.dtype == object and any(value is None or value != value for value in targets):
        raise ValueError("y has missing values")
    return targets


def _contents(folder: Path) -> dict[str, bytes]:
    """Returns the files of a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
