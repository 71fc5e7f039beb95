"""MLflow stores for tests: tables are made once a process, as MLflow takes seconds for them; and what lies in one."""

from __future__ import annotations

import atexit
import itertools
import shutil
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from autopeft.history import History
from autopeft.trackers._store import without_chatter
from autopeft.trackers.mlflow import MLflow


@lru_cache
def _template() -> Path:
    from mlflow import MlflowClient

    folder = Path(tempfile.mkdtemp(prefix="autopeft-test-mlflow-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with without_chatter():
        MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}").search_experiments()
    return folder / "mlflow.db"


def run_folder(path: Path, name: str = "demo-1") -> Path:
    """A run's folder in `path/runs`, beside an empty MLflow store where there is none."""
    folder = path / "runs" / name
    folder.mkdir(parents=True)
    if not (folder.parent / "mlflow.db").exists():
        shutil.copyfile(_template(), folder.parent / "mlflow.db")
    return folder


def follow(tracker: MLflow, events: list[Mapping[str, Any]], start: int = 1) -> History:
    """Shows a tracker the events as a search does; those before `start` are told before it starts."""
    history = History(events[:start])
    tracker.start(history)
    for event in events[start:]:
        history.apply(event)
        tracker.handle(event)
    tracker.finish()
    return history


def runs(uri: str, experiment: str | None = None) -> dict[str, dict[str, Any]]:
    """Run name → all that a store, or one experiment, has of it; ids and what depends on them left out."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiments = [e.experiment_id for e in client.search_experiments() if experiment in (None, e.name)]
    found = client.search_runs(experiments, max_results=5000)
    names = {run.info.run_id: run.info.run_name for run in found}
    assert len(set(names.values())) == len(names), "each run is there once"
    out = {}
    for run in found:
        tags = {key: value for key, value in run.data.tags.items() if key != "mlflow.note.content"}
        if "mlflow.parentRunId" in tags:
            tags["mlflow.parentRunId"] = names[tags["mlflow.parentRunId"]]
        points = sorted(
            (metric.key, metric.step, metric.value, metric.timestamp)
            for key in run.data.metrics
            for metric in client.get_metric_history(run.info.run_id, key)
        )
        out[run.info.run_name] = {
            "status": run.info.status,
            "start": run.info.start_time,
            "end": run.info.end_time,
            "params": dict(run.data.params),
            "tags": tags,
            "points": points,
        }
    return out


def note(uri: str, name: str) -> str:
    """The note of a run."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"attributes.run_name = '{name}'")
    return str(run.data.tags["mlflow.note.content"])


class AnswersAtOnce:
    """In place of MLflow's client: a store that costs nothing and remembers nothing."""

    def __init__(self, tracking_uri: str) -> None:
        self.runs = itertools.count()

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="1", lifecycle_stage="active", tags={})

    def search_experiments(self, **options: Any) -> list[Any]:
        return []

    def search_runs(self, *args: Any, **options: Any) -> Any:
        return NoRuns()

    def create_run(self, *args: Any, **options: Any) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id=f"{next(self.runs):032x}", status="RUNNING"))

    def nothing(self, *args: Any, **options: Any) -> None:
        pass

    set_experiment_tag = log_batch = log_artifact = update_run = set_terminated = set_tag = nothing


class NoRuns(list[Any]):
    """No runs, and no further page."""

    token = None
