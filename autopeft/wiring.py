"""The composition root: builds a search from its config, its model, its data and its plugins.

`prepare` starts a new search: it reads and encodes the data, inspects the model, and measures precision and attention.
Its header is the ledger's first line. `reopen` continues a search from that line, and measures nothing. Both return a
`Prepared`, which holds each part once. `conversation` makes the search from it.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from autopeft import ledger as ledgers
from autopeft import model_folder, plugins
from autopeft.checks import MEMORY, SIZES, STOPPER_OPTIONS
from autopeft.config import Config, build_space, resolve
from autopeft.draft import FILES
from autopeft.errors import EnvironmentFault, Refused, UsageError
from autopeft.executors import Executor
from autopeft.history import SHOWN, TRIVIAL
from autopeft.ledger import Ledger
from autopeft.objectives import Objective, with_signal
from autopeft.orders import Orders
from autopeft.search import Search, sizes_by
from autopeft.space import Space, components, method_of
from autopeft.tasks import Kept, OwnBase, Scores, Split, Task
from autopeft.tasks._examples import ShowsExamples
from autopeft.tasks._own_metrics import OwnMetric
from autopeft.training.data import Data
from autopeft.training.setup import Machine, ModelSpec, Setup, TaskSpec, TrainSpec

SIGNAL_ROWS = 500  # with so many validation rows, the metric is a less noisy signal than the loss
MEASURED_DRAWS = 200  # draws to find a configuration that may run, if no stock default may
DEFAULT_RUNGS = (0.1, 0.3)
ANY_MODEL = ("model", "models", "weights", "checkpoint", "final", "best")  # folder names that say nothing about a model


@dataclass(frozen=True)
class Prepared:
    """All parts of a search except its ledger, each made once.

    Attributes:
        config: The resolved config.
        setup: Settings of the workers, with the folder of the encoded data.
        data: The task's data, encoded.
        counter: Counts configurations, and refuses those that may not run.
        executor: Runs the trials.
        space: The space, with the model's layers.
        objectives: With their references.
        signal: Metric that judges a rung: the score's name, or `train_loss`.
        header: The ledger's first event.
    """

    config: Config
    setup: Setup
    data: Data
    counter: Model
    executor: Executor
    space: Space
    objectives: tuple[Objective, ...]
    signal: str
    header: Mapping[str, Any]


class Model:
    """The model on the meta device: counts configurations, and refuses those that may not run.

    Args:
        setup: Names the model.
        n_outputs: Size of its output layer; 0 to keep that of the checkpoint.
        most_parameters: Budget of trainable parameters; None for none.
    """

    def __init__(self, setup: Setup, n_outputs: int, most_parameters: int | None = None) -> None:
        from autopeft.training.counter import Counter
        from autopeft.training.model import meta_model, view

        self.meta = meta_model(setup.model, setup.task.make().auto_class, n_outputs)
        self.view = view(self.meta)
        self.count = Counter(self.meta, self.view)
        self.most_parameters = most_parameters
        self._counts: dict[str, Mapping[str, float] | str] = {}

    @property
    def parameters(self) -> int:
        """Number of parameters of the whole model, head included, as full fine-tuning trains them."""
        return sum(parameter.numel() for parameter in self.meta.parameters())

    def check(self, params: Mapping[str, Any]) -> Mapping[str, float]:
        """Counts a configuration exactly (`autopeft.search.Check`).

        Raises:
            Refused: The configuration is over budget, empty or unsupported.
        """
        from autopeft.training.faults import explain, is_trials_own

        key = json.dumps({k: v for k, v in params.items() if not k.endswith((".lr", ".weight_decay", ".dropout"))})
        if key not in self._counts:
            try:
                self._counts[key] = self.count(params)
            except Refused as refusal:
                self._counts[key] = str(refusal)
            except (
                Exception
            ) as fault:  # of a method, or of a library that it uses: one configuration's, not the search's
                if not is_trials_own(fault):
                    raise
                self._counts[key] = explain(fault)
        counts = self._counts[key]
        if isinstance(counts, str):
            raise Refused(counts)
        if self.most_parameters is not None and counts["trainable_parameters"] > self.most_parameters:
            raise Refused(f"over the budget of {self.most_parameters:,} trainable parameters", counts)
        return counts


def prepare(config: Config, folder: Path, executor: Executor, *, measure: bool = True) -> Prepared:
    """Reads and encodes the data, inspects the model, and measures all settings that are `auto`.

    Args:
        folder: The run's folder.
        executor: The executor that `ready_executor` returned.
        measure: Whether to measure; if not, `auto` is fp32 and eager.
    """
    from autopeft.provenance import provenance
    from autopeft.training.data import prepare as prepare_data
    from autopeft.training.measure import Choice, choose
    from autopeft.training.model import commit

    setup = make_setup(config, folder)
    if setup.model.trust_remote_code:
        print(f"note: model.trust_remote_code: code that comes with {setup.model.path} may run here", file=sys.stderr)
    # `main` may change: the search, its resumes and its exports use one commit.
    setup = setup.but(revision=commit(setup.model.path, setup.model.revision))
    data = prepare_data(setup)
    for note in data.origin.get("notes", ()):
        print(f"note: {note}", file=sys.stderr)
    setup = setup.but(encoded=str(data.folder))
    _write_splits(data, folder / "splits.json")
    counter = Model(setup, data.n_outputs, config.budget.parameters)
    space = build_space(config, counter.view.n_layers, list(counter.view.kinds))
    untrained = untrained_scores(setup, data, "validation")
    trivial = untrained[TRIVIAL].scores.metrics
    objectives = tuple(
        make_objective(entry, data.task, trivial, counter.parameters, setup.machine.device)
        for entry in config.objectives
    )
    signal = choose_signal(config, objectives, len(data.rows["validation"]))
    setup = setup.but(score_rungs=signal != "train_loss")
    if measure:
        training = config.training
        is_chosen = "auto" in (training.precision, training.attention)
        params = typical(space, executor.pack, counter.check) if is_chosen else {}
        choice = choose(setup, training.precision, training.attention, params, executor.pack)
    else:
        choice = Choice(
            _unless_auto(config.training.precision, "fp32"),
            _unless_auto(config.training.attention, "eager"),
            setup.machine.micro_batch_size,
            setup.machine.layout,
        )
    header = {
        "event": "search",
        "schema": ledgers.SCHEMA,
        "id": uuid.uuid4().hex,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": resolve(config),
        "objectives": [objective.to_json() for objective in objectives],
        "signal": signal,
        "dataset": {
            **data.about,
            "sizes": {name: len(rows) for name, rows in data.rows.items()},
            "origin": dict(data.origin),
        },
        "model": {
            "name": model_name(setup.model.path),
            "path": setup.model.path,
            "revision": setup.model.revision or model_folder.digest(setup.model.path),
            "n_layers": counter.view.n_layers,
            "kinds": list(counter.view.kinds),
            "parameters": counter.parameters,
            "quantisation": setup.model.quantisation,
        },
        "baselines": {name: each.scores.metrics for name, each in untrained.items()},
        "baseline_names": {name: each.title for name, each in untrained.items()} | baseline_methods(),
        "baseline_details": {name: each.detail for name, each in untrained.items() if each.detail},
        "metrics": {
            m.name: {"function": m.function, "goal": m.goal, "digest": m.digest} for m in setup.task.own_metrics
        },
        "stock": list(range(len(first_of(config, space)))),
        "chosen": choice.to_json(),
        "provenance": provenance(setup.machine.device),
    }
    setup = with_choice(setup, choice.to_json())
    written = json.loads(json.dumps(header, default=str))
    return Prepared(config, setup, data, counter, executor, space, objectives, signal, written)


def _write_splits(data: Any, path: Path) -> None:
    """Writes the rows of each split to a file, so that carved splits can be made again without autopeft."""
    made = data.origin["made"]
    splits = {name: {"made": made[name], "rows": rows.tolist()} for name, rows in data.rows.items()}
    path.write_text(json.dumps(splits), encoding="utf-8")


def as_it_began(setup: Setup, header: Mapping[str, Any]) -> tuple[Setup, Data]:
    """Returns the setup and the encoded data of a search that has begun. Checks that model and data are unchanged.

    If the data's files are gone, the data that the run encoded is used.

    Raises:
        UsageError: Model or data has changed, or the model is gone: trials would not compare.
    """
    from autopeft.training.data import encoded
    from autopeft.training.data import prepare as prepare_data

    origin = header["dataset"]["origin"]
    if os.path.isabs(setup.model.path) and not os.path.isdir(setup.model.path):
        raise UsageError(f"there is no folder {setup.model.path}, where the model of this search was: put it back")
    was = header["model"]["revision"]
    now = model_folder.digest_as(setup.model.path, was or "")
    if now is not None and now != was:
        raise UsageError(
            f"the model at {setup.model.path} has changed since this search began ({was} → {now}): put back what it "
            "was, or start a new search"
        )
    sources = [setup.task.data.get(key) for key in (*FILES, "hub")]
    gone = [path for path in sources if path and os.path.isabs(path) and not os.path.exists(path)]
    kept = encoded(setup, origin["digest"]) if gone else None
    if kept is not None:
        print(f"note: {', '.join(gone)}: gone; going on with what the run has encoded of it", file=sys.stderr)
        setup = setup.but(encoded=str(kept))
    known = header.get("metrics", {})
    changed = [m for m in setup.task.own_metrics if m.name in known and known[m.name]["digest"] != m.digest]
    if changed:
        raise UsageError(
            f"{changed[0].function} has changed since this search began, so that its metric {changed[0].name!r} would not "
            "compare: put back what it was, or start a new search"
        )
    data = prepare_data(setup)
    found = data.origin["digest"]
    if origin["digest"] not in (found, data.origin.get("digest_1")):
        raise UsageError(
            f"the data of {origin['source']} has changed since this search began ({origin['digest']} → {found}): put "
            "back what it was, or start a new search"
        )
    return setup.but(encoded=str(data.folder)), data


def without_own_code(config: Config, trust_remote_code: bool) -> Config:
    """Returns the config without metrics of the user's, for what computes no score: no code of the config's runs.

    Args:
        trust_remote_code: Whether code that comes with the model may run. The config's own setting does not suffice, as
            the run may be somebody else's.

    Raises:
        UsageError: The model needs code of its own.
    """
    if config.model.trust_remote_code and not trust_remote_code:
        raise UsageError(
            f"the model {config.model.path} runs code of its own: --trust-remote-code, or trust_remote_code=True, if you "
            "trust it"
        )
    return config.model_copy(update={"metrics": {}})


def reopen_setup(config: Config, header: Mapping[str, Any], folder: Path) -> Setup:
    """Returns the setup of a search that has begun, from its ledger's first event. Measures nothing."""
    setup = with_choice(make_setup(config, folder), header["chosen"])
    setup = setup.but(score_rungs=header["signal"] != "train_loss")
    # For a folder this is a digest, not a revision.
    return setup.but(revision=None if os.path.isabs(setup.model.path) else header["model"]["revision"])


def reopen(config: Config, header: Mapping[str, Any], folder: Path, executor: Executor) -> Prepared:
    """Prepares a search that has begun. Checks that model and data are unchanged.

    Raises:
        UsageError: Model or data has changed.
    """
    setup, data = as_it_began(reopen_setup(config, header, folder), header)
    objectives = tuple(Objective.from_json(entry) for entry in header["objectives"])
    space = build_space(config, header["model"]["n_layers"], header["model"]["kinds"])
    counter = Model(setup, data.n_outputs, config.budget.parameters)
    return Prepared(config, setup, data, counter, executor, space, objectives, header["signal"], header)


def conversation(
    prepared: Prepared, ledger: Ledger, listeners: Sequence[Callable[[Mapping[str, Any]], None]]
) -> Search:
    """Makes the search, in the state of its ledger."""
    config, space, check = prepared.config, prepared.space, prepared.counter.check
    given = (space, prepared.objectives, sizes_by(check))
    options = {k: v for k, v in config.stopper.options.items() if k not in STOPPER_OPTIONS}
    judged = with_signal(prepared.objectives, prepared.signal)
    return Search(
        space=space,
        sampler=plugins.make("samplers", config.sampler.name, config.sampler.options, *given),
        stopper=plugins.make("stoppers", config.stopper.name, options, judged),
        ledger=ledger,
        check=check,
        seed=config.seed,
        first=first_of(config, space),
        most_trials=config.budget.trials,
        most_seconds=None if config.budget.hours is None else config.budget.hours * 3600,
        listeners=listeners,
        orders=Orders(Path(prepared.setup.folder)),
    )


def first_of(config: Config, space: Space) -> Sequence[Mapping[str, Any]]:
    """Returns the first configurations of a search: the methods' stock defaults, unless the sampler has a list."""
    has_list = getattr(plugins.load("samplers", config.sampler.name), "has_list", False)
    return () if has_list else space.defaults()


def baseline_methods() -> dict[str, str]:
    """Returns method → its title as a baseline, for methods that are baselines."""
    found = {name: plugins.load("methods", name).baseline for name in plugins.names("methods")}
    return {name: title for name, title in found.items() if title}


def make_setup(config: Config, folder: Path) -> Setup:
    """Makes the setup of training from a config. Precision and attention are chosen later."""
    task = plugins.make("tasks", config.task.name, config.task.options)
    model = config.model.path
    if isinstance(task, OwnBase) and model in task.bases:
        model = str(task.base(model))
    training = config.training
    return Setup(
        model=ModelSpec(
            model,
            config.model.revision,
            config.model.trust_remote_code,
            kinds={k: tuple(names) for k, names in config.model.kinds.items()},
            quantisation=config.model.quantisation,
        ),
        task=TaskSpec(
            config.task.name,
            dict(config.task.options),
            dict(resolve(config)["data"]),
            config.training.max_length,
            tuple(OwnMetric.read(name, entry.function, entry.goal) for name, entry in config.metrics.items()),
        ),
        train=TrainSpec(
            epochs=None if training.steps is not None else training.epochs,
            steps=training.steps,
            batch_size=training.batch_size,
            optimizer=training.optimizer,
            schedule=training.schedule,
            warmup=training.warmup,
            weight_decay=training.weight_decay,
            clip=training.clip,
            rungs=tuple(config.stopper.options.get("rungs", DEFAULT_RUNGS)),
            trial_seconds=training.trial_seconds,
        ),
        machine=Machine(
            device=choose_device(training.device),
            layout="padded" if has_memory(config) else choose_layout(training.layout, training.device),
            threads=training.threads,
            micro_batch_size=training.micro_batch_size or training.batch_size,
            prefix_cache_bytes=int(training.prefix_cache_gib * 2**30),
            compile=training.compile,
            gradient_checkpointing=training.gradient_checkpointing,
        ),
        folder=str(folder.resolve()),
        cache=str((folder / "cache").resolve()),
        seed=config.seed,
        keep=config.keep,
    )


def about_of(header: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the description of the data (`tasks.Dataset.about`) from a ledger's first event."""
    about = {key: value for key, value in header["dataset"].items() if key not in ("sizes", "origin", "label_rows")}
    if "n_outputs" not in about:  # schema 1 knew classifications only
        about["n_outputs"] = len(about["label_names"])
    return about


def with_choice(setup: Setup, chosen: Mapping[str, Any]) -> Setup:
    """Returns the setup with a measured choice."""
    return setup.but(
        precision=chosen["precision"],
        attention=chosen["attention"],
        micro_batch_size=chosen["micro_batch_size"],
        layout=chosen.get("layout", "padded"),  # ledgers of versions that knew no other
    )


def choose_device(name: str) -> str:
    """Returns the device of a name: `auto` is the first GPU if torch sees one, else the CPU."""
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_layout(name: str, device: str) -> str:
    """Returns the layout of a name: `auto` is flat on a GPU, where static shapes pay, else padded."""
    if name != "auto":
        return name
    return "flat" if choose_device(device).startswith("cuda") else "padded"


def count_gpus(name: str) -> int:
    """Returns the number of GPUs that trials may use on this machine; 1 if the config names one of them."""
    import torch

    if choose_device(name) == "cpu":
        return 0
    return 1 if ":" in name else max(1, torch.cuda.device_count())


def require_gpu(config: Config) -> None:
    """Raises EnvironmentFault if trials get GPUs but the `auto` device would not use them."""
    gpus = config.executor.options.get("gpus_per_trial", 0)
    if gpus and config.training.device == "auto" and choose_device("auto") == "cpu":
        raise EnvironmentFault(
            f"executor.gpus_per_trial is {gpus:g}, but training.device is auto, and torch sees no GPU on this machine, "
            "where precision and attention are measured: start where there is one; or give training.device: cuda with "
            "training.precision and training.attention; or training.device: cpu"
        )


def ready_executor(config: Config) -> Executor:
    """Makes the executor, and checks that it can run, before model and data are loaded.

    Raises:
        EnvironmentFault: The executor cannot run.
        UsageError: It runs trials side by side whose own memory is an objective.
    """
    require_gpu(config)
    executor = make_executor(config)
    require_own_memory(config, executor)
    executor.check()
    if executor.pack > 1 and choose_device(config.training.device) == "cpu":
        print("note: on a CPU, packed trials of LoRA take longer than one after another (serial)", file=sys.stderr)
    return executor


def make_executor(config: Config) -> Executor:
    """Makes the executor, with the time limit of a trial for its watchdog, and the number of GPUs if it asks for it."""
    name = config.executor.name
    offered = {"trial_seconds": config.training.trial_seconds, "n_gpus": count_gpus(config.training.device)}
    given = plugins.taken(plugins.load("executors", name), offered)
    executor: Executor = plugins.make("executors", name, config.executor.options, **given)
    return executor


def typical(space: Space, pack: int, check: Callable[[Mapping[str, Any]], object]) -> Mapping[str, Any]:
    """Returns a configuration with the cost of a typical trial; a packed one if some trials are packed.

    It is a stock default if one may run, else a random draw that may run.

    Raises:
        UsageError: No configuration was found that may run.
    """

    def says(params: Mapping[str, Any], what: str) -> bool:
        return all(getattr(plugins.load("methods", method_of(n)), what) for n in components(params["method"]))

    defaults = space.defaults()
    deep = [params for params in defaults if not says(params, "is_shallow")]
    packed = [params for params in deep if pack > 1 and says(params, "packs")]
    draws = (space.draw(np.random.default_rng(number)) for number in range(MEASURED_DRAWS))
    why = ""
    for params in itertools.chain(packed, deep, defaults, draws):
        try:
            check(params)
        except Refused as refusal:
            why = str(refusal)
        else:
            return params
    raise UsageError(
        f"no stock default of the space may run, and none of {MEASURED_DRAWS} draws; the last one: {why}. Widen the space "
        "or the budget"
    )


@dataclass(frozen=True, slots=True)
class Untrained:
    """A baseline that trains nothing.

    Attributes:
        title: For people.
        scores: On a split.
    """

    title: str
    scores: Scores

    @property
    def detail(self) -> dict[str, Any]:
        """What reports show of it: its intervals over rows."""
        return {key: value for key, value in self.scores.detail.items() if key == "row_scores" and value}


def untrained_scores(setup: Setup, data: Data, split: str) -> dict[str, Untrained]:
    """Scores a split by the baselines that train nothing, by the ledger's name: the trivial one, a base shown examples."""
    workers: list[Any] = []

    def base(rows: Split, task: Task) -> Kept:
        from autopeft.training.loop import Worker

        workers[:] = workers or [Worker(setup)]
        kept: Kept = workers[0].base_answers(rows, task).kept
        return kept

    def scored(rows: Split, task: Task) -> Scores:
        train = data.splits["train"].targets
        return task.trivial(train, rows.targets, data.about, lambda: base(rows, task))

    train, rows, task = data.splits["train"], data.splits[split], data.task
    out = {TRIVIAL: Untrained(task.trivial_title, scored(rows, task))}
    if isinstance(task, ShowsExamples):
        shown = task.shown(train, rows, setup.source, data.about, setup.seed)
        if shown is not None:
            out[SHOWN] = Untrained(shown.title, scored(shown.split, shown.task))
    return out


def has_memory(config: Config) -> bool:
    """Whether the memory of a trial is an objective."""
    return any(entry.metric == MEMORY for entry in config.objectives)


def require_own_memory(config: Config, executor: Executor) -> None:
    """Raises UsageError if the memory of a trial is an objective, and could not be told from that of others."""
    if not has_memory(config):
        return
    if choose_device(config.training.device) == "cpu":
        raise UsageError(
            f"objectives: {MEMORY} is of a GPU, and torch sees none here. On a CPU only the peak of the whole process is "
            "known, which other trials set, too"
        )
    if executor.pack > 1:
        raise UsageError(
            f"objectives: {MEMORY} is of a trial alone, and {config.executor.name} runs several in one process: take "
            "`executor: serial`, or ray_tune with trials_per_worker: 1"
        )


def device_memory(device: str) -> int:
    """Returns the memory of a GPU, in bytes."""
    import torch

    return int(torch.cuda.get_device_properties(device).total_memory)


def make_objective(
    entry: Any, task: Task, trivial: Mapping[str, float], parameters: int, device: str = "cpu"
) -> Objective:
    """Makes an objective of the config, with the references of its search.

    Args:
        trivial: Scores of the baseline without learning.
        parameters: Parameters of the base.
        device: The device, whose memory is the reference of a trial's memory.
    """
    goal: Literal["maximize", "minimize"]
    scale: Literal["linear", "log10"]
    if entry.metric in SIZES:
        goal, reference, scale = entry.goal or "minimize", float(parameters), entry.scale or "log10"
    elif entry.metric == MEMORY:
        goal, reference, scale = entry.goal or "minimize", float(device_memory(device)), entry.scale or "log10"
    else:
        goal, scale = entry.goal or task.metrics[entry.metric], entry.scale or "linear"
        if entry.metric not in trivial:
            raise UsageError(
                f"objectives: this data gives no {entry.metric}, only {', '.join(trivial)} (f1 is of two labels)"
            )
        reference = trivial[entry.metric]
    return Objective(entry.metric, goal, reference if entry.reference is None else entry.reference, scale)


def choose_signal(config: Config, objectives: Sequence[Objective], validation_rows: int) -> str:
    """Chooses the signal of a rung: the score if validation is so large that it is less noisy, else the loss."""
    signal = str(config.stopper.options.get("signal", "auto"))
    if signal == "auto":
        return objectives[0].metric if validation_rows >= SIGNAL_ROWS else "train_loss"
    return signal


def model_name(model: str) -> str:
    """Returns a model's name for people: its hub name, or its folder's, with the folder above if that says nothing."""
    if not os.path.isdir(model):
        return model
    *above, last = Path(model).parts
    cached = next((part for part in above if part.startswith("models--")), None)  # the hub's cache: snapshots/<commit>
    if cached is not None:
        return cached.removeprefix("models--").replace("--", "/")
    return f"{above[-1]}/{last}" if last in ANY_MODEL or last.startswith("checkpoint-") else last


def _unless_auto(value: str, default: str) -> str:
    return default if value == "auto" else value
