"""A run: one search in its folder. What it found, and what can be done with it."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft import crash, plugins, wiring
from autopeft import ledger as ledgers
from autopeft.choosers import Race, Round
from autopeft.config import Config, changes, from_resolved, resolve
from autopeft.confirm import Candidate, Chooser, Confirm
from autopeft.errors import AutoPEFTError, BudgetSpent, EnvironmentFault, NothingCompleted, UsageError, command
from autopeft.files import build_once, refuse_links, trial_folder
from autopeft.history import History, Record
from autopeft.ledger import Ledger
from autopeft.naming import describe
from autopeft.orders import Orders
from autopeft.redact import Redactor
from autopeft.run_folder import keep_front, opened, worst_rows, write_config
from autopeft.search import Ending
from autopeft.trackers import Fillable, Opened, Tracker
from autopeft.training.data import Data
from autopeft.training.setup import Setup
from autopeft.trial import Status

if TYPE_CHECKING:
    import pandas as pd

SAME_SCORE = 1e-6  # largest difference between the scores of a trial and its retraining


def open_run(folder: str | Path, *, keeps_reports: bool = True) -> Run:
    """Opens a run from its folder.

    Args:
        folder: The run's folder.
        keeps_reports: See History.

    Raises:
        UsageError: The folder has no ledger that can be read, or something in it leads out of it.
    """
    folder = Path(folder).expanduser().resolve()
    refuse_links(folder)
    return Run(folder, History.read(folder / ledgers.NAME, keeps_reports=keeps_reports))


class Run:
    """One search: what it found, and what can be done with it.

    Attributes:
        folder: The run's folder.
        history: The fold of its ledger.
    """

    def __init__(self, folder: Path, history: History) -> None:
        self.folder, self.history = folder, history

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def config(self) -> Config:
        return from_resolved(self.history.config)

    @property
    def front(self) -> list[Record]:
        """Returns the complete trials that no other dominates, the best score first."""
        return self.history.front()

    @property
    def trials(self) -> pd.DataFrame:
        """One row a trial: number, status, name, metrics, params."""
        import pandas as pd

        front, redactor = {record.number for record in self.front}, Redactor.of(self.history.config)
        rows = [
            {
                "number": record.number,
                "status": record.standing,
                "on_front": record.number in front,
                "name": self.describe(record.params),
                **record.known,
                **record.metrics,
                **{key: value if not isinstance(value, list) else str(value) for key, value in record.params.items()},
                "error": redactor.message(record.error),
            }
            for record in self.history.trials
        ]
        return pd.DataFrame(rows)

    def classification_report(self, which: str = "best") -> pd.DataFrame:
        """Returns rows, precision, recall and F1 of each class, on validation, and on test if confirmed.

        Args:
            which: See `pick`.

        Raises:
            UsageError: The task has no classes.
        """
        import pandas as pd

        from autopeft.reports.classes import class_table
        from autopeft.reports.facts import Facts

        table = class_table(Facts(self.history, self.describe), self.pick(which))
        if not table.rows:
            raise UsageError(f"{self.folder} has no counts by class: its task, {self.config.task.name}, has no classes")
        return pd.DataFrame(table.rows)

    def describe(self, params: Mapping[str, Any]) -> str:
        """Returns the name of a configuration for people."""
        return describe(params, self.history.header["model"]["n_layers"])

    def pick(self, which: str) -> Record:
        """Returns a complete trial: `best`, `knee`, `max-params=50k` (the best of at most that size) or `trial=17`."""
        front = self.front
        if not front and not which.startswith("trial="):
            raise UsageError(f"{self.folder} has no complete trial to pick")
        if which == "best":
            return front[0]
        if which == "knee":
            found = self.history.knee()
            assert found is not None, "the front has members"
            return found
        kind, _, value = which.partition("=")
        if kind == "max-params":
            limit = parse_count(value)
            small = [record for record in front if record.metrics["trainable_parameters"] <= limit]
            if not small:
                least = min(record.metrics["trainable_parameters"] for record in front)
                raise UsageError(
                    f"no trial of the front has at most {value} trainable parameters; the smallest has {least:,.0f}"
                )
            return small[0]
        if kind == "trial":
            records = {str(record.number): record for record in self.history.records if record.is_complete}
            if value not in records:
                raise UsageError(
                    f"trial {value!r} is no complete trial of {self.folder}; there are {', '.join(records)}"
                )
            return records[value]
        raise UsageError(f"expected best, knee, max-params=50k or trial=17, got {which!r}")

    def resume(self, overrides: Sequence[str] = (), *, quiet: bool = False) -> Run:
        """Goes on to the end of the budget. `overrides` may change budget, executor, trackers and what to keep.

        Raises:
            UsageError: An override changes anything else, or the data has changed.
        """
        config = from_resolved(self.history.config, overrides)
        different = changes(self.history.config, resolve(config))
        prepared = wiring.reopen(config, self.history.header, self.folder, wiring.ready_executor(config))
        from autopeft.provenance import provenance

        begins = {
            "event": "resume",
            "config": resolve(config),
            "changes": different,
            "provenance": json.loads(json.dumps(provenance(prepared.setup.machine.device), default=str)),
        }
        go(prepared, self.folder, quiet, begins)
        return open_run(self.folder)

    def write_front(self, folder: Path | None = None) -> list[Path]:
        """Writes front.json, front.csv and front.png; to the run's folder if none is given."""
        from autopeft.reports import figure

        folder = folder or self.folder
        figure.front_json(self.history, folder / "front.json", self.describe)
        figure.front_csv(self.history, folder / "front.csv", self.describe)
        figure.front_png(self.history, folder / "front.png", self.describe, self.name)
        return [folder / f"front.{kind}" for kind in ("json", "csv", "png")]

    def report(self, folder: Path | None = None) -> list[Path]:
        """Writes report.html and report.md; to the run's folder if none is given."""
        from autopeft.reports import html, markdown
        from autopeft.reports.facts import Facts
        from autopeft.reports.importance import importances

        out, worst = [], self.worst()
        mattered = importances(Facts(self.history, self.describe, self.name))
        for write, name in ((html.write, "report.html"), (markdown.write, "report.md")):
            path = (folder or self.folder) / name
            write(self.history, path, self.describe, name=self.name, worst=worst, mattered=mattered)
            out.append(path)
        return out

    def worst(self) -> dict[int, list[dict[str, Any]]]:
        """Returns the validation rows that kept trials of the front get most wrong, by trial number."""
        folders = {record.number: trial_folder(self.folder, record.number) for record in self.front}
        return {number: worst_rows(folder) for number, folder in folders.items()}

    def artifacts(self, folder: Path) -> dict[str, Path]:
        """Writes files that a tracker may show to a folder of the tracker's own. Returns artifact path → file."""
        self.write_front(folder)
        paths = {f"00_pareto/pareto.{kind}": folder / f"front.{kind}" for kind in ("png", "json", "csv")}
        if self.front:
            from autopeft.reports import html

            self.report(folder)
            page = folder / "pareto.html"
            page.write_text(html.front(self.history, self.describe, name=self.name), encoding="utf-8")
            paths |= {"report.html": folder / "report.html", "00_pareto/pareto.html": page}
        return paths

    def adapter_folder(self, record: Record) -> Path | None:
        """Returns the folder of a trial's trained tensors; None if they were not kept."""
        folder = trial_folder(self.folder, record.number)
        return folder if (folder / "trained.safetensors").exists() else None

    def track(self) -> dict[str, Mapping[str, int]]:
        """Fills the config's trackers that can be filled from the ledger. A second time adds nothing.

        Raises:
            AutoPEFTError: Some trackers could not be filled. The others are filled.
        """
        out: dict[str, Mapping[str, int]] = {}
        faults: list[AutoPEFTError] = []
        for entry in self.config.trackers:
            tracker = make_tracker(entry, self, quiet=True)
            if not isinstance(tracker, Fillable):
                continue
            try:
                out[entry.name] = tracker.fill(self.history)
            except AutoPEFTError as fault:
                faults.append(fault)
            except Exception as fault:  # foreign code: its exception is no fault of the run
                faults.append(EnvironmentFault(f"tracker {entry.name!r}: {type(fault).__name__}: {fault}"))
        if len(faults) > 1:
            raise EnvironmentFault("; ".join(map(str, faults)))
        if faults:
            raise faults[0]
        return out

    def confirm(
        self, seeds: int | None = None, which: Sequence[str] = (), *, race: int | None = None, quiet: bool = False
    ) -> list[Record]:
        """Retrains the front and the baselines with fresh seeds, scores the test split, and fills the trackers.

        All candidates have the same seeds, so that differences are measured seed by seed. An interrupted confirmation
        goes on with the seeds that it lacks. If a trial is confirmed again, it gets `seeds` more.

        Args:
            seeds: Number of seeds for each; 5 by default, and 3 before a race.
            race: Most retrainings of all candidates together. After the first seeds, more seeds are added while the
                95 % intervals of neighbours on the front overlap. None for no race.
            which: Trials to confirm (see `pick`); empty for the whole front, the frozen head and full fine-tuning.

        Raises:
            UsageError: There is no test split, nothing to confirm, or the data has changed.
        """
        from autopeft.training.evaluator import Evaluator

        executor = wiring.ready_executor(self.config)
        if "test" not in self.history.header["dataset"]["sizes"]:
            raise UsageError(
                "the data has no test split: give data.test, or data.test_share to carve one before a search"
            )
        if not self.front:
            raise UsageError(f"{self.folder} has no complete trial to confirm")
        picked = [Candidate.of(self.pick(name)) for name in which] or self.candidates()
        header = self.history.header
        setup, data = wiring.as_it_began(wiring.reopen_setup(self.config, header, self.folder), header)
        setup = setup.but(rungs=(), score_rungs=False, keep="none")
        with opened(self.folder, is_search=False) as ledger:
            self._note_trivial(ledger, setup, data)
            known = History(ledger.events)
            chooser: Chooser
            if race is None:
                chooser = Round(known, picked, 5 if seeds is None else seeds)
            else:
                chooser = Race(known, picked, 3 if seeds is None else seeds, race)
            conversation = Confirm(ledger, chooser, self.config.seed)
            for note in conversation.notes:  # also if quiet: they matter for the value of the numbers
                print(f"note: {note}", file=sys.stderr)
            if not quiet:
                conversation.listeners = (_say_confirmations(len(conversation), data.task.metrics),)
            executor.run(conversation, Evaluator.of(setup, "test"))
            shutil.rmtree(self.folder / "cache" / "prefix", ignore_errors=True)
        self.history = open_run(self.folder).history
        self.write_front()
        self.report()
        try:
            self.track()
        except AutoPEFTError as fault:  # the confirmations are in the ledger
            track = command("autopeft", "track", self.folder)
            print(f"{fault}. {track} fills in what is missing there", file=sys.stderr)
        return self.front

    def _note_trivial(self, ledger: Ledger, setup: Setup, data: Data) -> None:
        """Writes the test scores of the baselines that train nothing, once, as they have no seed."""
        known = {confirmation.name for confirmation in History(ledger.events).confirmations}
        if known.issuperset(self.history.header["baselines"]):
            return
        for name, untrained in wiring.untrained_scores(setup, data, "test").items():
            if name not in known:
                ledger.append(
                    {
                        "event": "confirm",
                        "name": name,
                        "number": None,
                        "params": {},
                        "seed": 0,
                        "status": str(Status.COMPLETE),
                        "metrics": untrained.scores.metrics,
                        "error": "",
                        **({"detail": untrained.detail} if untrained.detail else {}),
                    }
                )

    def candidates(self) -> list[Candidate]:
        """Returns the front, and the usual baselines: the best frozen head, the best full fine-tuning …"""
        candidates = [Candidate.of(record) for record in self.front]
        complete = [record for record in self.history.records if record.is_complete]
        for method in wiring.baseline_methods():
            tried = [record for record in complete if record.params["method"] == method]
            if tried:
                best = min(tried, key=lambda record: float(self.history.losses([record])[0, 0]))
                if best.number not in {candidate.number for candidate in candidates}:
                    candidates.append(Candidate.of(best))
        return candidates

    def export(
        self,
        which: str = "knee",
        to: str | Path | None = None,
        *,
        merged: bool = False,
        trust_remote_code: bool = False,
    ) -> Path:
        """Writes the adapter of one trial to a folder, and checks it in a fresh process.

        If the trial's tensors were not kept, it is trained again from its number and seed.

        Args:
            which: See `pick`.
            to: The folder; `<run>/export/<which>` by default.
            merged: Whether to write the whole model, with the adapter merged into its weights: a stock transformers
                folder.
            trust_remote_code: Whether code that comes with the model may run. The run's own setting is not used.

        Raises:
            UsageError: The folder is not empty, the trial's configuration cannot be merged, or the model needs code of
                its own.
        """
        from autopeft.training.export import verify
        from autopeft.training.loop import Worker
        from autopeft.training.merge import refuse_unmergeable

        record = self.pick(which)
        name = f"trial-{record.number}{'-merged' if merged else ''}"
        to = Path(to).expanduser() if to is not None else self.folder / "export" / name
        if to.exists() and (not to.is_dir() or any(to.iterdir())):
            raise UsageError(f"{to} is no empty folder: name another one with --to")
        if merged:
            refuse_unmergeable(record.params)  # before it is trained again
        header = self.history.header
        config = wiring.without_own_code(self.config, trust_remote_code)
        setup, _ = wiring.as_it_began(wiring.reopen_setup(config, header, self.folder), header)
        folder, again = self.adapter_folder(record), None
        if folder is None:
            folder, again = self._retrain(record, setup)
        self._write_export(record, setup, folder, to, which, again, merged)
        # On the CPU, like the fresh process: a GPU's convolutions differ by more than the tolerance.
        worker = Worker(setup.but(precision="fp32", prefix_cache_bytes=0, device="cpu", layout="padded"))
        verify(to, *worker.sample(record.trial, folder / "trained.safetensors"))
        return to

    def exported_adapter(self, record: Record) -> Path | None:
        """Exports the adapter of a trial for trackers, once; None if the trial's tensors were not kept."""
        tensors = self.adapter_folder(record)
        if tensors is None:
            return None
        config = wiring.without_own_code(self.config, self.config.model.trust_remote_code)  # trackers obey the config
        setup = wiring.reopen_setup(config, self.history.header, self.folder)
        folder, pick = self.folder / "adapters" / f"{record.number:05d}", f"trial={record.number}"
        build_once(folder, lambda to: self._write_export(record, setup, tensors, to, pick))
        return folder

    def _write_export(
        self,
        record: Record,
        setup: Setup,
        folder: Path,
        to: Path,
        which: str,
        retrained: float | None = None,
        merged: bool = False,
    ) -> None:
        from autopeft.reports.card import model_card
        from autopeft.training.answers import CHOICE
        from autopeft.training.export import export

        command = f"autopeft export {self.folder.parent.name}/{self.name} --pick {which}"  # a card is published
        command += " --merged" if merged else ""
        header = self.history.header
        export(
            merged=merged,
            setup=setup,
            params=record.params,
            seed=record.trial.seed,
            tensors=folder / "trained.safetensors",
            about={**wiring.about_of(header), **record.detail.get(CHOICE, {})},
            to=to,
            card=lambda exported: model_card(self.history, record, self.describe, command, exported),
            facts={
                "trial": record.number,
                "metrics": dict(record.metrics),
                "run": header["id"],
                "retrained_score": retrained,
            },
        )

    def _retrain(self, record: Record, setup: Setup) -> tuple[Path, float | None]:
        """Trains a trial again. Returns its folder, and its score if the score differs from the ledger's."""
        from autopeft.training.loop import Worker
        from autopeft.trial import Result

        print(f"trial {record.number} was not kept: training it again", file=sys.stderr)
        result = None
        for event in Worker(setup.but(keep="all")).evaluate(record.trial):
            result = event
        if not isinstance(result, Result) or result.error:
            raise UsageError(f"training trial {record.number} again failed: {getattr(result, 'error', 'interrupted')}")
        shutil.rmtree(self.folder / "cache" / "prefix", ignore_errors=True)
        objective = self.history.objectives[0].metric
        metric = objective if objective in result.metrics else "loss"  # an export runs no metric of the user's own
        was, now = record.metrics[metric], result.metrics[metric]
        if abs(now - was) <= SAME_SCORE:
            return trial_folder(self.folder, record.number), None
        said = ". The model card says both" if metric == objective else ""
        print(
            f"note: trained again, trial {record.number} has {metric} {now:.4f}, and had {was:.4f} in the search: another "
            f"device, number of threads or version computes otherwise{said}",
            file=sys.stderr,
        )
        return trial_folder(self.folder, record.number), now if metric == objective else None

    def summary(self) -> dict[str, Any]:
        """Returns the content of `--json`: that of front.json, and the run's folder."""
        from autopeft.reports.facts import Facts
        from autopeft.reports.figure import front_data

        return {"run": str(self.folder), **front_data(Facts(self.history, self.describe, self.name))}

    def open_commands(self) -> dict[str, str]:
        """Returns tracker → the one-line command that opens this search there, for trackers that have one."""
        trackers = {entry.name: make_tracker(entry, self, quiet=True) for entry in self.config.trackers}
        return {
            name: tracker.open_command(self.history)
            for name, tracker in trackers.items()
            if isinstance(tracker, Opened)
        }

    def _repr_html_(self) -> str:
        from autopeft.reports import html

        return html.fragment(self.history, self.describe)


def _say_confirmations(total: int, scores: Collection[str]) -> Callable[[Mapping[str, Any]], None]:
    """Makes a listener that prints a line for each retraining, with the scores of the task."""
    told = itertools.count(1)

    def say(event: Mapping[str, Any]) -> None:
        error = Redactor.of(None).message(event["error"])
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in event["metrics"].items() if name in scores)
        print(f"[{next(told)}/{total}] {event['name']}: {event['status']} {metrics or error}", file=sys.stderr)

    return say


def parse_count(text: str) -> float:
    """`50k`, `1.5M` or `50000` as a number."""
    factors = {"k": 1e3, "m": 1e6, "b": 1e9}
    factor = factors.get(text[-1:].lower(), 1.0)
    try:
        return float(text[:-1] if factor != 1.0 else text.replace("_", "").replace(",", "")) * factor
    except ValueError:
        raise UsageError(f"expected a number of parameters such as 50k or 1.5M, got {text!r}") from None


# ── searching ───────────────────────────────────────────────────────────────────────────────────────────────────────


def go(prepared: wiring.Prepared, folder: Path, quiet: bool, resume: Mapping[str, Any] | None = None) -> None:
    """Runs the search from the ledger's state to the end of the budget.

    Args:
        resume: The event with which a resume begins; None for a new search.
    """
    from autopeft.training.evaluator import Evaluator

    config = prepared.config
    with opened(folder) as ledger:
        if resume is not None:
            ledger.events.append(ledger.append(resume))
            ledger.events.extend(ledger.append(event) for event in crash.lost(folder, ledger.events))
            write_config(folder, resume["config"])
        Orders(folder).clear_stop()
        listeners: list[Callable[[Mapping[str, Any]], None]] = []

        def told(event: Mapping[str, Any]) -> None:
            for listener in listeners:
                listener(event)

        conversation = wiring.conversation(prepared, ledger, [told])
        history = conversation.history
        run = Run(folder, history)
        trackers = [make_tracker(entry, run, quiet) for entry in config.trackers]
        with contextlib.ExitStack() as stack:
            for tracker in trackers:
                tracker.start(history)
                stack.callback(tracker.finish)
                listeners.append(tracker.handle)
            for path in (folder / "trials").glob(".*"):  # half-written by a killed worker
                shutil.rmtree(path, ignore_errors=True)
            if config.keep == "front":
                listeners.append(keep_front(folder, history))
            evaluator = Evaluator.of(prepared.setup)
            with crash.noted(folder):
                prepared.executor.run(conversation, evaluator)
            if not quiet:
                print(f"ended: {conversation.why_ended}", file=sys.stderr)
            shutil.rmtree(folder / "cache" / "prefix", ignore_errors=True)
            run.write_front()
            if history.front():
                run.report()
    if not history.front():
        counts = ", ".join(f"{count} {name}" for name, count in history.counts().items()) or "none asked"
        report = command("autopeft", "report", folder)
        why = f"no trial completed ({counts}); {conversation.why_ended}. {report} shows each reason"
        raise BudgetSpent(why) if conversation.ending is Ending.TIME else NothingCompleted(why)


def make_tracker(entry: Any, run: Run, quiet: bool) -> Tracker:
    """Makes a tracker, with the parameters that its constructor names (`autopeft.trackers`)."""
    offered = {
        "describe": run.describe,
        "quiet": quiet,
        # From the tracker's history, as the search changes the run's own meanwhile.
        "artifacts": lambda history, folder: Run(run.folder, history).artifacts(folder),
        "adapters": run.exported_adapter,
    }
    given = plugins.taken(plugins.load("trackers", entry.name), offered)
    tracker: Tracker = plugins.make("trackers", entry.name, entry.options, run.folder, **given)
    return tracker
