"""MLflow: the search as a parent run, its trials as child runs, the front as a picture in the parent's note.

Only the driver writes, in a thread of its own. The thread receives events through a bounded queue, and keeps its own
fold of them. A failure is warned about once, and tried again later. `autopeft track RUN` adds from the ledger what is
still missing. Each write adds only what MLflow lacks, so writing everything again adds nothing.
"""

from __future__ import annotations

import contextlib
import copy
import json
import queue
import shlex
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from autopeft.errors import AutoPEFTError, EnvironmentFault, command
from autopeft.finding import Finding
from autopeft.history import History, Record
from autopeft.redact import Redactor
from autopeft.trackers._layout import NUMBERS, WORKFLOW, Address, Describe, Layout, cut
from autopeft.trackers._store import (
    SERVERS,
    Held,
    Store,
    artifacts_of,
    explained,
    import_mlflow,
    is_refusal,
    sole_writer,
    tracking_uri,
    without_chatter,
)

MOST_EVENTS = 10_000  # in the queue; if there are more, the rest is read from the history at the end
PERIOD_SECONDS = 1.0  # between two writes; events in between are written together
LONGEST_PAUSE = 60.0  # between two tries of a store that fails
FIRST_SHOW_SECONDS = 30.0  # before the front is drawn for the first time
BEHIND_SECONDS = 5.0  # wait of `finish` for a store whose last call failed, or a server that has not answered
# Pauses before a refusal is believed. If several searches begin at once, one makes their experiment, and MLflow lets its
# own user in a moment after the experiment is there.
DOUBTS = (0.2, 0.4, 0.8, 1.6, 3.2)
LOOKUP_SECONDS = 3.0  # to look up the address of a search; a silent server is not waited for
SHOW_SHARE = 0.005  # of the search's time, at most, for drawing the front for MLflow
WRITE_SHARE = 0.01  # of the search's time, at most, in CPU seconds of writing: after a second's work a pause of 100
TEXTS = {".html", ".json", ".csv", ".yaml", ".yml", ".md", ".txt"}

# Writes the files to show into a folder, from a history. Returns artifact path → file. The history is the fold of the
# tracker's thread, which no other thread changes.
Artifacts = Callable[[History, Path], Mapping[str, Path]]
# Returns the adapter folder of a front member; None if there is none.
Adapters = Callable[[Record], Path | None]


class MLflow:
    """Writes a search to MLflow.

    Args:
        folder: The run's folder.
        uri: Tracking URI; by default MLFLOW_TRACKING_URI, else `mlflow.db` beside the run folders.
        experiment: Name of the experiment; `autopeft/<task>/<model>` by default.
        describe: Names a configuration for people.
        artifacts: Writes the pictures and tables to show.
        adapters: Finds the adapter folder of a front member.
        show_every: Trials between two drawings of the front.
        finish_seconds: Longest wait of `finish` for the remaining writes.
    """

    def __init__(
        self,
        folder: Path,
        uri: str | None = None,
        experiment: str | None = None,
        describe: Describe | None = None,
        artifacts: Artifacts | None = None,
        adapters: Adapters | None = None,
        show_every: int = 10,
        finish_seconds: float = 30.0,
    ) -> None:
        self.folder, self.uri, self.experiment = Path(folder), tracking_uri(uri, Path(folder)), experiment
        self.describe = describe or (lambda params: ", ".join(f"{key} {value}" for key, value in params.items()))
        self.artifacts, self.adapters = artifacts, adapters
        self.show_every, self.finish_seconds = show_every, finish_seconds
        self.is_behind = self.uri.startswith(SERVERS)
        self._events: queue.Queue[Mapping[str, Any] | None] = queue.Queue(MOST_EVENTS)
        self._is_full = self._has_warned = False
        self._trouble = "is slow"  # what `finish` says of a thread that has not ended
        self._ending, self._abandoned = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    # ── the search's thread ─────────────────────────────────────────────────────────────────────────────────────────

    def start(self, history: History) -> None:
        """Starts the thread that writes. Imports MLflow first, as imports in two threads at once can fail."""
        self.history = history
        self.redactor = Redactor.of([history.config, self.uri])
        import_mlflow(self.uri)
        own = copy.deepcopy(history)
        self._thread = threading.Thread(target=self._work, args=(own,), name="autopeft-mlflow", daemon=True)
        self._thread.start()

    def handle(self, event: Mapping[str, Any]) -> None:
        """Puts the event in the queue."""
        if self._is_full:
            return  # the thread's fold lacks an event: it must not get later ones
        try:
            self._events.put_nowait(event)
        except queue.Full:
            self._is_full = True

    def finish(self) -> None:
        """Waits for the thread to write what is left, for a bounded time."""
        if self._thread is None:
            return
        self._ending.set()
        with contextlib.suppress(queue.Full):
            self._events.put_nowait(None)
        # A failing store gets one last try; only a working one gets the full time.
        self._thread.join(min(self.finish_seconds, BEHIND_SECONDS) if self.is_behind else self.finish_seconds)
        if self._thread.is_alive():
            self._abandoned.set()
            self._warn(self._trouble)
        self._thread = None

    def fill(self, history: History) -> dict[str, int]:
        """Adds everything in the history that MLflow lacks. Returns kind → number of added items.

        Raises:
            EnvironmentFault: The store fails.
            UsageError: Another process is writing this search.
        """
        self.redactor = Redactor.of([history.config, self.uri])
        import_mlflow(self.uri)
        with sole_writer(self.folder), without_chatter():
            try:
                sync = self._connect(history)
                sync.everything(is_over=True)
            except AutoPEFTError:
                raise
            except Exception as fault:  # MLflow's, its HTTP client's and its database's errors have no common root
                raise EnvironmentFault(
                    f"MLflow at {self.redactor.secret(self.uri)} cannot be written: {self._reason(fault)}"
                ) from None  # the cause's text may hold the secret that was masked here
        return {name: sync.store.counts[name] for name in ("runs", "params", "metrics", "tags", "artifacts")}

    def open_command(self, history: History) -> str:
        """Returns the line that opens MLflow at this search: a command with its address as a comment, or an address."""
        redactor = Redactor.of([history.config, self.uri])
        pages = [f"#/experiments?{WORKFLOW}"]  # without the store there is still the way to MLflow's first page
        import_mlflow(self.uri)

        def find() -> None:
            with contextlib.suppress(Exception):
                pages.append(_find(history, self.uri, self.experiment))

        with without_chatter():
            asking = threading.Thread(target=find, name="autopeft-mlflow-lookup", daemon=True)
            asking.start()
            asking.join(LOOKUP_SECONDS if self.uri.startswith(SERVERS) else None)
        page = pages[-1]
        if self.uri.startswith(SERVERS):
            return f"{redactor.text(self.uri).rstrip('/').replace('***@', '')}/{page}"
        store = shlex.quote(redactor.text(self.uri))
        return f"{_program()} ui --backend-store-uri {store} --port 5000  # http://127.0.0.1:5000/{page}"

    def diagnose(self) -> Iterator[Finding]:
        """Looks at the store (`autopeft.finding.Diagnosed`)."""
        from autopeft.trackers._health import findings

        return findings(self.uri)

    # ── the writing thread ──────────────────────────────────────────────────────────────────────────────────────────

    def _work(self, history: History) -> None:
        try:
            with without_chatter(), self._alone():
                self._follow(history)
        except Exception as fault:  # a tracker never ends a search
            self._fail(fault)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Waits for a `track` that is still writing this run."""
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(sole_writer(self.folder))
                    break
                except AutoPEFTError:
                    if self._ending.wait(PERIOD_SECONDS):
                        raise
            yield

    def _follow(self, history: History) -> None:
        """Writes events until the search ends, then everything that is missing."""
        due = {record.number for record in history.trials}
        sync: Sync | None = None
        pause, next_try = 1.0, 0.0
        next_show, shown = time.monotonic() + FIRST_SHOW_SECONDS, len(history.told)
        while not self._ending.is_set():
            due |= self._take(history)
            is_to_show = len(history.told) - shown >= self.show_every and time.monotonic() >= next_show
            is_idle = sync is not None and not due and not is_to_show
            if self._ending.is_set() or is_idle or time.monotonic() < next_try:
                continue
            began_cpu = time.thread_time()
            try:
                sync = sync or self._connect(history)
                sync.trials(due)
                due.clear()
                rest = (time.thread_time() - began_cpu) / WRITE_SHARE
                if is_to_show:
                    began = time.monotonic()
                    sync.show()
                    shown, next_show = len(history.told), began + (time.monotonic() - began) / SHOW_SHARE
                pause, self.is_behind = 1.0, False
            except Exception as fault:
                self._fail(fault)
                # It is not known which part of the last call was stored: look it up again.
                sync, due = None, {record.number for record in history.trials}
                pause = min(2 * pause, LONGEST_PAUSE)
                rest = max(pause, (time.thread_time() - began_cpu) / WRITE_SHARE)
            next_try = time.monotonic() + min(rest, LONGEST_PAUSE)
        # The search is over, so its history no longer changes. It also has the events that the full queue refused.
        sync = sync or self._connect(self.history)
        sync.layout.history = self.history
        sync.everything(is_over=True)
        self.is_behind = False

    def _take(self, history: History) -> set[int]:
        """Waits for events, folds them, and returns the numbers of their trials."""
        numbers: set[int] = set()
        until = time.monotonic() + PERIOD_SECONDS
        while not self._ending.is_set():
            try:
                event = self._events.get(timeout=max(until - time.monotonic(), 0.0))
            except queue.Empty:
                break
            if event is None:
                break
            history.apply(event)
            if event["event"] in ("ask", "report", "tell", "rerun"):
                numbers.add(event["number"])
        return numbers

    def _connect(self, history: History) -> Sync:
        layout = Layout(history, self.describe, self.redactor)
        return Sync(self._open(layout), layout, self.artifacts, self.adapters, self._abandoned)

    def _open(self, layout: Layout) -> Store:
        for pause in (*DOUBTS, None):
            try:
                store = Store(self.uri, layout, self.experiment, self.folder)
                break
            except Exception as fault:
                if pause is None or not is_refusal(fault):
                    raise
                self._trouble = self._reason(fault)
                if self._abandoned.wait(pause):
                    raise
        self._trouble = "is slow"
        return store

    def _fail(self, fault: Exception) -> None:
        self.is_behind = True
        self._warn(self._reason(fault))

    def _reason(self, fault: Exception) -> str:
        if said := explained(fault):
            return said
        text = self.redactor.message(str(fault)) if isinstance(fault, AutoPEFTError) else (
            f"{type(fault).__name__}: {self.redactor.message(str(fault))}"
        )  # fmt: skip
        return cut(" ".join(text.split()), 300)

    def _warn(self, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            print(
                f"MLflow at {self.redactor.secret(self.uri)}: {reason}. The search goes on and nothing is lost: "
                f"{command('autopeft', 'track', self.folder)} fills in what is missing there",
                file=sys.stderr,
                flush=True,
            )


class Sync:
    """Writes the pages of a layout to a store.

    Args:
        store, layout: Store and layout of one search.
        artifacts, adapters: See MLflow.
        abandoned: Checked between two runs. If it is set, nobody waits any more.
    """

    def __init__(
        self,
        store: Store,
        layout: Layout,
        artifacts: Artifacts | None,
        adapters: Adapters | None,
        abandoned: threading.Event,
    ) -> None:
        self.store, self.layout = store, layout
        self.artifacts, self.adapters, self.abandoned = artifacts, adapters, abandoned

    def trials(self, numbers: Iterable[int], *, is_over: bool = False) -> None:
        """Writes the pages of these trials, and the search's own, last when it is over."""
        self.layout.progress.update(self.layout.history)
        parent = self._parent()
        for number in sorted(numbers):
            self._check()
            self.store.write(self.layout.trial(number, is_over=is_over), parent.run)
        if not is_over:
            self.store.write(self.layout.search(is_over=False))

    def show(self) -> None:
        """Draws the front, marks its members and writes the parent's note."""
        self.trials(self.layout.rank())
        self._note(self._artifacts())

    def everything(self, *, is_over: bool) -> None:
        """Writes everything: every trial, every retraining, files, adapters, the note, and the end."""
        self.layout.progress.update(self.layout.history)
        self.layout.rank()
        self.trials([record.number for record in self.layout.history.trials], is_over=is_over)
        parent = self._parent()
        for confirmation in self.layout.history.confirmations:
            self._check()
            self.store.write(self.layout.replicate(confirmation), parent.run)
        verdict = self._artifacts()
        self._adapters()
        if self.store.counts["runs"]:
            self.store.drop_twins()
        self._note(verdict)
        self.store.write(self.layout.search(is_over=is_over))

    def _artifacts(self) -> str:
        """Uploads config and pictures. Returns the verdict that the front's JSON states; empty without one."""
        parent = self._parent()
        verdict = ""
        with tempfile.TemporaryDirectory(prefix="autopeft-mlflow-") as name:
            made, out = Path(name) / "made", Path(name) / "out"
            made.mkdir()
            found = dict(self.artifacts(self.layout.history, made)) if self.artifacts is not None else {}
            if NUMBERS in found:
                verdict = json.loads(found[NUMBERS].read_text()).get("verdict") or ""
            files = self._shown(found, out)
            files["config.resolved.yaml"] = out / "config.resolved.yaml"
            _write_yaml(self.layout.redactor.data(self.layout.history.config), files["config.resolved.yaml"])
            self._check()
            self.store.upload(parent, files)
        return verdict

    def _shown(self, files: Mapping[str, Path], out: Path) -> dict[str, Path]:
        """Copies files to `out` under their names in MLflow. Removes secrets from texts."""
        out.mkdir(exist_ok=True)
        shown = {path: out / path for path in files}
        for path, file in files.items():
            shown[path].parent.mkdir(parents=True, exist_ok=True)
            if file.suffix in TEXTS:
                shown[path].write_text(self.layout.redactor.text(file.read_text()))
            else:
                shown[path].symlink_to(file.resolve())
        return shown

    def _adapters(self) -> None:
        """Uploads the adapter folders of the front's members."""
        if self.adapters is None:
            return
        for record in self.layout.progress.front:
            self._check()
            folder = self.adapters(record)
            if folder is None:
                continue
            files = [file for file in sorted(Path(folder).rglob("*")) if file.is_file()]
            paths = {f"adapter/{file.relative_to(folder).as_posix()}": file for file in files}
            with tempfile.TemporaryDirectory(prefix="autopeft-mlflow-") as out:
                self.store.upload(self._held(record.number), self._shown(paths, Path(out)))

    def _note(self, verdict: str) -> None:
        parent = self._parent()
        children = {record.number: self._held(record.number).run for record in self.layout.progress.front}
        note = self.layout.note(Address(self.store.experiment, parent.run), children, artifacts_of(parent), verdict)
        self.store.tag(parent, "mlflow.note.content", note)

    def _parent(self) -> Held:
        return self.store.held.get("search") or self.store.ensure(self.layout.search(is_over=False))

    def _held(self, number: int) -> Held:
        return self.store.held[f"trial {number}"]

    def _check(self) -> None:
        if self.abandoned.is_set():
            raise EnvironmentFault("the search ended before all was written")


def _program() -> str:
    """MLflow's command, as the user's shell finds it."""
    program, found = Path(sys.executable).with_name("mlflow"), shutil.which("mlflow")
    if not program.exists() or (found is not None and Path(found).resolve() == program.resolve()):
        return "mlflow"
    return shlex.quote(str(program))  # its environment is not the shell's


def _find(history: History, uri: str, experiment: str | None) -> str:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    layout = Layout(history, str, Redactor())
    found = client.get_experiment_by_name(experiment or layout.experiment_name())
    assert found is not None, "the search was never written there"
    filter_string = f"tags.`autopeft.search_id` = '{layout.search_id}' and tags.`autopeft.role` = 'search'"
    run = client.search_runs([found.experiment_id], filter_string, max_results=1)[0]
    return f"#/experiments/{found.experiment_id}/runs/{run.info.run_id}?{WORKFLOW}"


def _write_yaml(data: Any, path: Path) -> None:
    from ruamel.yaml import YAML

    with open(path, "w") as file:
        YAML(typ="safe", pure=True).dump(json.loads(json.dumps(data)), file)


plugin = MLflow
