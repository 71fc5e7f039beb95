"""The content of MLflow for a search: one page for each MLflow run, computed from the history alone. Imports no MLflow.

The search is the parent run; trials, and retrainings with other seeds, are its children (MLflow draws two levels).
Times come from the ledger, so that writing a page again writes the same points. MLflow cuts long texts silently, turns
infinity into 1.8e308, and refuses some characters in names. So pages contain no such texts, numbers or names.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any
from urllib.parse import quote

from autopeft.history import Confirmation, History, Record
from autopeft.pareto import knee
from autopeft.recipe import parts
from autopeft.redact import Redactor
from autopeft.trackers._progress import Progress, Standing
from autopeft.trial import Status

SCHEMA = "1"
MOST_PARAM, MOST_TAG, MOST_NOTE, MOST_NAME = 500, 4000, 8000, 250
MOST_TABLE_ROWS = 30
PICTURE, PAGE, NUMBERS = "00_pareto/pareto.png", "00_pareto/pareto.html", "00_pareto/pareto.json"

Describe = Callable[[Mapping[str, Any]], str]

# Status of a trial → MLflow's status of its run.
STATUSES = {
    None: "RUNNING",
    Status.COMPLETE: "FINISHED",
    Status.STOPPED: "KILLED",
    Status.OUT_OF_MEMORY: "FAILED",
    Status.FAILED: "FAILED",
}
COUNTS = {
    Status.COMPLETE: "search/trials_complete",
    Status.STOPPED: "search/trials_stopped",
    Status.OUT_OF_MEMORY: "search/trials_out_of_memory",
    Status.FAILED: "search/trials_failed",
}
COSTS = {
    "trainable_parameters": "cost/trainable_params",
    "adapter_parameters": "cost/adapter_params",
    "head_parameters": "cost/head_params",
    "train_seconds": "cost/train_seconds",
    "evaluate_seconds": "cost/evaluate_seconds",
    "attach_seconds": "cost/attach_seconds",
    "micro_batch_size": "cost/micro_batch_size",
}


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one metric; `timestamp` in milliseconds since 1970.

    Points are compared without time: a trial that runs again reports the same values at the same steps, later.
    """

    key: str
    value: float
    timestamp: int = field(compare=False)
    step: int


@dataclass(frozen=True)
class Page:
    """The content that one MLflow run should have.

    Attributes:
        key: Unique name within the search: `search`, `trial 17`, `confirm trial 17 seed 5`.
        name: Name for people.
        status: RUNNING, FINISHED, KILLED or FAILED.
        start, end: Milliseconds since 1970; end is None while it runs.
        params, tags: Texts, short enough.
        points: Finite.
    """

    key: str
    name: str
    status: str
    start: int
    end: int | None
    params: Mapping[str, str]
    tags: Mapping[str, str]
    points: tuple[Point, ...] = ()

    @property
    def digest(self) -> str:
        """Digest of the points. If a finished run has it as its tag, the run has all points."""
        points = [(point.key, point.value, point.timestamp, point.step) for point in self.points]
        return hashlib.sha256(json.dumps(points).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Place:
    """A trial's place on the front. Exactly one trial of a front is selected: its knee."""

    rank: int
    is_selected: bool


@dataclass(frozen=True)
class Address:
    """Address of the parent run, for the links in its note."""

    experiment: str
    run: str


@dataclass
class Layout:
    """The pages of one search.

    Attributes:
        history: History of the search.
        describe: Names a configuration for people.
        redactor: Hides the config's secrets.
        progress: Fold of the history's tells.
        places: Number → place on the front, at the last `rank`.
    """

    history: History
    describe: Describe
    redactor: Redactor
    progress: Progress = field(default_factory=Progress)
    places: dict[int, Place] = field(default_factory=dict)
    _curve: list[Point] = field(default_factory=list)
    _steps: int = 0  # of the curve that are in `_curve`
    _drawn: Sequence[Standing] = ()  # the curve that they are of

    @property
    def search_id(self) -> str:
        return str(self.history.header["id"])

    @property
    def score(self) -> str:
        """The metric key of the score."""
        return metric_key(self.history.objectives[0].metric)

    def rank(self) -> set[int]:
        """Updates the places on the front. Returns the numbers whose place changed."""
        before, front = self.places, self.progress.front
        chosen = knee(self.history.losses(front)) if front else 0
        self.places = {record.number: Place(index + 1, index == chosen) for index, record in enumerate(front)}
        return {n for n in before.keys() | self.places.keys() if before.get(n) != self.places.get(n)}

    # ── pages ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def experiment_name(self) -> str:
        """Returns `autopeft/<task>/<model>`, so that comparable searches are in one experiment."""
        model = str(self.history.header["model"]["name"]).strip("/")
        return f"autopeft/{self.history.config['task']['name']}/{model}"[:MOST_NAME]

    def experiment_tags(self) -> dict[str, str]:
        objective = self.history.objectives[0]
        return {
            "mlflow.experimentKind": "custom_model_development",
            "mlflow.experiment.primaryMetric.name": self.score,
            "mlflow.experiment.primaryMetric.greaterIsBetter": str(objective.goal == "maximize"),
            f"mlflow.sharedViewState.{self.search_id}": json.dumps(self.charts()),
        }

    def search(self, *, is_over: bool) -> Page:
        """Makes the parent's page, with its curves over finished trials. The note is added later."""
        history, config = self.history, self.history.config
        unfinished = any(record.is_running for record in history.records)
        status = ("KILLED" if unfinished else "FINISHED") if is_over else "RUNNING"
        header = history.header
        dataset, model = header["dataset"], header["model"]
        params = {
            "task": config["task"]["name"],
            "model": model["name"],
            "model_revision": model["revision"],
            "model_parameters": model["parameters"],
            "sampler": config["sampler"]["name"],
            "stopper": config["stopper"]["name"],
            "executor": config.get("executor", {}).get("name"),
            "seed": config["seed"],
            "budget": config["budget"],
            "objectives": [f"{objective.goal} {objective.metric}" for objective in history.objectives],
            "rows": dataset["sizes"],
            "data": dataset["origin"],
            **{name: value for name, value in header["chosen"].items() if name != "candidates"},
            "config_sha256": hashlib.sha256(json.dumps(header["config"], sort_keys=True).encode()).hexdigest(),
        }
        provenance = header["provenance"]
        commit = provenance.get("commit")
        tags = {
            **self._role("search"),
            "autopeft.schema": SCHEMA,
            "autopeft.state": {"RUNNING": "running", "FINISHED": "finished", "KILLED": "interrupted"}[status],
            "autopeft.version": provenance.get("versions", {}).get("autopeft"),
            "autopeft.budget": config["budget"],  # a resume may change it, and MLflow's params never change
            "mlflow.source.name": "autopeft search",
            "mlflow.source.type": "LOCAL",
            "mlflow.source.git.commit": commit["id"] if isinstance(commit, Mapping) else commit,
        }
        last = self.progress.curve[-1].seconds if self.progress.curve else 0.0
        name = f"search-{config['sampler']['name']}-{self.search_id[:8]}"
        return Page(
            "search", name, status, self._time(0), self._time(last) if is_over else None,
            self._texts(params, MOST_PARAM), self._texts(tags, MOST_TAG), self._curves(),
        )  # fmt: skip

    def trial(self, number: int, *, is_over: bool) -> Page:
        """Makes a trial's page."""
        record = self.history.records[number]
        place = self.places.get(number)
        status = "KILLED" if record.is_running and is_over else STATUSES[record.status]
        name, described = f"trial-{number:03d}-{_short(record.params)}", self.describe(record.params)
        tags: dict[str, Any] = {
            **self._role("trial"),
            "autopeft.trial": number,
            "autopeft.name": described,
            "autopeft.state": str(record.status or ("UNFINISHED" if is_over else "RUNNING")),
            "mlflow.note.content": described,
        }
        if record.error:
            tags["autopeft.error"] = self.redactor.message(record.error)
            tags["mlflow.note.content"] += "\n\n" + _code(tags["autopeft.error"])
        if record.told_seconds is not None:
            tags["autopeft.on_front"] = str(place is not None).lower()
            tags["autopeft.selected"] = str(place is not None and place.is_selected).lower()
            tags["autopeft.front_rank"] = place.rank if place else "-"
        end = None if status == "RUNNING" else self._time(record.told_seconds or record.asked_seconds)
        params = {**_quoted(record.params), "seed": record.trial.seed}
        return Page(
            f"trial {number}", name[:MOST_NAME], status, self._time(record.asked_seconds), end,
            self._texts(params, MOST_PARAM), self._texts(tags, MOST_TAG), tuple(self._points(record)),
        )  # fmt: skip

    def replicate(self, confirmation: Confirmation) -> Page:
        """Makes the page of a retraining with a fresh seed, scored on the test split. It is a sibling of the trials."""
        of = confirmation.name if confirmation.number is None else f"trial-{confirmation.number:03d}"
        time = self._time(confirmation.seconds)
        tags: dict[str, Any] = {
            **self._role("replicate"),
            "autopeft.of": confirmation.name if confirmation.number is None else confirmation.number,
            "autopeft.seed": confirmation.seed,
            "autopeft.name": self.describe(confirmation.params) if confirmation.params else confirmation.name,
            "autopeft.state": str(confirmation.status),
        }
        if confirmation.error:
            tags["autopeft.error"] = self.redactor.message(confirmation.error)
        points = [
            Point(COSTS.get(name) or metric_key(name, "test"), value, time, 0)
            for name, value in _finite(confirmation.metrics)
        ]
        return Page(
            replicate_key(confirmation.name, confirmation.seed),
            f"confirm-{of}-seed-{confirmation.seed}"[:MOST_NAME],
            STATUSES[confirmation.status],
            time,
            time,
            self._texts({**_quoted(confirmation.params), "seed": confirmation.seed}, MOST_PARAM),
            self._texts({**tags, "autopeft.replicate": confirmation.name}, MOST_TAG),
            tuple(points),
        )

    # ── what is on them ─────────────────────────────────────────────────────────────────────────────────────────────

    def _curves(self) -> tuple[Point, ...]:
        """Returns the metrics of the parent after each tell. Step: number of finished trials. Earlier points stay."""
        best_key = metric_key(f"best_{self.history.objectives[0].metric}", "search")
        if self._drawn is not self.progress.curve:  # the curve restarted, as a lost trial runs again
            self._drawn, self._curve, self._steps = self.progress.curve, [], 0
        for step, standing in enumerate(self.progress.curve[self._steps :], start=self._steps + 1):
            time = self._time(standing.seconds)
            values = {
                "search/hypervolume": standing.hypervolume,
                "search/front_size": float(standing.front_size),
                "search/train_seconds": standing.train_seconds,
                **{key: float(standing.counts.get(status, 0)) for status, key in COUNTS.items()},
            }
            if standing.best is not None:
                values[best_key] = standing.best
            self._curve += [Point(key, value, time, step) for key, value in _finite(values)]
        self._steps = len(self.progress.curve)
        return tuple(self._curve)

    def _points(self, record: Record) -> Iterable[Point]:
        for report, seconds in zip(record.reports, record.report_seconds, strict=True):
            for name, value in _finite(report.metrics):
                yield Point(metric_key(name), value, self._time(seconds), report.step)
        if record.told_seconds is None:
            return
        time, end = self._time(record.told_seconds), self._last_step(record)
        costs = dict(record.known)
        for name, value in _finite(record.metrics):
            if name in COSTS or name == "peak_memory_bytes":
                costs[name] = value
            elif record.is_complete:  # a stopped trial's metrics are its last report, already a point
                yield Point(metric_key(name), value, time, end)
        for name, value in _finite(costs):
            if name in COSTS:
                yield Point(COSTS[name], value, time, 0)
        if "peak_memory_bytes" in costs:
            yield Point("cost/peak_mem_mib", costs["peak_memory_bytes"] / 2**20, time, 0)
        size = costs.get("trainable_parameters")
        if size is not None:
            yield Point("cost/trainable_pct", 100 * size / self.history.header["model"]["parameters"], time, 0)
            if record.is_complete:  # MLflow's scatter has no log axis, and draws every run that has this
                yield Point("cost/log10_trainable_params", math.log10(max(size, 1.0)), time, 0)

    def _last_step(self, record: Record) -> int:
        """Returns the step of a final score: the optimiser steps of a whole trial, after its last report."""
        training = self.history.config.get("training", {})
        steps, reported = training.get("steps"), record.reports[-1].step if record.reports else 0
        if steps is None and training.get("epochs") is not None:
            rows = self.history.header["dataset"]["sizes"]["train"]
            steps = round(training["epochs"] * math.ceil(rows / training["batch_size"]))
        return max(steps or 0, reported + 1)

    def _role(self, role: str) -> dict[str, Any]:
        return {"autopeft.role": role, "autopeft.search_id": self.search_id}

    @cached_property
    def _created(self) -> float:
        return datetime.fromisoformat(self.history.header["created"]).timestamp()

    def _time(self, seconds: float) -> int:
        return round((self._created + seconds) * 1000)

    def _texts(self, values: Mapping[str, Any], most: int) -> dict[str, str]:
        """Turns values into texts, shortened and without secrets. None and empty values are left out."""
        texts = {_clean(key): _text(value) for key, value in self.redactor.data(values).items() if value is not None}
        return {key: cut(text, most) for key, text in texts.items() if text}

    # ── the note and the charts ─────────────────────────────────────────────────────────────────────────────────────

    def note(self, address: Address, children: Mapping[int, str], artifacts: Iterable[str], verdict: str) -> str:
        """Writes the parent's note: links, verdict, picture, table. MLflow shows its first 100 pixels only.

        Args:
            address: Address of the parent run.
            children: Number → run id.
            artifacts: Paths of the parent's artifacts.
            verdict: The finding in one sentence; empty if there is none yet.
        """
        have = set(artifacts)
        base = f"#/experiments/{address.experiment}"
        links = []
        if PAGE in have:
            links.append(f"[Interactive front]({base}/runs/{address.run}/artifacts/{PAGE}?{WORKFLOW})")
        charts = f"{base}/runs?{WORKFLOW}&compareRunsMode=CHART&viewStateShareKey={self.search_id}"
        links.append(f"[All trials as charts]({charts})")
        parts = [" · ".join(links), self.redactor.text(verdict) or self._state()]
        if PICTURE in have:
            parts.append(
                f"![The front](/get-artifact?path={quote(PICTURE, safe='')}&run_uuid={quote(address.run, safe='')})"
            )
        head = "\n\n".join(parts)
        objective, front = self.history.objectives[0].metric, self.progress.front
        if not front:
            return head[:MOST_NOTE]
        table = [f"| trial | the front | {_cell(objective)} | trainable parameters |", "|--:|:--|--:|--:|"]
        used = len(head) + sum(map(len, table)) + 100
        for index, record in enumerate(front):
            row = self._row(record, base, children)
            used += len(row) + 1
            if index == MOST_TABLE_ROWS or used > MOST_NOTE:
                table.append(f"| | … and {len(front) - index} more | | |")
                break
            table.append(row)
        return head + "\n\n" + "\n".join(table)

    def _row(self, record: Record, base: str, children: Mapping[int, str]) -> str:
        number = str(record.number)
        if record.number in children:
            number = f"[{number}]({base}/runs/{children[record.number]}?{WORKFLOW})"
        place = self.places.get(record.number)
        name = _cell(self.redactor.text(self.describe(record.params))) + (" ★" if place and place.is_selected else "")
        size = record.metrics.get("trainable_parameters")
        score = record.metrics[self.history.objectives[0].metric]
        return f"| {number} | {name} | {score:.4f} | {'' if size is None else f'{size:,.0f}'} |"

    def _state(self) -> str:
        standing = self.progress.curve[-1] if self.progress.curve else None
        if standing is None or not self.progress.front:
            return "No trial is complete yet."
        return (
            f"{len(self.progress.curve)} trials told, {standing.front_size} on the front, "
            f"best {self.history.objectives[0].metric} {standing.best:.4f}."
        )

    def charts(self) -> dict[str, Any]:
        """Returns the charts of the second link: score against size, and parallel coordinates of all trials.

        The format is MLflow's saved view. It is not documented; tried with 3.17.
        """
        size, score = "cost/log10_trainable_params", self.score
        axis = {"type": "METRIC"}
        return {
            "searchFilter": f"tags.`autopeft.search_id`='{self.search_id}' and tags.`autopeft.role`='trial'",
            "orderByKey": f"metrics.`{score}`",
            "orderByAsc": self.history.objectives[0].goal == "minimize",
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "selectedColumns": [
                f"metrics.`{score}`", "metrics.`cost/trainable_params`", "params.`method`", "tags.`autopeft.name`",
                "tags.`autopeft.on_front`", "tags.`autopeft.state`",
            ],
            "runsHiddenMode": "SHOW_ALL",
            "isAccordionReordered": True,
            "compareRunSections": [
                {"uuid": "front", "name": "Score against trainable parameters (log10)", "display": True,
                 "columns": 1, "cardHeight": 430, "isReordered": False},
            ],
            "compareRunCharts": [
                {"type": "SCATTER", "uuid": "scatter", "metricSectionId": "front", "isGenerated": False,
                 "deleted": False, "runsCountToCompare": 1000,
                 "xaxis": {"key": size, **axis}, "yaxis": {"key": score, **axis}},
                {"type": "PARALLEL", "uuid": "parallel", "metricSectionId": "front", "isGenerated": False,
                 "deleted": False, "runsCountToCompare": 1000, "showAllRuns": True,
                 "selectedParams": ["method"], "selectedMetrics": [size, "cost/train_seconds", score]},
            ],
        }  # fmt: skip


WORKFLOW = "workflowType=machine_learning"  # without it MLflow's sidebar opens in its mode for language models


def metric_key(name: str, group: str = "eval") -> str:
    """`accuracy` → `eval/accuracy`, `train_loss` → `train/loss`; only what MLflow takes in a name."""
    if name == "train_loss":
        return "train/loss" if group == "eval" else f"{group}/train_loss"
    return _clean(f"{group}/{name}")


def replicate_key(name: str, seed: Any) -> str:
    return f"confirm {name} seed {seed}"


def key_of(tags: Mapping[str, str]) -> str:
    """Returns the page key of an MLflow run with these tags; empty if the run is not ours."""
    role = tags.get("autopeft.role")
    if role == "search":
        return "search"
    if role == "trial" and "autopeft.trial" in tags:
        return f"trial {tags['autopeft.trial']}"
    if role == "replicate" and "autopeft.replicate" in tags and "autopeft.seed" in tags:
        return replicate_key(tags["autopeft.replicate"], tags["autopeft.seed"])
    return ""


def cut(text: str, most: int) -> str:
    """Cuts a text to at most `most` characters. A cut text ends in `…`."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _finite(metrics: Mapping[str, float]) -> list[tuple[str, float]]:
    return [(name, float(value)) for name, value in metrics.items() if math.isfinite(value)]


def _clean(name: str) -> str:
    """`NDCG@5` → `NDCG_at_5`; what else MLflow refuses becomes `_`, no letters among it. No name climbs a path."""
    clean = re.sub(r"[^\w\-. :/]", "_", unicodedata.normalize("NFC", name.replace("@", "_at_")))
    return "/".join(part if part.strip(".") else "_" for part in clean.split("/"))[:MOST_NAME]


def _quoted(params: Mapping[str, Any]) -> dict[str, Any]:
    """Params whose texts do not read as something else: "1" beside 1, "True" beside True."""

    def reads_as_more(value: Any) -> bool:
        return isinstance(value, str) and re.fullmatch(r"True|False|None|[-+]?[\d.]+(e[-+]?\d+)?", value) is not None

    return {name: repr(value) if reads_as_more(value) else value for name, value in params.items()}


def _text(value: Any) -> str:
    """`["query", "value"]` → `query value`, `{"trials": 40}` → `trials 40`: short, for tables."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, (list, tuple)):
        is_flat = all(isinstance(item, (int, float)) or (isinstance(item, str) and " " not in item) for item in value)
        return (" " if is_flat else ", ").join(map(_text, value))
    return str(value)


def _short(params: Mapping[str, Any]) -> str:
    """Returns a short name such as `lora-r16`: the recipe, and its size if it is a single part with a size."""
    method, found = str(params["method"]), parts(params)
    size = found[0].method.size if len(found) == 1 and found[0].name == method else None
    return method if size is None or size not in found[0].given else f"{method}-{size[0]}{found[0].given[size]}"


def _cell(text: str) -> str:
    return re.sub(r"([|<>\[\]`*])", r"\\\1", text.replace("\n", " "))


def _code(text: str) -> str:
    """Indents an error, so that Markdown shows it as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())
