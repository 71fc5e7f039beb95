"""MLflow: a parent run a search, a child run a trial, the front as pictures and tables.

Only this process writes, in one thread behind a bounded queue, so that a store that is down, slow or dying delays
nothing and loses nothing: what it missed, `autopeft track RUN` fills in from the ledger, and a second time adds
nothing. Every point has the time at which the ledger has it, so that the same point twice is one point.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from autopeft.history import History, Record
from autopeft.search import summary
from autopeft.trial import Status

QUEUE = 10_000  # events: a search of thousands of trials fits; beyond it the tracker falls behind
DEAD_SECONDS, BUSY_SECONDS = 5.0, 120.0  # how long `finish` waits for a store that fails, or that gets on
# One call may not take minutes: MLflow's own defaults are 7 retries over 247 s.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
NOTE_LIMIT = 7900  # MLflow cuts tags at 8,000 characters without a word
STATES = {
    Status.COMPLETE: "FINISHED",
    Status.STOPPED: "KILLED",
    Status.OUT_OF_MEMORY: "FAILED",
    Status.FAILED: "FAILED",
}
SECRET_KEY = re.compile(r"token|secret|password|passwd|api_?key|credential", re.IGNORECASE)
SECRET_VALUE = re.compile(r"hf_[A-Za-z0-9]{8,}|://[^/@\s]+@")

Describe = Callable[[Mapping[str, Any]], str]


class MLflow:
    """Follows a search.

    Args:
        folder: The run's.
        uri: Of the store; None for `mlflow.db` beside the run folders, by its absolute path.
        experiment: Its name; None for `autopeft/<task>/<model>`.
        describe: What a person calls a configuration.
        artifacts: Makes what is shown of the whole search: artifact path → file.
        adapters: The folder of a trial's trained tensors; None where they were not kept.
    """

    def __init__(
        self,
        folder: Path,
        uri: str | None = None,
        experiment: str | None = None,
        describe: Describe | None = None,
        artifacts: Callable[[], Mapping[str, Path]] | None = None,
        adapters: Callable[[Record], Path | None] | None = None,
    ) -> None:
        self.folder, self.uri, self.experiment = Path(folder), uri or default_uri(folder), experiment
        self.describe = describe or (lambda params: str(params["method"]))
        self.artifacts, self.adapters = artifacts, adapters
        self.fault = ""
        self._queue: queue.Queue[Mapping[str, Any] | None] = queue.Queue(QUEUE)
        self._thread: threading.Thread | None = None

    def start(self, history: History) -> None:
        """Begins a thread of its own with a history of its own, grown by the same events."""
        from autopeft import ledger

        self._live = history
        self._events = ledger.read(self.folder / ledger.NAME)
        self._thread = threading.Thread(target=self._follow, name="autopeft-mlflow", daemon=True)
        self._thread.start()

    def handle(self, event: Mapping[str, Any]) -> None:
        if not self.fault:
            try:
                self._queue.put_nowait(event)
            except queue.Full:
                self._fall_behind("it is slower than the search")

    def finish(self) -> None:
        """Waits while the store gets on; gives up after a few seconds where it does not."""
        if self._thread is None:
            return
        if not self.fault:
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=1.0)
        until = time.monotonic() + (DEAD_SECONDS if self.fault else BUSY_SECONDS)
        while self._thread.is_alive() and time.monotonic() < until and not self.fault:
            self._thread.join(0.1)
        if self._thread.is_alive() and not self.fault:
            self._fall_behind(f"it took more than {BUSY_SECONDS:g} s to finish")
        if not self.fault:
            return
        print(
            f"MLflow is behind ({redact(self.fault)}); nothing is lost: `autopeft track {self.folder}` fills it in",
            file=sys.stderr,
        )

    def fill(self, history: History) -> dict[str, int]:
        """Writes what the store lacks, and returns how much that was. A second time adds nothing.

        Raises:
            EnvironmentFault: The store cannot be reached.
        """
        from autopeft.errors import EnvironmentFault

        try:
            store = _Store(self, history)
            for record in history.trials:
                if record.status is not None:
                    store.child(record)
            store.curves()
            store.close(is_over=True)
        except Exception as fault:  # whatever a store's client raises
            raise EnvironmentFault(f"MLflow at {redact(self.uri)}: {redact(_first_line(fault))}") from fault
        return store.counts

    def _follow(self) -> None:
        """The thread: writes each event; at the end, or after a fault, stops."""
        try:
            history = History(self._events)
            store = _Store(self, history)
            for record in history.trials:
                if record.status is not None:
                    store.child(record)
            seen = len(self._events)
            for event in self._taken():
                if event["seconds"] <= self._events[-1]["seconds"] and event in self._events[seen - 1 :]:
                    continue
                history.apply(event)
                if event["event"] == "tell":
                    store.child(history.records[event["number"]])
                    store.curve(len(history.told))
            store.curves()
            store.close(is_over=True)
        except Exception as fault:  # a store's client raises what it likes; the search goes on
            self._fall_behind(_first_line(fault))

    def _taken(self) -> Iterator[Mapping[str, Any]]:
        while (event := self._queue.get()) is not None:
            yield event

    def _fall_behind(self, why: str) -> None:
        self.fault = why


class _Store:
    """The calls to MLflow for one search: finds what is there, adds what is not."""

    def __init__(self, tracker: MLflow, history: History) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self.tracker, self.history = tracker, history
        self.header = history.header
        self.score = history.objectives[0].metric
        self.began = round(datetime.fromisoformat(self.header["created"]).timestamp() * 1000)
        self.counts = {"runs": 0, "points": 0, "artifacts": 0}
        with _initialising(tracker.uri):
            self.client = MlflowClient(tracking_uri=tracker.uri)
            self.experiment_id = self._experiment()
        self.parent = self._run(self.header["id"], None)
        self.children = self._known_children()
        self.curve_known = self._steps(self.parent, "search/hypervolume")

    def _experiment(self) -> str:
        model, task = self.header["model"]["name"], self.header["config"]["task"]["name"]
        name = self.tracker.experiment or f"autopeft/{task}/{model}"
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        where = None
        if self.tracker.uri.startswith("sqlite:"):
            where = (self.tracker.folder.parent / "mlartifacts").resolve().as_uri()
        tags = {
            "mlflow.experimentKind": "custom_model_development",
            "mlflow.experiment.primaryMetric.name": f"eval/{self.score}",
            "mlflow.experiment.primaryMetric.greaterIsBetter": "true",
        }
        return str(self.client.create_experiment(name, artifact_location=where, tags=tags))

    def _run(self, search_id: str, record: Record | None) -> str:
        """The run of the search or of a trial: found by its tags, or created."""
        from mlflow.entities import ViewType

        role = "search" if record is None else "trial"
        query = f"tags.`autopeft.search_id` = '{search_id}' and tags.`autopeft.role` = '{role}'"
        if record is None:
            found = self.client.search_runs([self.experiment_id], query, ViewType.ACTIVE_ONLY, max_results=1)
            if found:
                return str(found[0].info.run_id)
        tags = {"autopeft.search_id": search_id, "autopeft.role": role, "autopeft.schema": "1"}
        if record is None:
            name, start = self.tracker.folder.name, self.began
        else:
            tags |= {"mlflow.parentRunId": self.parent, "autopeft.trial": str(record.number)}
            name = f"trial-{record.number:03d}-{record.params['method']}"
            start = self.time(record.asked_seconds)
        run = self.client.create_run(self.experiment_id, start_time=start, tags=tags, run_name=name)
        self.counts["runs"] += 1
        if record is None:
            self._describe_search(run.info.run_id)
        return str(run.info.run_id)

    def _known_children(self) -> dict[int, tuple[str, bool]]:
        """Trial number → (run, whether it was ended), of what is there."""
        query = f"tags.`autopeft.search_id` = '{self.header['id']}' and tags.`autopeft.role` = 'trial'"
        known, token = {}, None
        while True:
            page = self.client.search_runs([self.experiment_id], query, max_results=1000, page_token=token)
            for run in page:
                known[int(run.data.tags["autopeft.trial"])] = (run.info.run_id, run.info.status != "RUNNING")
            token = page.token
            if not token:
                return known

    def _describe_search(self, run: str) -> None:
        from mlflow.entities import Param, RunTag

        config = self.header["config"]
        values = {
            "task": config["task"]["name"],
            "model": self.header["model"]["name"],
            "model_revision": self.header["model"]["revision"],
            "sampler": config["sampler"]["name"],
            "stopper": config["stopper"]["name"],
            "seed": config["seed"],
            "budget": config["budget"],
            "objectives": ", ".join(objective["metric"] for objective in self.header["objectives"]),
            "precision": self.header["chosen"]["precision"],
            "attention": self.header["chosen"]["attention"],
        }
        params = [Param(key, redact(str(value))[:500]) for key, value in values.items()]
        version = str(self.header["provenance"]["versions"].get("autopeft", "0"))
        self.client.log_batch(run, params=params, tags=[RunTag("autopeft.version", version)])

    def child(self, record: Record) -> None:
        """One trial that was told, whole: nothing where it is there already."""
        from mlflow.entities import Param, RunTag

        run, ended = self.children.get(record.number, ("", False))
        if ended:
            return
        if not run:
            run = self._run(self.header["id"], record)
        assert record.status is not None
        params = [Param(_name(key), _shown(key, value)) for key, value in record.params.items()]
        params.append(Param("seed", str(record.trial.seed)))
        points = []
        for report in record.reports:
            points += self._points(report.metrics, "eval/", report.step, self.time(record.told_seconds or 0.0))
        final = {f"cost/{name}" if _is_cost(name) else f"eval/{name}": value for name, value in record.metrics.items()}
        if record.is_complete and record.metrics.get("trainable_parameters"):
            size = record.metrics["trainable_parameters"]
            final["cost/log10_trainable_parameters"] = math.log10(size)
            final["cost/trainable_percent"] = 100 * size / self.header["model"]["parameters"]
        last = record.reports[-1].step + 1 if record.reports else 0
        if record.is_complete:  # a stopped trial's last report is there already, as what it is
            points += self._points(final, "", last, self.time(record.told_seconds or 0.0))
        tags = [
            RunTag("autopeft.state", str(record.status)),
            RunTag("autopeft.name", self.tracker.describe(record.params)),
        ]
        if record.error:
            tags.append(RunTag("autopeft.error", redact(record.error)[:5000]))
        self.client.log_batch(run, metrics=points, params=params, tags=tags)
        self.counts["points"] += len(points)
        self.client.set_terminated(run, STATES[record.status], end_time=self.time(record.told_seconds or 0.0))
        self.children[record.number] = (run, True)

    def _points(self, metrics: Mapping[str, float], prefix: str, step: int, at: int) -> list[Any]:
        from mlflow.entities import Metric

        return [
            Metric(_name(f"{prefix}{name}"), float(value), at, step)
            for name, value in metrics.items()
            if math.isfinite(value)
        ]

    def curve(self, told: int) -> None:
        """The parent's curves after so many tells."""
        if told in self.curve_known:
            return
        events = [self.history.records[number] for number in self.history.told[:told]]
        complete = [record for record in events if record.is_complete]
        metrics = {f"search/trials_{status.lower()}": 0.0 for status in map(str, Status)}
        for record in events:
            metrics[f"search/trials_{str(record.status).lower()}"] += 1.0
        metrics["search/hypervolume"] = self.history.hypervolumes()[told - 1]
        if complete:
            scores = [record.metrics[self.score] for record in complete]
            maximize = self.history.objectives[0].goal == "maximize"
            metrics[f"search/best_{self.score}"] = max(scores) if maximize else min(scores)
        points = self._points(metrics, "", told, self.time(events[-1].told_seconds or 0.0))
        self.client.log_batch(self.parent, metrics=points)
        self.counts["points"] += len(points)
        self.curve_known.add(told)

    def curves(self) -> None:
        for told in range(1, len(self.history.told) + 1):
            self.curve(told)

    def close(self, is_over: bool) -> None:
        """Marks the front, writes pictures, note and adapters, and ends the parent where the search is over."""
        front = self.history.front()
        self._mark_front(front)
        self._confirmations()
        files = dict(self.tracker.artifacts()) if self.tracker.artifacts is not None else {}
        for path, file in files.items():
            self._artifact(self.parent, path, file)
        if self.tracker.adapters is not None:
            for record in front:
                folder = self.tracker.adapters(record)
                if folder is not None:
                    run = self.children[record.number][0]
                    for file in sorted(folder.iterdir()):
                        self._artifact(run, f"adapter/{file.name}", file)
        self._tag(self.parent, "mlflow.note.content", self._note(front))
        if is_over and self.client.get_run(self.parent).info.status == "RUNNING":
            self.client.set_terminated(self.parent, "FINISHED", end_time=self.time(self._last_seconds()))

    def _mark_front(self, front: list[Record]) -> None:
        members = [record.number for record in front]
        for number, (run, _) in self.children.items():
            tags = self.client.get_run(run).data.tags
            wanted = {"autopeft.on_front": str(number in members).lower()}
            if number in members:
                wanted["autopeft.front_rank"] = str(members.index(number) + 1)
            wanted["autopeft.selected"] = str(bool(members) and number == members[0]).lower()
            for key, value in wanted.items():
                if tags.get(key) != value:
                    self.client.set_tag(run, key, value)

    def _confirmations(self) -> None:
        """The mean test score over seeds of each confirmed trial, on its child."""
        scores: dict[int, list[float]] = {}
        for confirmation in self.history.confirmations:
            if confirmation.number is not None and confirmation.status is Status.COMPLETE:
                scores.setdefault(confirmation.number, []).append(confirmation.metrics[self.score])
        for number, found in scores.items():
            run = self.children[number][0]
            if len(found) in self._steps(run, f"test/{self.score}_mean"):
                continue
            metrics = {f"test/{self.score}_mean": sum(found) / len(found), "test/seeds": float(len(found))}
            points = self._points(metrics, "", len(found), self.time(self._last_seconds()))
            self.client.log_batch(run, metrics=points)
            self.counts["points"] += len(points)

    def _artifact(self, run: str, path: str, file: Path) -> None:
        """Logs a file under a path, unless one of that name and size is there."""
        folder, _, name = path.rpartition("/")
        known = {entry.path: entry.file_size for entry in self.client.list_artifacts(run, folder or None)}
        if known.get(path) == file.stat().st_size:
            return
        import shutil
        import tempfile

        with tempfile.TemporaryDirectory(prefix="autopeft-") as temporary:
            copy = Path(temporary) / name
            shutil.copyfile(file, copy)
            self.client.log_artifact(run, str(copy), folder or None)
        self.counts["artifacts"] += 1

    def _tag(self, run: str, key: str, value: str) -> None:
        if self.client.get_run(run).data.tags.get(key) != value:
            self.client.set_tag(run, key, value)

    def _note(self, front: list[Record]) -> str:
        """Links, the verdict in one sentence, the picture, the front's table: what the overview shows."""
        base = f"#/experiments/{self.experiment_id}/runs/{self.parent}"
        lines = [
            f"[Report]({base}/artifacts/report.html) · [Front]({base}/artifacts/00_pareto/pareto.png)",
            "",
            self._verdict(front),
            "",
            f"![front](/get-artifact?path=00_pareto%2Fpareto.png&run_uuid={self.parent})",
            "",
            f"| trial | configuration | {self.score} (validation, one seed) | trainable parameters |",
            "|---:|---|---:|---:|",
        ]
        for record in front[:30]:
            run = self.children[record.number][0]
            link = f"[{record.number}](#/experiments/{self.experiment_id}/runs/{run})"
            name = self.tracker.describe(record.params).replace("|", "/")
            size = record.metrics.get("trainable_parameters", float("nan"))
            line = f"| {link} | {name} | {record.metrics[self.score]:.4f} | {size:,.0f} |"
            if sum(map(len, lines)) + len(lines) + len(line) > NOTE_LIMIT:
                break
            lines.append(line)
        return "\n".join(lines)[:NOTE_LIMIT]

    def _verdict(self, front: list[Record]) -> str:
        counts = ", ".join(f"{count} {name.lower().replace('_', ' ')}" for name, count in summary(self.history).items())
        if not front:
            return f"No trial completed ({counts})."
        best, least = front[0], front[-1]
        return (
            f"**{self.score} {best.metrics[self.score]:.4f}** with {best.metrics['trainable_parameters']:,.0f} trainable "
            f"parameters ({self.tracker.describe(best.params)}), down to {least.metrics[self.score]:.4f} with "
            f"{least.metrics['trainable_parameters']:,.0f}. {counts}."
        )

    def _steps(self, run: str, metric: str) -> set[int]:
        if metric not in self.client.get_run(run).data.metrics:
            return set()
        return {point.step for point in self.client.get_metric_history(run, metric)}

    def _last_seconds(self) -> float:
        return max((record.told_seconds or 0.0 for record in self.history.records), default=0.0)

    def time(self, seconds: float) -> int:
        """Search time as MLflow's milliseconds."""
        return self.began + round(seconds * 1000)


def default_uri(folder: Path | str) -> str:
    """A SQLite file beside the run folders, by its absolute path: MLflow's own default depends on the working folder."""
    return f"sqlite:///{(Path(folder).resolve().parent / 'mlflow.db').as_posix()}"


def open_command(history: History, options: Mapping[str, Any], folder: Path) -> str:
    """The one line that opens MLflow, and the address of this search there."""
    uri = options.get("uri") or default_uri(folder)
    task, model = history.header["config"]["task"]["name"], history.header["model"]["name"]
    name = options.get("experiment") or f"autopeft/{task}/{model}"
    where = "search for the experiment"
    with contextlib.suppress(Exception):  # only an address: a store that is down is no reason to fail
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(name)
        query = f"tags.`autopeft.search_id` = '{history.header['id']}' and tags.`autopeft.role` = 'search'"
        run = client.search_runs([found.experiment_id], query, max_results=1)[0].info.run_id
        where = f"#/experiments/{found.experiment_id}/runs/{run}?workflowType=machine_learning"
    if uri.startswith("http"):
        return f"{redact(uri)}/{where}"
    return f"mlflow ui --backend-store-uri {redact(uri)}   then http://127.0.0.1:5000/{where}"


@contextlib.contextmanager
def _initialising(uri: str) -> Iterator[None]:
    """One process at a time creates the tables of a SQLite store: MLflow's own migration races."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    from filelock import FileLock

    path = Path(uri.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", timeout=300):
        yield


def redact(text: str) -> str:
    """Without tokens and the user's part of a URI."""
    return SECRET_VALUE.sub(lambda match: "://***@" if match.group().startswith("://") else "hf_***", text)


def _shown(key: str, value: Any) -> str:
    return "***" if SECRET_KEY.search(key) else redact(str(value))[:5900]


def _name(text: str) -> str:
    """A name that MLflow takes: letters, digits and `_-. :/`."""
    return re.sub(r"[^A-Za-z0-9_\-. :/]", "_", text)[:250]


def _is_cost(name: str) -> bool:
    return name.endswith(("_parameters", "_seconds", "_bytes", "_size"))


def _first_line(fault: BaseException) -> str:
    return f"{type(fault).__name__}: {(str(fault).strip().splitlines() or [''])[0][:300]}"


plugin = MLflow
