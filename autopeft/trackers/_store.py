"""The MLflow store of one search's runs. Writing a page adds only the difference to the store's content.

This is the only file that calls MLflow. Every call may fail or be slow. Callers are the tracker's thread and `track`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from autopeft.errors import UsageError
from autopeft.files import locked
from autopeft.trackers._layout import Layout, Page, Point, key_of

if TYPE_CHECKING:
    from mlflow.entities import Run

DIGEST, ARTIFACTS = "autopeft.points", "autopeft.artifacts"
POINTS_A_CALL, PARAMS_A_CALL = 800, 100  # MLflow takes 1,000 things a call, 100 of them params, 100 tags
SQLITE, SERVERS = "sqlite:///", ("http://", "https://")
ARTIFACT_ROOT = "_MLFLOW_SERVER_ARTIFACT_ROOT"  # read where a store is opened; where it is not, MLflow's default stays
# One call to a server that is down took 247 s with MLflow's own retries, 2.3 s with these. A user's setting stays.
BOUNDS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# Of the errors that MLflow wraps, in urllib3's and requests' words.
UNREACHABLE = {
    "Connection refused": "nobody listens there",
    "NameResolutionError": "there is no such host",
    "timed out": "it does not answer in time",
}
CHATTER = ("mlflow.store.db.utils", "alembic", "alembic.runtime.migration", "urllib3.connectionpool")


def tracking_uri(uri: str | None, folder: Path) -> str:
    """Returns the URI: the given one, else MLFLOW_TRACKING_URI, else one SQLite file beside the run folders.

    A relative SQLite path is made absolute, from the working folder. MLflow would resolve it in the working folder of
    each process.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return sqlite_uri(Path(folder).resolve().parent / "mlflow.db")
    if uri.startswith(SQLITE):
        _, mark, options = uri.partition("?")
        return sqlite_uri(sqlite_path(uri).expanduser().resolve()) + mark + options
    return uri


def sqlite_path(uri: str) -> Path:
    """Returns the file that a SQLite URI names."""
    name = uri.removeprefix(SQLITE).partition("?")[0]
    return Path(unquote(name) if "%" in name and _is_unquoted() else name)


def sqlite_uri(path: Path) -> str:
    """Returns the URI of a SQLite file, with any characters in its name.

    Raises:
        UsageError: The installed SQLAlchemy cannot express the name.
    """
    text = str(path)
    if not set("%?") & set(text):
        return f"{SQLITE}{text}"
    if _is_unquoted():
        return SQLITE + re.sub("%(?=[0-9A-Fa-f]{2})", "%25", text).replace("?", "%3F")
    if "?" not in text:
        return f"{SQLITE}{text}"
    raise UsageError(
        f"MLflow cannot keep its database at {text}: to the installed SQLAlchemy, what follows the '?' is an option. Give "
        "trackers.mlflow.uri, put the runs elsewhere, or install SQLAlchemy 2.1 or later"
    )


def _is_unquoted() -> bool:
    """Whether SQLAlchemy reads `%3F` in the name of a file as `?`: it does from 2.1 on."""
    from sqlalchemy.engine import make_url

    return make_url(f"{SQLITE}%3F").database == "?"


@contextlib.contextmanager
def _artifacts_in(folder: Path) -> Iterator[None]:
    """While MLflow makes its tables, names the place of its own first experiment.

    MLflow writes that place into a statement as it is. By default it is in the working folder, and a name with a colon or
    both kinds of quotes breaks the statement; in a URI these are encoded.
    """
    if os.environ.get(ARTIFACT_ROOT):
        yield
        return
    os.environ[ARTIFACT_ROOT] = folder.absolute().as_uri()
    try:
        yield
    finally:
        del os.environ[ARTIFACT_ROOT]


def import_mlflow(uri: str) -> None:
    """Imports MLflow, with bounded retries. Call it in the thread of other imports: parallel imports can fail.

    Args:
        uri: The store. With its first request to a server MLflow imports IPython, too, where that is installed, and
            matplotlib reads IPython's version as soon as its import has begun.
    """
    for name, value in BOUNDS.items():
        os.environ.setdefault(name, value)
    import mlflow.tracking  # noqa: F401

    if uri.startswith(SERVERS):
        with contextlib.suppress(ImportError):
            import_module("IPython")


@dataclass
class Held:
    """A store's content for one page.

    Attributes:
        params: Their names: MLflow's params never change.
        metrics: Keys of the stored points, as far as they are not in `points`.
        points: The stored points; None if the digest stands for them.
    """

    run: str
    status: str
    end: int | None
    params: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    points: set[Point] | None = None


class Store:
    """One search's runs in MLflow.

    Args:
        uri: Absolute.
        layout: Layout of the search.
        experiment: Name of the experiment; None for the layout's own.
        folder: The run's folder. If the store is a database, artifacts are beside it.

    Attributes:
        experiment: Id of the experiment.
        held: Page key → the store's content. Valid until a call fails.
        counts: Number of items added through this object: runs, params, metrics, tags, artifacts.
    """

    def __init__(self, uri: str, layout: Layout, experiment: str | None, folder: Path) -> None:
        from mlflow import MlflowClient

        self.counts: Counter[str] = Counter()
        if uri.startswith(SQLITE):
            # MLflow creates its tables without a lock: if several processes open a new file at once, all fail.
            path = sqlite_path(uri)
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(path.with_name(path.name + ".lock")), _artifacts_in(path.parent / "mlruns"):
                self.client = MlflowClient(tracking_uri=uri)
                self.client.search_experiments(max_results=1)
            if (misread := Path(uri.removeprefix(SQLITE)).parent) != path.parent:
                with contextlib.suppress(OSError):
                    os.removedirs(misread)  # empty: MLflow makes the folder that a quoted name would be, unquoted
        else:
            self.client = MlflowClient(tracking_uri=uri)
        name = experiment or layout.experiment_name()
        root = None if uri.startswith(("http://", "https://")) else _artifact_root(uri, folder) / name.replace("/", "_")
        self.experiment = self._experiment(name, layout.experiment_tags(), root)
        self.search_id = layout.search_id
        self.held = self._load()

    def _experiment(self, name: str, tags: Mapping[str, str], root: Path | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            location = None if root is None else root.resolve().as_uri()
            try:
                return str(self.client.create_experiment(name, artifact_location=location, tags=dict(tags)))
            except MlflowException:
                found = self.client.get_experiment_by_name(name)  # another process created it first
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise UsageError(
                f"MLflow's experiment {name!r} was deleted, and its name is still taken: "
                f"`mlflow experiments restore -x {found.experiment_id}`, or name another in trackers.mlflow.experiment"
            )
        for key, value in tags.items():
            if found.tags.get(key) != value:
                self.client.set_experiment_tag(found.experiment_id, key, value)
        return str(found.experiment_id)

    def _own(self) -> Iterator[tuple[str, Run]]:
        """Yields the runs of this search, each with its page's key."""
        filter_string, token = f"tags.`autopeft.search_id` = '{self.search_id}'", None
        while True:
            page = self.client.search_runs([self.experiment], filter_string, max_results=1000, page_token=token)
            for run in page:
                if key := key_of(run.data.tags):
                    yield key, run
            token = page.token
            if not token:
                return

    def _load(self) -> dict[str, Held]:
        found: dict[str, list[Run]] = {}
        for key, run in self._own():
            found.setdefault(key, []).append(run)
        children = Counter(run.data.tags.get("mlflow.parentRunId") for runs in found.values() for run in runs)

        def emptiness(run: Run) -> tuple[int, bool, int, str]:
            data = run.data
            return -children[run.info.run_id], DIGEST not in data.tags, -len(data.metrics), run.info.run_id

        held = {}
        for key, runs in found.items():
            run, *twins = sorted(runs, key=emptiness)
            metrics = tuple(run.data.metrics)
            held[key] = Held(
                run.info.run_id,
                run.info.status,
                run.info.end_time,
                tuple(run.data.params),
                dict(run.data.tags),
                metrics,
                None if metrics else set(),
            )
            for twin in twins:
                self._drop(twin)
        return held

    def drop_twins(self) -> None:
        """Deletes runs that are there twice.

        If the answer to a request is lost, MLflow's client asks once more. The server makes one run for each time.
        """
        for key, run in self._own():
            if key in self.held and self.held[key].run != run.info.run_id:
                self._drop(run)

    def _drop(self, run: Run) -> None:
        from mlflow.exceptions import MlflowException

        self.client.set_tag(run.info.run_id, "autopeft.role", "twin")
        try:
            self.client.delete_run(run.info.run_id)
        except MlflowException as fault:
            if not is_refusal(fault):  # who may edit may not always delete
                raise

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def ensure(self, page: Page, parent: str | None = None) -> Held:
        """Returns the run of a page, and creates it if there is none."""
        if page.key not in self.held:
            tags = {**page.tags, **({} if parent is None else {"mlflow.parentRunId": parent})}
            run = self.client.create_run(self.experiment, start_time=page.start, tags=tags, run_name=page.name)
            self.held[page.key] = Held(run.info.run_id, run.info.status, None, tags=dict(tags), points=set())
            self.counts["runs"] += 1
        return self.held[page.key]

    def write(self, page: Page, parent: str | None = None) -> Held:
        """Adds to a run the items of its page that are missing."""
        held = self.ensure(page, parent)
        is_over = page.status != "RUNNING"
        digest = page.digest if is_over or held.points is None else ""
        points = self._missing(held, page.points, digest)
        # What a resume changed is in the tags.
        params = {key: value for key, value in page.params.items() if key not in held.params}
        tags = {**page.tags, **({DIGEST: digest} if is_over else {})}
        self._log(held, points, params, {key: value for key, value in tags.items() if held.tags.get(key) != value})
        if not is_over:
            if held.status != "RUNNING":
                self.client.update_run(held.run, status="RUNNING")
        elif (held.status, held.end) != (page.status, page.end):
            self.client.set_terminated(held.run, page.status, end_time=page.end)
        held.status, held.end = page.status, page.end
        if is_over and held.points is not None:
            # Its digest says that all are there; the points of 10,000 trials would fill the driver's memory.
            held.metrics, held.points = tuple({point.key for point in held.points}), None
        return held

    def _missing(self, held: Held, points: tuple[Point, ...], digest: str) -> list[Point]:
        if held.points is None and held.tags.get(DIGEST) == digest:
            return []
        if held.points is None:
            held.points = {
                Point(key, metric.value, metric.timestamp, metric.step)
                for key in held.metrics
                for metric in self.client.get_metric_history(held.run, key)
            }
        return [point for point in points if point not in held.points]

    def _log(self, held: Held, points: list[Point], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Logs in as few calls as MLflow allows. Tags come last: a set digest means that all points are there."""
        from mlflow.entities import Metric, Param, RunTag

        calls = max(-(-len(points) // POINTS_A_CALL), -(-len(params) // PARAMS_A_CALL), 1 if tags else 0)
        metrics = [Metric(point.key, point.value, point.timestamp, point.step) for point in points]
        entries = [Param(key, value) for key, value in params.items()]
        for call in range(calls):
            self.client.log_batch(
                held.run,
                metrics[call * POINTS_A_CALL : (call + 1) * POINTS_A_CALL],
                entries[call * PARAMS_A_CALL : (call + 1) * PARAMS_A_CALL],
                [RunTag(key, value) for key, value in tags.items()] if call == calls - 1 else [],
            )
        if held.points is not None:
            held.points.update(points)
        held.params += tuple(params)
        held.tags |= tags
        self.counts.update(metrics=len(points), params=len(params), tags=len(tags))

    def upload(self, held: Held, files: Mapping[str, Path]) -> None:
        """Uploads files that are new or changed. `files` is artifact path → file of the same name."""
        have: dict[str, str] = json.loads(held.tags.get(ARTIFACTS, "{}"))
        changed = {path: digest for path, file in files.items() if have.get(path) != (digest := _file_digest(file))}
        for path in changed:
            self.client.log_artifact(held.run, str(files[path]), str(Path(path).parent) if "/" in path else None)
        if changed:
            self.tag(held, ARTIFACTS, json.dumps({**have, **changed}, sort_keys=True))
            self.counts["artifacts"] += len(changed)

    def tag(self, held: Held, key: str, value: str) -> None:
        """Sets a tag if its value differs."""
        if held.tags.get(key) == value:
            return
        self.counts["tags"] += 1
        self.client.set_tag(held.run, key, value)
        held.tags[key] = value


def explained(fault: Exception) -> str | None:
    """Returns what is known about a fault of a server: it is not there, or refuses the user. None for other faults."""
    from mlflow.exceptions import MlflowException

    if not isinstance(fault, MlflowException):
        return None
    if re.search(r"failed with (timeout )?exception", str(fault)):  # not an answer, which may speak of the server's own
        for words, meaning in UNREACHABLE.items():
            if words in str(fault):
                return meaning
    if fault.error_code in ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"):
        return (
            "it wants a user and a password, and these are missing or wrong: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD"
        )
    # A Host header that the server refuses has this code, too.
    if fault.error_code == "PERMISSION_DENIED" and "permission" in str(fault).removeprefix("PERMISSION_DENIED").lower():
        return (
            "this user may not write there: ask for the permission, or name an experiment of your own in "
            "trackers.mlflow.experiment"
        )
    return None


def is_refusal(fault: Exception) -> bool:
    """Whether a server says that this user may not do this."""
    from mlflow.exceptions import MlflowException

    return isinstance(fault, MlflowException) and fault.error_code == "PERMISSION_DENIED"


def artifacts_of(held: Held) -> tuple[str, ...]:
    """Returns the paths of the artifacts that we uploaded to a run."""
    return tuple(json.loads(held.tags.get(ARTIFACTS, "{}")))


def _artifact_root(uri: str, folder: Path) -> Path:
    """Returns the folder of artifacts if no server keeps them: beside the SQLite file, or beside the run folders."""
    home = sqlite_path(uri).parent if uri.startswith(SQLITE) else Path(folder).resolve().parent
    return home / "mlartifacts"


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Allows one writer for each search, as two writers would create its runs twice.

    Raises:
        UsageError: Another process is writing.
    """
    with open(Path(folder) / ".mlflow.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            raise UsageError(
                f"{folder} is being written to MLflow by another process: wait for it, or end it"
            ) from fault
        yield


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Hides the logs of MLflow's libraries in this thread: new tables, retried requests. Errors are still raised."""
    thread = threading.get_ident()

    def is_not_ours(record: logging.LogRecord) -> bool:
        return record.thread != thread

    loggers = [logging.getLogger(name) for name in CHATTER]
    for logger in loggers:
        logger.addFilter(is_not_ours)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_not_ours)
