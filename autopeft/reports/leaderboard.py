"""Leaderboards: searches, methods or models side by side.

Confirmed rows come first, ranked by their test mean; statistically tied rows share a group. Rows with a validation
score only follow, marked so. Validation alone chooses the trial that represents a search, never the test score. Runs
on other data or with another metric have a board of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from autopeft.errors import UnknownName, UsageError
from autopeft.history import History, Record
from autopeft.redact import Redactor
from autopeft.reports import text
from autopeft.reports.facts import Baseline, Confirmed, Describe, Facts, best_by_score
from autopeft.reports.statistics import tied_groups
from autopeft.reports.table import Column, Table

SCHEMA = 1
FORMATS = ("markdown", "html", "csv", "json")
By = Literal["search", "method", "all"]
_TITLES = {"head": "frozen head", "stock": "stock default", "full": "full fine-tuning"}


@dataclass(frozen=True)
class Entry:
    """One search on the board.

    Attributes:
        name: The run's name.
        history: The run's history, with its header.
        describe: Params → a name for people, for this run's model.
    """

    name: str
    history: History
    describe: Describe


@dataclass(frozen=True)
class Row:
    """One line of a board.

    Attributes:
        search: The run's name.
        trial: The trial's number; None for the trivial baseline.
        name: The configuration's name for people.
        role: "best", "knee", "front", "best lora" …, or a baseline's title.
        method, model: Names.
        score: The validation score, one seed.
        size: Trainable parameters; None if not known.
        confirmed: The confirmed test score; None if not confirmed.
        fruitless: Number of seeds tried, if none of them gave a score; else 0.
        group: Number of the group of tied rows, from 1; 0 for one seed, or if seeds are missing; None if not confirmed.
    """

    search: str
    trial: int | None
    name: str
    role: str
    method: str
    model: str
    score: float
    size: float | None
    confirmed: Confirmed | None
    group: int | None = None
    fruitless: int = 0

    @property
    def standing(self) -> str:
        if self.confirmed is None:
            none = f"; none of {self.fruitless} retrainings gave a number" if self.fruitless else ""
            return f"unconfirmed: validation, one seed{none}"
        return self.confirmed.label

    @property
    def is_whole(self) -> bool:
        """Whether all tried seeds gave a test score. Only such rows are compared."""
        return self.confirmed is not None and self.confirmed.is_whole


@dataclass(frozen=True)
class Board:
    """All rows of one metric on one data set.

    Attributes:
        metric, goal: The score's metric and goal.
        data: The data's name for people.
        rows: All rows, confirmed ones first.
        notes: Sentences on how to read the board.
    """

    metric: str
    goal: str
    data: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def render(entries: Iterable[Entry], format: str = "markdown", *, by: By = "search") -> str:
    """Renders the leaderboard as text.

    Args:
        entries: The searches. Each is let go before the next is taken, as a history may be large.
        format: "markdown", "html", "csv" or "json".
        by: Trials that are shown of each search. "search": best, knee and baselines; "method": the best of each method;
            "all": the front, the confirmed trials and the baselines.

    Raises:
        UsageError: No such format, or no entry has a complete trial.
    """
    if format not in FORMATS:
        raise UnknownName("leaderboard format", format, FORMATS)
    configs: list[Any] = []

    def noted() -> Iterator[Entry]:
        for entry in entries:
            configs.append(entry.history.config)
            yield entry

    found = boards(noted(), by=by)
    redactor = Redactor.of(configs)
    if format == "json":
        return json.dumps(redactor.texts(data(found)), indent=1, ensure_ascii=False) + "\n"
    return redactor.text({"csv": csv, "markdown": markdown, "html": html}[format](found))


def boards(entries: Iterable[Entry], *, by: By = "search") -> list[Board]:
    """Builds one board for each metric and data set, in order of their first entry.

    Raises:
        UsageError: `by` is unknown, or no entry has a complete trial.
    """
    if by not in get_args(By):
        raise UnknownName("grouping", by, get_args(By))
    groups: dict[str, list[_Entrant]] = {}
    for entry in entries:
        facts = Facts(entry.history, entry.describe, entry.name)
        if facts.complete:
            groups.setdefault(_data_key(facts), []).append(_Entrant.of(facts, by))
    if not groups:
        raise UsageError("no run has a complete trial: there is nothing to rank")
    return [_board(group) for group in groups.values()]


def board_table(board: Board) -> Table:
    """Makes a table of a board's rows for people."""
    searches = {row.search for row in board.rows if row.search}
    models = {row.model for row in board.rows}
    metric = text.metric_title(board.metric)
    columns = [
        Column("group", "group", str, True),
        *([Column("search", "search")] if len(searches) > 1 else []),
        *([Column("model", "model")] if len(models) > 1 else []),
        Column("name", "configuration"),
        Column("role", "what"),
        Column("test", f"{metric}, test, mean ± 95 % CI", str, True),
        Column("seeds", "seeds", str, True),
        Column("score", f"{metric}, validation, one seed", text.score, True),
        Column("drop", "drop", text.signed, True),
        Column("size", "trainable parameters", text.count, True),
        Column("standing", "standing"),
    ]
    seen: set[int | None] = set()
    rows = []
    for row in board.rows:
        rows.append({**_cells(row), "opens": bool(seen) and row.group not in seen})
        seen.add(row.group)
    return Table(f"{metric} on {board.data}", tuple(columns), tuple(rows))


def markdown(found: Sequence[Board]) -> str:
    parts = ["# Leaderboard"]
    for board in found:
        shown = board_table(board)
        parts += [f"## {text.markdown(shown.title)}", shown.markdown(), *(text.markdown(note) for note in board.notes)]
    return "\n\n".join(parts) + "\n"


def html(found: Sequence[Board]) -> str:
    """Renders the boards as a self-contained page."""
    from autopeft.reports.html import page

    shown = [{"table": board_table(board), "notes": board.notes} for board in found]
    return page("leaderboard.html.j2", methods=[], values={"boards": shown})


def csv(found: Sequence[Board]) -> str:
    """Writes all boards as one CSV table. No cell can be read as a formula."""
    keys = (
        "metric",
        "goal",
        "data",
        "rank",
        "group",
        "search",
        "model",
        "method",
        "trial",
        "name",
        "role",
        "standing",
        "test_mean",
        "test_half_width_95",
        "test_seeds",
        "test_seeds_tried",
        "validation",
        "drop",
        "trainable_parameters",
    )
    rows = []
    for board in data(found)["boards"]:
        for row in board["rows"]:
            test = row["test"] or {}
            rows.append(
                {
                    **{key: board[key] for key in ("metric", "goal", "data")},
                    **{key: row[key] for key in keys if key in row},
                    "test_mean": test.get("mean"),
                    "test_half_width_95": test.get("half_width_95"),
                    "test_seeds": test.get("seeds"),
                    "test_seeds_tried": test.get("seeds_tried"),
                }
            )
    return Table("leaderboard", tuple(Column(key, key) for key in keys), tuple(rows)).csv()


def data(found: Sequence[Board]) -> dict[str, Any]:
    """Returns the boards as plain data, with a schema version."""
    return {"schema": SCHEMA, "kind": "autopeft.leaderboard", "boards": [_board_data(board) for board in found]}


def _board_data(board: Board) -> dict[str, Any]:
    rows = []
    for rank, row in enumerate(board.rows, start=1):
        found = row.confirmed
        rows.append(
            {
                "rank": rank if row.is_whole else None,
                "group": row.group,
                "search": row.search,
                "model": row.model,
                "method": row.method,
                "trial": row.trial,
                "name": row.name,
                "role": row.role,
                "standing": row.standing,
                "test": None
                if found is None
                else {
                    "mean": found.interval.mean,
                    "half_width_95": found.interval.half_width,
                    "seeds": found.interval.n,
                    "seeds_tried": found.tried,
                    "values": {str(seed): value for seed, value in found.sample.values.items()},
                },
                "validation": row.score,
                "drop": None if found is None else found.drop,
                "trainable_parameters": row.size,
            }
        )
    return {"metric": board.metric, "goal": board.goal, "data": board.data, "rows": rows, "notes": list(board.notes)}


# ── who stands on a board ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Entrant:
    """What a board needs of one search. It does not hold the history.

    Attributes:
        metric, goal, data: As of a Board.
        model, revision: Name and revision of the model.
        model_path: The model's name with the folder above it.
        rows: The search's rows.
    """

    metric: str
    goal: str
    data: str
    model: str
    revision: Any
    model_path: str
    rows: tuple[Row, ...]

    @staticmethod
    def of(facts: Facts, by: By) -> _Entrant:
        model = facts.header.get("model", {})
        return _Entrant(
            facts.metric,
            facts.score_objective.goal,
            _data_title(facts),
            facts.model_name or "",
            model.get("revision"),
            "/".join(facts.redactor.text(str(model.get("path"))).split("/")[-2:]),
            tuple(_rows(facts, by)),
        )


def _board(group: Sequence[_Entrant]) -> Board:
    first, models = group[0], _model_names(group)
    rows = _once([replace(row, model=model) for of, model in zip(group, models, strict=True) for row in of.rows])
    is_maximized = first.goal == "maximize"
    sign = -1 if is_maximized else 1
    whole = [row for row in rows if row.is_whole]
    groups = tied_groups([row.confirmed.sample for row in whole if row.confirmed], maximize=is_maximized)
    placed = [replace(row, group=number) for row, number in zip(whole, groups, strict=True)]
    placed += [replace(row, group=0) for row in rows if row.confirmed is not None and not row.is_whole]
    placed.sort(
        key=lambda row: (not row.is_whole, row.group == 0, sign * (row.confirmed.interval.mean if row.confirmed else 0))
    )
    rest = sorted((row for row in rows if row.confirmed is None), key=lambda row: sign * row.score)
    return Board(first.metric, first.goal, first.data, (*placed, *rest), tuple(_notes(placed, rest)))


def _model_names(group: Sequence[_Entrant]) -> list[str]:
    """Names each search's model; with the folder above it if two models have the same name."""
    weights: dict[str, set[Any]] = {}
    for entrant in group:
        weights.setdefault(entrant.model, set()).add(entrant.revision)
    return [entrant.model if len(weights[entrant.model]) == 1 else entrant.model_path for entrant in group]


def _rows(facts: Facts, by: By) -> list[Row]:
    """Returns the rows of one search, each trial once."""
    chosen: dict[int, str] = {}
    if by == "search":
        chosen[facts.front[0].number] = "best"
        if facts.knee is not None:
            chosen.setdefault(facts.knee.number, "knee")
    elif by == "method":
        for method, records in facts.by_method.items():
            chosen[best_by_score(facts, records).number] = f"best {method}"
    else:
        chosen = {record.number: "knee" if facts.knee is record else "front" for record in facts.front}
        for entry in facts.confirmed.values():
            if entry.number is not None:
                chosen.setdefault(entry.number, "confirmed")
    baselines = {baseline.record.number: baseline for baseline in facts.baselines if baseline.record is not None}
    rows = []
    for number in dict.fromkeys([*chosen, *baselines]):
        roles = [chosen[number]] if number in chosen else []
        roles += [_TITLES[b.kind] for b in facts.baselines if b.record is not None and b.record.number == number]
        rows.append(_row(facts, facts.history.records[number], ", ".join(roles)))
    return rows + [_trivial(facts, baseline) for baseline in facts.baselines if baseline.record is None]


def _once(rows: Sequence[Row]) -> list[Row]:
    """Keeps one trivial baseline of each score, a confirmed one if there is one, and all other rows."""
    trivial = [row for row in rows if row.trial is None]
    kept = {row.score: row for row in reversed(trivial)} | {row.score: row for row in trivial if row.confirmed}
    out = [row for row in rows if row.trial is not None]
    return out + [replace(row, search="" if len(trivial) > 1 else row.search) for row in kept.values()]


def _row(facts: Facts, record: Record, role: str) -> Row:
    return Row(
        facts.name,
        record.number,
        facts.names[record.number],
        role,
        str(record.params["method"]),
        facts.model_name or "",
        facts.score(record),
        facts.size(record),
        facts.confirmation(record),
        fruitless=facts.fruitless.get(record.number, 0),
    )


def _trivial(facts: Facts, baseline: Baseline) -> Row:
    return Row(
        facts.name,
        None,
        f"without training: {baseline.title}",
        baseline.title,
        "",
        facts.model_name or "",
        baseline.score,
        0.0,
        baseline.confirmed,
    )


def _cells(row: Row) -> dict[str, Any]:
    found = row.confirmed
    is_fixed = found is not None and found.sample.is_fixed
    return {
        "group": row.group or None,
        "search": row.search,
        "model": row.model,
        "name": row.name + (f" (trial {row.trial})" if row.trial is not None else ""),
        "role": row.role,
        "test": None if found is None else found.value,
        "seeds": None if found is None or is_fixed else found.seeds,
        "score": row.score,
        "drop": None if found is None else found.drop,
        "size": row.size,
        "standing": f"none of {row.fruitless} seeds" if row.fruitless else _standing(found),
    }


def _standing(found: Confirmed | None) -> str:
    if found is None:
        return "unconfirmed"
    if not found.is_whole:
        return f"{found.seeds} seeds"
    return "confirmed" if found.sample.can_be_compared else "one seed"


def _notes(placed: Sequence[Row], rest: Sequence[Row]) -> list[str]:
    notes = []
    if placed and placed[0].confirmed is not None and placed[0].is_whole:
        notes.append(
            "Confirmed: retrained with fresh seeds, scored on the test split; ± is half the 95 % t interval over "
            "seeds. Rows of one group cannot be told from its best at 5 %: Welch's t (paired where the seeds are the "
            f"same), p values adjusted by Holm, counting {placed[0].confirmed.sample.sources}. "
            "Tied does not mean equal."
        )
        notes.append(
            "Each search's trials were chosen by validation. The first of many test means is a little "
            "flattered itself: read the group, not the order within it."
        )
    if any(row.group == 0 and row.is_whole for row in placed):
        notes.append("No group: confirmed with one seed, so nothing can be said of chance. Confirm with more seeds.")
    if any(not row.is_whole for row in placed):
        notes.append(
            "2 of 5 seeds, say: the other retrainings gave no number, so that the mean is of the survivors. Such rows "
            "stand last, in no group."
        )
    if rest:
        notes.append(
            "Unconfirmed: the score is of validation, one seed, the best of many, so flattered by chance; it "
            "is not ranked against confirmed ones until autopeft confirm was run."
        )
    return notes


def _data_key(facts: Facts) -> str:
    """Returns a key that is equal for comparable scores: of metric, labels, and the rows that were scored."""
    dataset = facts.header.get("dataset", {})
    sizes = dataset.get("sizes", {})
    same = [
        facts.metric,
        facts.score_objective.goal,
        dataset.get("label_names"),
        sizes.get("validation"),
        sizes.get("test"),
        dataset.get("origin", {}).get("digest"),
    ]
    return json.dumps(same, default=str)


def _data_title(facts: Facts) -> str:
    config = facts.history.config
    source: Any = config.get("data") or {}
    name = source.get("hub") or source.get("test") or source.get("validation") or source.get("train")
    if not name:
        task: Any = config.get("task", "data")
        name = task.get("name", "data") if isinstance(task, dict) else task
    rows = facts.rows("test")
    # With the folder, as `test.parquet` alone does not tell one data set from another.
    return "/".join(facts.redactor.text(str(name)).split("/")[-2:]) + (f" ({rows:,} test rows)" if rows else "")
