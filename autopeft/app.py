"""The composition root: the only file that knows every part. The CLI, notebooks and the estimator call it.

    run = autopeft.run("my.yaml")          # search
    run = autopeft.open_run("runs/my-1")   # look at one, resume it, confirm, export
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autopeft import ledger as ledgers
from autopeft import plugins
from autopeft.config import Config, build_space, changes, load, resolve
from autopeft.confirm import Candidate, Confirm
from autopeft.errors import BudgetSpent, NothingCompleted, Refused, UsageError
from autopeft.history import History, Record
from autopeft.ledger import Ledger
from autopeft.naming import describe
from autopeft.objectives import Objective, losses, with_signal
from autopeft.pareto import knee
from autopeft.search import Search, summary
from autopeft.space import Space
from autopeft.training.setup import Setup

if TYPE_CHECKING:
    import pandas as pd

SIGNAL_ROWS = 500  # from this many validation rows on, the metric is the less noisy signal of a rung
DEFAULT_RUNGS = (0.1, 0.3)


# ── what a config becomes ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Prepared:
    """A config with its model and data looked at: all that a search needs beside its ledger.

    Attributes:
        config: The resolved config.
        setup: What workers get.
        space: The space, with the model's layers.
        objectives: With their references.
        signal: What judges a rung: the score's name, or `train_loss`.
        header: The ledger's first event.
    """

    config: Config
    setup: Setup
    space: Space
    objectives: tuple[Objective, ...]
    signal: str
    header: Mapping[str, Any]


class Model:
    """The model on the meta device: counts configurations, and refuses those that may not run.

    Args:
        setup: Names the model.
        n_labels: Size of its head.
        most_parameters: Budget of trainable parameters; None for none.
    """

    def __init__(self, setup: Setup, n_labels: int, most_parameters: int | None = None) -> None:
        from autopeft.training.model import meta_model, view

        task = plugins.load("tasks", setup.task)
        options = {"revision": setup.revision, "trust_remote_code": setup.trust_remote_code}
        self.meta = meta_model(setup.model, task.auto_class, n_labels, **options)
        self.view = view(self.meta)
        self.most_parameters = most_parameters
        self._counts: dict[str, Mapping[str, float] | str] = {}

    @property
    def parameters(self) -> int:
        """Of the whole model, head included: what full fine-tuning trains."""
        return sum(parameter.numel() for parameter in self.meta.parameters())

    def check(self, params: Mapping[str, Any]) -> Mapping[str, float]:
        """The exact counts of a configuration (`autopeft.search.Check`).

        Raises:
            Refused: Over budget, empty or unsupported.
        """
        from autopeft.training.recipe import count

        key = json.dumps({k: v for k, v in params.items() if not k.endswith((".lr", ".weight_decay", ".dropout"))})
        if key not in self._counts:
            try:
                self._counts[key] = count(self.meta, self.view, params)
            except Refused as refusal:
                self._counts[key] = str(refusal)
        counts = self._counts[key]
        if isinstance(counts, str):
            raise Refused(counts)
        if self.most_parameters is not None and counts["trainable_parameters"] > self.most_parameters:
            raise Refused(f"over the budget of {self.most_parameters:,} trainable parameters")
        return counts


def prepare(config: Config, folder: Path, *, measure: bool = True) -> Prepared:
    """Reads and encodes the data, looks at the model, measures what the config leaves to measurement."""
    from autopeft.provenance import provenance
    from autopeft.training.data import prepare as prepare_data
    from autopeft.training.measure import Choice, choose

    task = plugins.load("tasks", config.task.name)
    setup = make_setup(config, folder)
    data = prepare_data(setup)
    model = Model(setup, len(data.label_names), config.budget.parameters)
    space = build_space(config, model.view.n_layers)
    trivial = task.trivial(data.splits["train"].labels, data.splits["validation"].labels, len(data.label_names))
    objectives = tuple(make_objective(entry, trivial, model.parameters) for entry in config.objectives)
    signal = choose_signal(config, objectives, len(data.splits["validation"]))
    setup = replace(setup, score_rungs=signal != "train_loss")
    if measure:
        typical = next((p for p in space.defaults() if p["method"] not in ("head", "last_layers")), space.defaults()[0])
        choice = choose(setup, config.training.precision, config.training.attention, typical)
    else:
        choice = Choice(_unless_auto(config.training.precision, "fp32"), _unless_auto(config.training.attention, "eager"),
                        setup.micro_batch_size)
    header = {
        "event": "search",
        "schema": ledgers.SCHEMA,
        "id": uuid.uuid4().hex,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": resolve(config),
        "objectives": [objective.to_json() for objective in objectives],
        "signal": signal,
        "dataset": {
            "label_names": list(data.label_names),
            "sizes": {name: len(split) for name, split in data.splits.items()},
            "origin": dict(data.origin),
        },
        "model": {
            "name": Path(setup.model).name if os.path.isdir(setup.model) else setup.model,
            "path": setup.model,
            "revision": setup.revision or weights_digest(setup.model),
            "n_layers": model.view.n_layers,
            "parameters": model.parameters,
        },
        "baselines": {"majority": trivial},
        "chosen": choice.to_json(),
        "provenance": provenance(setup.device),
    }
    setup = with_choice(setup, header["chosen"])
    return Prepared(config, setup, space, objectives, signal, json.loads(json.dumps(header, default=str)))


def reopen(config: Config, header: Mapping[str, Any], folder: Path) -> Prepared:
    """The same from a ledger's first event: nothing is measured again."""
    setup = with_choice(make_setup(config, folder), header["chosen"])
    setup = replace(setup, score_rungs=header["signal"] != "train_loss")
    objectives = tuple(Objective.from_json(entry) for entry in header["objectives"])
    space = build_space(config, header["model"]["n_layers"])
    return Prepared(config, setup, space, objectives, header["signal"], header)


def make_setup(config: Config, folder: Path) -> Setup:
    """The part of a config that training reads. Precision and attention stay to be chosen."""
    task = plugins.load("tasks", config.task.name)
    model = config.model.path
    if hasattr(task, "bases") and model in task.bases:
        model = str(task.base(model))
    training = config.training
    return Setup(
        model=model,
        task=config.task.name,
        data=dict(resolve(config)["data"]),
        folder=str(folder.resolve()),
        cache=str((folder / "cache").resolve()),
        seed=config.seed,
        revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
        epochs=None if training.steps is not None else training.epochs,
        steps=training.steps,
        batch_size=training.batch_size,
        max_length=training.max_length,
        optimizer=training.optimizer,
        schedule=training.schedule,
        warmup=training.warmup,
        weight_decay=training.weight_decay,
        clip=training.clip,
        micro_batch_size=training.micro_batch_size or training.batch_size,
        threads=training.threads,
        device=choose_device(training.device),
        trial_seconds=training.trial_seconds,
        rungs=tuple(config.stopper.options.get("rungs", DEFAULT_RUNGS)),
        keep=config.keep,
        prefix_cache_bytes=int(training.prefix_cache_gib * 2**30),
    )


def with_choice(setup: Setup, chosen: Mapping[str, Any]) -> Setup:
    """The setup with what was measured to choose."""
    return replace(
        setup,
        precision=chosen["precision"],
        attention=chosen["attention"],
        micro_batch_size=chosen["micro_batch_size"],
    )


def choose_device(name: str) -> str:
    """`auto` is the first GPU where torch sees one, else the CPU."""
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def make_objective(entry: Any, trivial: Mapping[str, float], parameters: int) -> Objective:
    """An objective of the config, with the references that its search gives it."""
    if entry.metric.endswith("_parameters"):
        goal, reference, scale = entry.goal or "minimize", float(parameters), entry.scale or "log10"
    else:
        goal, scale = entry.goal or "maximize", entry.scale or "linear"
        reference = trivial.get(entry.metric)
        if reference is None and entry.reference is None:
            raise UsageError(f"objectives: {entry.metric} has no trivial baseline: give its `reference`, the worst value of interest")
    return Objective(entry.metric, goal, reference if entry.reference is None else entry.reference, scale)


def choose_signal(config: Config, objectives: Sequence[Objective], validation_rows: int) -> str:
    """What judges a rung: the score where validation is large enough to be the less noisy one, else the loss."""
    signal = str(config.stopper.options.get("signal", "auto"))
    if signal == "auto":
        return objectives[0].metric if validation_rows >= SIGNAL_ROWS else "train_loss"
    return signal


def weights_digest(model: str) -> str | None:
    """SHA-256 of a local model's weights: what a hub model's revision is for."""
    if not os.path.isdir(model):
        return None
    digest = hashlib.sha256()
    for file in sorted(Path(model).glob("*.safetensors")):
        with open(file, "rb") as handle:
            while block := handle.read(2**20):
                digest.update(block)
    return f"sha256:{digest.hexdigest()[:16]}"


def _unless_auto(value: str, default: str) -> str:
    return default if value == "auto" else value


# ── searching ───────────────────────────────────────────────────────────────────────────────────────────────────────


def run(config: Config | Mapping[str, Any] | str | Path, *, name: str | None = None, quiet: bool = False) -> Run:
    """Runs a search to its end.

    Args:
        config: A config file, or its content as a mapping.
        name: Of the run's folder.
        quiet: Whether to show nothing while it runs.

    Raises:
        autopeft.errors.AutoPEFTError: What its subclass says.
        KeyboardInterrupt: The user interrupted; `open_run(folder).resume()` goes on.
    """
    config = config if isinstance(config, Config) else load(config)
    return search(config, new_folder(config, name), quiet=quiet)


def search(config: Config, folder: Path | None = None, *, quiet: bool = False) -> Run:
    """Runs a search in a folder that has no ledger yet."""
    folder = (folder or new_folder(config)).resolve()
    if (folder / ledgers.NAME).exists():
        raise UsageError(f"{folder} holds a run already: `autopeft resume {folder}` goes on with it")
    folder.mkdir(parents=True, exist_ok=True)
    prepared = prepare(config, folder)
    write_config(folder, prepared.header["config"])
    with _opened(folder) as ledger:
        ledger.append(prepared.header)
    _go(prepared, folder, quiet)
    return open_run(folder)


def _go(prepared: Prepared, folder: Path, quiet: bool) -> None:
    """Searches from where the ledger stands to the end of the budget."""
    from autopeft.training.loop import evaluator

    config = prepared.config
    with _opened(folder) as ledger:
        model = Model(prepared.setup, len(prepared.header["dataset"]["label_names"]), config.budget.parameters)
        sampler = plugins.load("samplers", config.sampler.name)(prepared.space, prepared.objectives, **config.sampler.options)
        options = {k: v for k, v in config.stopper.options.items() if k not in ("rungs", "signal")}
        stopper = plugins.load("stoppers", config.stopper.name)(with_signal(prepared.objectives, prepared.signal), **options)
        listeners: list[Callable[[Mapping[str, Any]], None]] = []
        conversation = Search(
            space=prepared.space,
            sampler=sampler,
            stopper=stopper,
            ledger=ledger,
            check=model.check,
            seed=config.seed,
            first=() if config.sampler.name == "fixed" else prepared.space.defaults(),
            most_trials=config.budget.trials,
            most_seconds=None if config.budget.hours is None else config.budget.hours * 3600,
            listeners=[lambda event: [listener(event) for listener in listeners]],
        )
        history = conversation.history
        run = Run(folder, history)
        trackers = [make_tracker(entry, run, quiet) for entry in config.trackers]
        with contextlib.ExitStack() as stack:
            for tracker in trackers:
                tracker.start(history)
                stack.callback(tracker.finish)
                listeners.append(tracker.handle)
            if config.keep == "front":
                listeners.append(lambda event: keep_front(folder, history, event))
            executor = plugins.load("executors", config.executor.name)(**executor_options(config))
            executor.run(conversation, evaluator(prepared.setup))
            shutil.rmtree(folder / "cache" / "prefix", ignore_errors=True)
            run.write_front()
            if history.front():
                run.report()
    if not history.front():
        counts = ", ".join(f"{count} {name}" for name, count in summary(history).items()) or "none asked"
        why = f"no trial completed ({counts}); {conversation.why_ended}. `autopeft report {folder}` shows each reason"
        raise BudgetSpent(why) if "hours" in conversation.why_ended else NothingCompleted(why)


def executor_options(config: Config) -> dict[str, Any]:
    """The executor's options, with the time limit of a trial for its watchdog."""
    return {**config.executor.options, "trial_seconds": config.training.trial_seconds}


def make_tracker(entry: Any, run: Run, quiet: bool) -> Any:
    """A tracker with what it may show: names for people, pictures, adapters."""
    extra: dict[str, Any] = {"describe": run.describe}
    if entry.name == "console":
        extra["quiet"] = quiet
    if entry.name == "mlflow":
        extra |= {"artifacts": run.artifacts, "adapters": run.adapter_folder}
    return plugins.load("trackers", entry.name)(run.folder, **{**entry.options, **extra})


def keep_front(folder: Path, history: History, event: Mapping[str, Any]) -> None:
    """After a tell, drops the trained tensors of trials that are not on the front."""
    if event["event"] != "tell":
        return
    members = {record.number for record in history.front()}
    for record in history.records:
        if record.told_seconds is not None and record.number not in members:
            shutil.rmtree(trial_folder(folder, record.number), ignore_errors=True)


def trial_folder(folder: Path, number: int) -> Path:
    """Where a trial's trained tensors lie, where they were kept."""
    return folder / "trials" / f"{number:05d}"


def new_folder(config: Config, name: str | None = None) -> Path:
    """`<runs>/<name>`, or `<runs>/<config's name>-<n>` with the first free n."""
    runs = Path(config.runs)
    name = name or config.name
    if name is not None:
        if Path(name).name != name or name in (".", ".."):
            raise UsageError(f"a run's name is one folder's name, not {name!r}")
        return runs / name
    stem = config.stem or "search"
    taken = {path.name for path in runs.glob(f"{stem}-*")} if runs.is_dir() else set()
    return runs / next(f"{stem}-{n}" for n in range(1, len(taken) + 2) if f"{stem}-{n}" not in taken)


def write_config(folder: Path, resolved: Mapping[str, Any]) -> None:
    """The resolved config, for people; the ledger's first line is what counts."""
    from ruamel.yaml import YAML

    with open(folder / "config.yaml", "w") as file:
        YAML(typ="safe", pure=True).dump(json.loads(json.dumps(resolved)), file)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[Ledger]:
    ledger = Ledger(folder / ledgers.NAME)
    try:
        yield ledger
    finally:
        ledger.close()


# ── a run ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def open_run(folder: str | Path) -> Run:
    """A run from its folder.

    Raises:
        UsageError: There is no ledger in it.
    """
    folder = Path(folder).resolve()
    return Run(folder, History.read(folder / ledgers.NAME))


class Run:
    """One search: what it found, and what can be done with it.

    Attributes:
        folder: Where it lies.
        history: The fold of its ledger.
    """

    def __init__(self, folder: Path, history: History) -> None:
        self.folder, self.history = folder, history

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def config(self) -> Config:
        from autopeft.config import from_resolved

        return from_resolved(self.history.config)

    @property
    def front(self) -> list[Record]:
        """The complete trials that none dominates, the best score first."""
        return self.history.front()

    @property
    def trials(self) -> pd.DataFrame:
        """One row a trial: number, status, name, metrics, params."""
        import pandas as pd

        front = {record.number for record in self.front}
        rows = [
            {
                "number": record.number,
                "status": str(record.status or "RUNNING"),
                "on_front": record.number in front,
                "name": self.describe(record.params),
                **record.known,
                **record.metrics,
                **{key: value if not isinstance(value, list) else str(value) for key, value in record.params.items()},
                "error": record.error,
            }
            for record in self.history.trials
        ]
        return pd.DataFrame(rows)

    def describe(self, params: Mapping[str, Any]) -> str:
        """What a person calls a configuration."""
        return describe(params, self.history.header["model"]["n_layers"])

    def pick(self, which: str) -> Record:
        """A complete trial: `best`, `knee`, `max-params=50k` (the best no larger) or `trial=17`."""
        front = self.front
        if not front and not which.startswith("trial="):
            raise UsageError(f"{self.folder} has no complete trial to pick")
        if which == "best":
            return front[0]
        if which == "knee":
            return front[knee(self.history.losses(front)[:, :2])]
        kind, _, value = which.partition("=")
        if kind == "max-params":
            limit = parse_count(value)
            small = [record for record in front if record.metrics["trainable_parameters"] <= limit]
            if not small:
                least = min(record.metrics["trainable_parameters"] for record in front)
                raise UsageError(f"no trial of the front has at most {value} trainable parameters; the smallest has {least:,.0f}")
            return small[0]
        if kind == "trial":
            records = {str(record.number): record for record in self.history.records if record.is_complete}
            if value not in records:
                raise UsageError(f"trial {value!r} is no complete trial of {self.folder}; there are {', '.join(records)}")
            return records[value]
        raise UsageError(f"expected best, knee, max-params=50k or trial=17, got {which!r}")

    def resume(self, overrides: Sequence[str] = (), *, quiet: bool = False) -> Run:
        """Goes on to the end of the budget. `overrides` may change budget, executor, trackers and what to keep.

        Raises:
            UsageError: They change anything else; says what.
        """
        from autopeft.config import from_resolved

        config = from_resolved(self.history.config, overrides)
        different = changes(self.history.config, resolve(config))
        prepared = reopen(config, self.history.header, self.folder)
        with _opened(self.folder) as ledger:
            from autopeft.provenance import provenance

            ledger.append({"event": "resume", "config": resolve(config), "changes": different,
                           "provenance": json.loads(json.dumps(provenance(prepared.setup.device), default=str))})
        write_config(self.folder, resolve(config))
        _go(prepared, self.folder, quiet)
        return open_run(self.folder)

    def write_front(self) -> list[Path]:
        """front.json, front.csv and front.png in the run's folder."""
        from autopeft.reports import figure

        figure.front_json(self.history, self.folder / "front.json", self.describe)
        figure.front_csv(self.history, self.folder / "front.csv", self.describe)
        figure.front_png(self.history, self.folder / "front.png", self.describe)
        return [self.folder / f"front.{kind}" for kind in ("json", "csv", "png")]

    def report(self) -> list[Path]:
        """Writes report.html and report.md."""
        from autopeft.reports import html, markdown

        out = []
        for write, name in ((html.write, "report.html"), (markdown.write, "report.md")):
            path = self.folder / name
            write(self.history, path, self.describe, name=self.name)
            out.append(path)
        return out

    def artifacts(self) -> dict[str, Path]:
        """What a tracker may show: artifact path → file."""
        self.write_front()
        paths = {f"00_pareto/pareto.{kind}": self.folder / f"front.{kind}" for kind in ("png", "json", "csv")}
        paths["config.resolved.yaml"] = self.folder / "config.yaml"
        if self.front:
            self.report()
            paths |= {"report.html": self.folder / "report.html", "00_pareto/pareto.html": self.folder / "report.html"}
        return {name: path for name, path in paths.items() if path.exists()}

    def adapter_folder(self, record: Record) -> Path | None:
        """Where the trained tensors of a trial lie; None where they were not kept."""
        folder = trial_folder(self.folder, record.number)
        return folder if (folder / "trained.safetensors").exists() else None

    def track(self) -> dict[str, Any]:
        """Fills the config's trackers, but the console, from the ledger. A second time adds nothing."""
        out = {}
        for entry in self.config.trackers:
            if entry.name != "console":
                tracker = make_tracker(entry, self, quiet=True)
                out[entry.name] = tracker.fill(self.history)
        return out

    def confirm(self, seeds: int = 5, which: Sequence[str] = (), *, quiet: bool = False) -> list[Record]:
        """Retrains the front and the baselines with fresh seeds, and scores the test split.

        Args:
            seeds: How many each.
            which: What to confirm as `pick` takes it; empty for the whole front, the frozen head and full fine-tuning.

        Raises:
            UsageError: There is no test split, or nothing to confirm.
        """
        from autopeft.training.loop import evaluator

        if "test" not in self.history.header["dataset"]["sizes"]:
            raise UsageError("the data has no test split: give data.test, or data.test_share to carve one before a search")
        if not self.front:
            raise UsageError(f"{self.folder} has no complete trial to confirm")
        picked = [Candidate.of(self.pick(name)) for name in which] or self.candidates()
        prepared = reopen(self.config, self.history.header, self.folder)
        setup = replace(prepared.setup, rungs=(), score_rungs=False, keep="none")
        with _opened(self.folder) as ledger:
            conversation = Confirm(ledger, picked, seeds, self.config.seed, [] if quiet else [_say_confirmation])
            executor = plugins.load("executors", self.config.executor.name)(**executor_options(self.config))
            executor.run(conversation, evaluator(setup, "test"))
            shutil.rmtree(self.folder / "cache" / "prefix", ignore_errors=True)
            self.history = conversation.history
        self.write_front()
        self.report()
        return self.front

    def candidates(self) -> list[Candidate]:
        """The front, and the baselines that a reviewer asks for: the best frozen head, the best full fine-tuning."""
        candidates = [Candidate.of(record) for record in self.front]
        complete = [record for record in self.history.records if record.is_complete]
        for method in ("head", "full"):
            tried = [record for record in complete if record.params["method"] == method]
            if tried:
                best = min(tried, key=lambda record: float(self.history.losses([record])[0, 0]))
                if best.number not in {candidate.number for candidate in candidates}:
                    candidates.append(Candidate.of(best))
        return candidates

    def export(self, which: str = "knee", to: str | Path | None = None) -> Path:
        """Writes the adapter of one trial to a folder, and checks it in a fresh process.

        A trial whose tensors were not kept is trained again from its number, which gives the same.

        Args:
            which: As `pick` takes it.
            to: The folder; `<run>/export/<which>` where absent.
        """
        from autopeft.reports.card import model_card
        from autopeft.training.export import export, verify
        from autopeft.training.loop import Worker

        record = self.pick(which)
        to = Path(to) if to is not None else self.folder / "export" / f"trial-{record.number}"
        if to.exists() and any(to.iterdir()):
            raise UsageError(f"{to} is not empty: name another folder with --to")
        prepared = reopen(self.config, self.history.header, self.folder)
        folder = self.adapter_folder(record)
        if folder is None:
            folder = self._retrain(record, prepared.setup)
        card = model_card(self.history, record, self.describe(record.params), f"autopeft export {self.folder} --pick {which}")
        header = self.history.header
        export(
            setup=prepared.setup,
            params=record.params,
            seed=record.trial.seed,
            tensors=folder / "trained.safetensors",
            label_names=header["dataset"]["label_names"],
            to=to,
            card=card,
            facts={"trial": record.number, "metrics": dict(record.metrics), "run": header["id"]},
        )
        worker = Worker(replace(prepared.setup, precision="fp32", prefix_cache_bytes=0))
        verify(to, worker, record.trial, folder / "trained.safetensors")
        return to

    def _retrain(self, record: Record, setup: Setup) -> Path:
        from autopeft.training.loop import Worker
        from autopeft.trial import Result

        print(f"trial {record.number} was not kept: training it again", file=sys.stderr)
        result = None
        for event in Worker(replace(setup, keep="all")).evaluate(record.trial):
            result = event
        if not isinstance(result, Result) or result.error:
            raise UsageError(f"training trial {record.number} again failed: {getattr(result, 'error', 'interrupted')}")
        return trial_folder(self.folder, record.number)

    def summary(self) -> dict[str, Any]:
        """What `--json` shows: counts, front, hypervolume, where things lie."""
        volumes = self.history.hypervolumes()
        return {
            "schema": 1,
            "run": str(self.folder),
            "counts": summary(self.history),
            "hypervolume": volumes[-1] if volumes else 0.0,
            "front": [
                {
                    "trial": record.number,
                    "name": self.describe(record.params),
                    "params": dict(record.params),
                    "metrics": dict(record.metrics),
                }
                for record in self.front
            ],
        }

    def _repr_html_(self) -> str:
        from autopeft.reports import html

        return html.fragment(self.history, self.describe)


def _say_confirmation(event: Mapping[str, Any]) -> None:
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in event["metrics"].items() if "_" not in name)
    print(f"{event['name']}: {event['status']} {metrics}", file=sys.stderr)


def parse_count(text: str) -> float:
    """`50k`, `1.5M` or `50000` as a number."""
    factors = {"k": 1e3, "m": 1e6, "b": 1e9}
    factor = factors.get(text[-1:].lower(), 1.0)
    try:
        return float(text[:-1] if factor != 1.0 else text.replace("_", "").replace(",", "")) * factor
    except ValueError:
        raise UsageError(f"expected a number of parameters such as 50k or 1.5M, got {text!r}") from None


# ── before a search, and beside it ──────────────────────────────────────────────────────────────────────────────────


def check(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config, or all its faults at once. Imports no torch."""
    return load(path, overrides)


@dataclass(frozen=True)
class Plan:
    """What a search would be, before anything is spent.

    Attributes:
        combinations, reals: Size of the space (`Space.size`).
        ranges: Method → (least, most) trainable parameters among the draws that may run.
        refused: Reason → share of the draws.
        draws: How many seeded draws.
        costs: Method → (seconds a trial, peak memory in bytes), from a few measured steps.
        slots: Trials at once.
        trials: Budget; None where only hours bound the search.
        chosen: Precision and attention.
    """

    combinations: int
    reals: int
    ranges: Mapping[str, tuple[int, int]]
    refused: Mapping[str, float]
    draws: int
    costs: Mapping[str, tuple[float, int]]
    slots: int
    trials: int | None
    chosen: Mapping[str, Any]

    @property
    def seconds(self) -> float | None:
        """Of the whole search, if every method were asked equally often and nothing stopped early."""
        if self.trials is None:
            return None
        return float(np.mean([seconds for seconds, _ in self.costs.values()])) * self.trials / self.slots

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "combinations": self.combinations,
            "real_dimensions": self.reals,
            "trainable_parameters": {method: list(ends) for method, ends in self.ranges.items()},
            "refused_shares": dict(self.refused),
            "draws": self.draws,
            "trial_seconds": {method: seconds for method, (seconds, _) in self.costs.items()},
            "peak_memory_bytes": {method: memory for method, (_, memory) in self.costs.items()},
            "slots": self.slots,
            "trials": self.trials,
            "search_seconds": self.seconds,
            "chosen": dict(self.chosen),
        }

    def lines(self) -> list[str]:
        """For people."""
        reals = f" × {self.reals} real-valued dimensions" if self.reals else ""
        out = [f"space       {self.combinations:,} combinations{reals}"]
        for method, (least, most) in self.ranges.items():
            cost = self.costs.get(method)
            takes = f"   about {cost[0]:,.1f} s a trial, {cost[1] / 2**20:,.0f} MiB" if cost else ""
            out.append(f"  {method:<40} {least:>12,} to {most:>12,} trainable parameters{takes}")
        share = sum(self.refused.values())
        out.append(f"refused     {share:.1%} of {self.draws:,} seeded draws")
        out += [f"  {part:6.1%}  {reason}" for reason, part in sorted(self.refused.items(), key=lambda item: -item[1])]
        out.append(f"training    {self.chosen['precision']}, {self.chosen['attention']} attention")
        if self.seconds is not None:
            out.append(
                f"search      about {self.seconds / 60:,.1f} minutes for {self.trials} trials, {self.slots} at once, "
                "before early stopping"
            )
        return out


def plan(config: Config, draws: int = 1000) -> Plan:
    """What a search would be: draws its space, counts, and measures a few steps. Spends no trial."""
    import tempfile

    from autopeft.training.measure import costs

    with tempfile.TemporaryDirectory(prefix="autopeft-plan-") as folder:
        prepared = prepare(config, Path(folder))
        model = Model(prepared.setup, len(prepared.header["dataset"]["label_names"]), config.budget.parameters)
        rng = np.random.default_rng(config.seed)
        sizes: dict[str, list[int]] = {}
        refused: dict[str, float] = {}
        for _ in range(draws):
            params = prepared.space.draw(rng)
            try:
                counts = model.check(params)
            except Refused as refusal:
                refused[str(refusal)] = refused.get(str(refusal), 0.0) + 1 / draws
            else:
                sizes.setdefault(params["method"], []).append(int(counts["trainable_parameters"]))
        runnable = []
        for params in prepared.space.defaults():
            with contextlib.suppress(Refused):
                model.check(params)
                runnable.append(params)
        measured = {cost.method: (cost.seconds, cost.peak_memory_bytes) for cost in costs(prepared.setup, runnable)}
    combinations, reals = prepared.space.size()
    return Plan(
        combinations,
        reals,
        {method: (min(found), max(found)) for method, found in sorted(sizes.items())},
        refused,
        draws,
        measured,
        int(config.executor.options.get("slots") or os.cpu_count() or 1),
        config.budget.trials,
        prepared.header["chosen"],
    )


def leaderboard(folders: Sequence[str | Path], format: str = "markdown") -> str:
    """Runs side by side, confirmed numbers first. `format`: markdown, html, csv or json."""
    from autopeft.reports import leaderboard as boards

    runs = [open_run(folder) for folder in folders]
    return boards.render([boards.Entry(run.name, run.history, run.describe) for run in runs], format)


def predict(folder: str | Path, file: str | Path, output: str | Path | None = None) -> pd.DataFrame:
    """Predictions of an exported adapter for the rows of a file: label, and the probability of each."""
    import pandas as pd

    from autopeft.training.export import load as load_export

    frame = load_export(folder).predict_file(file)
    assert isinstance(frame, pd.DataFrame)
    if output is not None:
        frame.to_csv(output, index=False)
    return frame
