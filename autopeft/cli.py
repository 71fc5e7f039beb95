"""The command line: parse, call app, print. What is wrong goes to stderr, in one message, with an exit code.

0 done · 1 a fault of ours · 2 wrong input · 3 no trial completed · 4 the time budget ended before one did ·
5 the machine, disk or cluster · 130 interrupted
"""

from __future__ import annotations

import codecs
import errno
import io
import json
import locale
import os
import sys
import textwrap
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from autopeft.errors import AutoPEFTError, EnvironmentFault, command
from autopeft.redact import Redactor, printable

if TYPE_CHECKING:
    from autopeft.runs import Run

SCHEMA = 1  # version of the `--json` output
INTERRUPTED = 130
MOST_CELL = 100  # characters in a table
MOST_CLASSES = 12  # rows of a table by class at a search's end: ten classes and the averages
MOST_SCORES = 24  # rows of a table of scores over rows there: four models, six scores
NARROW = 110  # columns of a terminal; in fewer, a table shows no details
# Faults of the machine that arrive as a plain OSError.
MACHINE_FAULTS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE})
MAKE_ROOM = ". Make room where it writes: the run's folder, or temporary files. Of a run, nothing told so far is lost"

cli = typer.Typer(
    name="autopeft",
    help="Searches which parameters to fine-tune, and how: the front of accuracy against trainable parameters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

ConfigFile = Annotated[Path, typer.Argument(help="The config, a YAML file.", show_default=False)]
Folder = Annotated[Path, typer.Argument(help="The run's folder.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: budget.trials=60.", show_default=False),
]
Version = Annotated[
    bool, typer.Option("--version", callback=lambda asked: _version(asked), is_eager=True, help="Show the version.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, with its schema version.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing while it runs.")]
Name = Annotated[str | None, typer.Option("--name", help="Name of the run's folder.", show_default=False)]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Let code that comes with the base model run.")]
Format = Literal["markdown", "html", "csv", "json"]
FORMATS: dict[str, Format] = {".html": "html", ".csv": "csv", ".json": "json"}  # by the ending of --output


def main() -> NoReturn:
    """The entry point: turns errors into messages and exit codes."""
    _speak_unicode()
    sys.exit(_run())


def _speak_unicode() -> None:
    """Starts Python again in its UTF-8 mode if the locale has no Unicode (`LC_ALL=C`): our files are UTF-8, names too.

    What the terminal or pipe cannot show is escaped there, as `\\u2192`.
    """
    if not sys.flags.utf8_mode and not _is_unicode(locale.getencoding()) and sys.orig_argv:
        os.environ["PYTHONUTF8"] = "1"  # also of the processes that a search starts
        os.environ.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:backslashreplace")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not _is_unicode(stream.encoding):
            stream.reconfigure(errors="backslashreplace")


def _is_unicode(encoding: str) -> bool:
    return codecs.lookup(encoding).name.startswith("utf")


def _run() -> int:
    try:
        code = cli(standalone_mode=False)
    except AutoPEFTError as fault:
        _say(f"error: {fault}")
        return fault.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted")
        return INTERRUPTED
    except OSError as fault:
        if fault.errno not in MACHINE_FAULTS:
            return _internal(fault)
        where = f" ({fault.filename})" if fault.filename else ""
        _say(f"error: {fault.strerror}{where}{MAKE_ROOM if fault.errno in (errno.ENOSPC, errno.EDQUOT) else ''}")
        return EnvironmentFault.exit_code
    except Exception as fault:
        if os.strerror(errno.ENOSPC) in str(fault):  # safetensors has an error of its own
            _say(f"error: {fault}{MAKE_ROOM}")
            return EnvironmentFault.exit_code
        return _wrong_usage(fault) if hasattr(fault, "format_message") else _internal(fault)
    return code if isinstance(code, int) else 0


def _wrong_usage(fault: Any) -> int:
    """Handles Typer's own errors: a wrong option or argument, or no argument at all, which asks for help."""
    if type(fault).__name__ == "NoArgsIsHelpError":
        print(fault.format_message())
        return 2
    command = fault.ctx.command_path if getattr(fault, "ctx", None) is not None else "autopeft"
    _say(f"error: {fault.format_message()}\n`{command} --help` shows what there is")
    return 2


def _internal(fault: Exception) -> int:
    if os.environ.get("AUTOPEFT_DEBUG"):
        _say(traceback.format_exc())
    else:
        _say(f"internal error: {type(fault).__name__}: {fault}\nAUTOPEFT_DEBUG=1 shows where; please report it")
    return 1


def _version(asked: bool) -> None:
    if asked:
        from autopeft import __version__

        print(f"autopeft {__version__}")
        raise typer.Exit


@cli.callback()
def options(version: Version = False) -> None:
    """Searches which parameters to fine-tune, and how: the front of accuracy against trainable parameters."""


# ── searching ───────────────────────────────────────────────────────────────────────────────────────────────────────


@cli.command()
def search(
    config: ConfigFile, set_: Set = None, name: Name = None, quiet: Quiet = False, as_json: Json = False
) -> None:
    """Search, to the end of the budget.

    Example: autopeft search my.yaml --set budget.trials=60
    """
    _search(config, set_ or (), name, quiet, as_json)


@cli.command()
def demo(set_: Set = None, name: Name = None, quiet: Quiet = False, as_json: Json = False) -> None:
    """Search the embedded default: real digits, offline.

    A small vision transformer is pretrained on the spot on some digits, and adapted to others.

    Example: autopeft demo
    """
    from autopeft import app

    _search(app.DEMO, set_ or (), name, quiet, as_json)


@cli.command()
def resume(run: Folder, set_: Set = None, quiet: Quiet = False, as_json: Json = False) -> None:
    """Go on with a run, or add to its budget.

    What was told is kept, and what was running runs again. Only budget, executor, trackers, keep and
    training.prefix_cache_gib may change.

    Example: autopeft resume runs/my-1 --set budget.trials=60
    """
    from autopeft import app

    opened = app.open_run(run)
    try:
        done = opened.resume(set_ or (), quiet=quiet or as_json)
    except KeyboardInterrupt:
        _end_interrupted(run)
    _show_search(done, as_json)


@cli.command()
def init(
    data: Annotated[str, typer.Argument(help="A file, a folder, or a data set on the hub.", show_default=False)],
    model: Annotated[
        str | None,
        typer.Option(help="Folder or hub name of the model; a small one that fits if none.", show_default=False),
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="The config; DATA.yaml in this folder if none.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a config for data, and say why it is as it is.

    Guesses the task, columns, splits, a space, and a budget for this machine; says what the search costs. Look at it,
    and change what is wrong.

    Example: autopeft init reviews.csv --model path/to/a/model
    """
    from autopeft import app

    if model is None and not as_json and _is_asked():
        model = (
            typer.prompt("Model: a folder or a name on the hub; empty to choose one", default="", show_default=False)
            or None
        )
    if not as_json:
        _say("looking at the data, and measuring what a trial costs")
    started = app.init(data, model, to)
    if as_json:
        guesses = [{"key": entry.key, "value": entry.value, "why": entry.why} for entry in started.guessed.guesses]
        found = None if started.plan is None else started.plan.to_json()
        minutes = started.minutes
        _print_json({"file": str(started.path), "guesses": guesses, "search_minutes": minutes, "plan": found})
        return
    print(started.path.read_text(encoding="utf-8"), end="")
    if started.plan is None:  # else the plan has said so
        print("".join(f"\nnote: {note}" for note in started.guessed.notes))
    print(f"\nwritten  {started.path}")
    if started.minutes is not None:
        print(f"costs    about {started.minutes:,.1f} minutes or fewer, as poor trials are stopped early")
    else:
        print(f"costs    not known: {started.why_no_plan or 'nothing could be measured'}")
    print(f"next     {command('autopeft', 'search', _relative(started.path))}")


@cli.command()
def check(config: ConfigFile, set_: Set = None, as_json: Json = False) -> None:
    """Show all faults of a config at once.

    In under a second: looks at names, values, files and columns, not at the model.

    Example: autopeft check my.yaml
    """
    from autopeft import app
    from autopeft.config import resolve
    from autopeft.errors import ConfigError

    try:
        loaded = app.check(config, set_ or ())
    except ConfigError as error:
        if not as_json:
            raise
        faults = [{"path": fault.path, "line": fault.line, "message": fault.message} for fault in error.faults]
        _print_json({"file": str(config), "is_valid": False, "faults": faults})
        raise typer.Exit(error.exit_code) from None
    if as_json:
        _print_json({"file": str(config), "is_valid": True, "faults": [], "config": resolve(loaded)})
    else:
        print(f"{config}: no faults")


@cli.command()
def plan(
    config: ConfigFile,
    set_: Set = None,
    draws: Annotated[int, typer.Option(min=1, help="Seeded draws of the space to count.")] = 1000,
    as_json: Json = False,
) -> None:
    """Say what a search would be; spends no trial.

    The size of the space, trainable parameters by method, what would be refused and why, time and memory.

    Example: autopeft plan my.yaml
    """
    from autopeft import app

    found = app.plan(app.check(config, set_ or ()), draws)
    if as_json:
        _print_json(found.to_json())
    else:
        print("\n".join(found.lines()))


# ── looking ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@cli.command()
def front(run: Folder, as_json: Json = False) -> None:
    """Show a run's front.

    Example: autopeft front runs/my-1
    """
    from autopeft import app
    from autopeft.reports.table import front_table

    opened = app.open_run(run)
    if as_json:
        _print_json(opened.summary())
    else:
        _print_table(front_table(opened.history, opened.describe))


@cli.command()
def trials(run: Folder, as_json: Json = False) -> None:
    """Show all trials of a run, each failure with its reason.

    Example: autopeft trials runs/my-1
    """
    from autopeft import app
    from autopeft.reports.table import trials_table

    opened = app.open_run(run)
    if as_json:
        _print_json({"run": str(opened.folder), "trials": _records(opened.trials)})
    else:
        _print_table(trials_table(opened.history, opened.describe))


@cli.command()
def report(run: Folder, as_json: Json = False) -> None:
    """Write report.html, report.md and the front's files.

    Example: autopeft report runs/my-1
    """
    from autopeft import app

    opened = app.open_run(run)
    paths = [*opened.write_front(), *opened.report()]
    if as_json:
        _print_json({"run": str(opened.folder), "files": [str(path) for path in paths]})
    else:
        print("\n".join(map(str, paths)))


@cli.command()
def track(run: Folder, as_json: Json = False) -> None:
    """Fill trackers from the ledger; a second time adds nothing.

    Example: autopeft track runs/my-1
    """
    from autopeft import app

    counts = app.open_run(run).track()
    if as_json:
        _print_json({"run": str(run), "trackers": counts})
    else:
        if not counts:
            _say("none of the trackers of this run is filled from the ledger")
        for name, count in counts.items():
            print(f"{name}: {', '.join(f'{number} {what}' for what, number in count.items())}")


@cli.command()
def leaderboard(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.", show_default=False)],
    by: Annotated[
        Literal["search", "method", "all"], typer.Option(help="A row a search, a method, or a trial of a front.")
    ] = "search",
    format: Annotated[
        Format | None,
        typer.Option(help="How to print it; by the ending of --output, else markdown.", show_default=False),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write to this file instead.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Set searches, methods or models side by side.

    Confirmed numbers first; what is statistically tied stands in one group.

    Example: autopeft leaderboard runs/a-1 runs/b-1 --output board.html
    """
    from autopeft import app

    if output is not None:
        app.writable(output)
    by_ending = FORMATS.get(output.suffix, "markdown") if output is not None else "markdown"
    text = app.leaderboard(runs, "json" if as_json else format or by_ending, by=by)
    if output is None:
        print(printable(text))
    else:
        output.write_text(text, encoding="utf-8")
        print(output)


# ── from another terminal ───────────────────────────────────────────────────────────────────────────────────────────


@cli.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="The folder of the runs.")] = Path("runs"), as_json: Json = False
) -> None:
    """List the runs of a folder, with their states.

    Example: autopeft runs
    """
    from autopeft import steering

    rows = steering.overview(folder)
    if as_json:
        _print_json({"folder": str(folder), "runs": rows})
        return
    if not rows:
        _say(f"no run in {folder}")
    else:
        _print_table(steering.runs_table(rows))
    for row in rows:
        if "why" in row:
            _say(row["why"])


@cli.command()
def watch(run: Folder) -> None:
    """Show a running search, until it ends.

    Example: autopeft watch runs/my-1
    """
    from autopeft import steering

    counts = steering.watch(run)
    _say(", ".join(f"{count} {status}" for status, count in counts.items()) or "no trial yet")


@cli.command()
def stop(
    run: Folder,
    now: Annotated[bool, typer.Option("--now", help="End running trials, too; a resume runs them again.")] = False,
    as_json: Json = False,
) -> None:
    """End a running search, after its running trials.

    Example: autopeft stop runs/my-1
    """
    from autopeft import steering

    who = steering.stop(run, now)
    _say(
        f"ordered: process {who.get('process')} on {who.get('host')} ends {'now' if now else 'after its running trials'}"
    )


@cli.command()
def add(
    run: Folder,
    params: Annotated[list[str], typer.Option(help="key=value; method is needed, the rest has defaults.")],
    as_json: Json = False,
) -> None:
    """Let a search try a configuration of your own next.

    Example: autopeft add runs/my-1 --params method=lora --params lora.rank=16
    """
    from autopeft import steering

    ordered, is_searched = steering.add(run, params)
    if as_json:
        _print_json({"run": str(run), "params": ordered, "is_searched": is_searched})
        return
    print(", ".join(f"{key} {value}" for key, value in ordered.items()))
    _say("ordered: it is tried next, after the stock defaults" + ("" if is_searched else ", once the run is resumed"))


# ── using what was found ────────────────────────────────────────────────────────────────────────────────────────────


@cli.command()
def confirm(
    run: Folder,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Fresh seeds each; 5, before a race 3.", show_default=False)
    ] = None,
    pick: Annotated[
        list[str] | None,
        typer.Option(help="best, knee, max-params=50k or trial=17; front and baselines if none.", show_default=False),
    ] = None,
    race: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="MOST",
            help="More seeds where neighbours on the front overlap, up to MOST retrainings in all.",
            show_default=False,
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Retrain the front with fresh seeds, and score the test split.

    Shows mean, 95 % interval and the drop from the search's score; the baselines are retrained too. One that was
    interrupted goes on; confirmed again, a trial gets more seeds. With --race, seeds are added only where the intervals
    of two neighbours on the front overlap.

    Example: autopeft confirm runs/my-1 --seeds 5
    """
    from autopeft import app
    from autopeft.reports.table import front_table

    opened = app.open_run(run)
    try:
        opened.confirm(seeds, pick or (), race=race, quiet=quiet or as_json)
    except KeyboardInterrupt:
        given = {"seeds": seeds, "race": race}
        same = [f"--{name} {value}" for name, value in given.items() if value is not None]
        same += [f"--pick {name}" for name in pick or ()]
        again = " ".join(["autopeft confirm", _relative(run), *same])
        _say(f"interrupted; what was confirmed is kept. Go on with: {again}")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        _print_json(opened.summary())
    else:
        _print_table(front_table(opened.history, opened.describe))
        _print_classes(opened)
        print(f"\nreport   {_relative(opened.folder / 'report.html')}")


@cli.command()
def export(
    run: Folder,
    pick: Annotated[str, typer.Option(help="best, knee, max-params=50k or trial=17.")] = "knee",
    to: Annotated[
        Path | None, typer.Option(help="The folder; RUN/export/trial-17, say, if none.", show_default=False)
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Write the whole model, with the adapter in its weights.")
    ] = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Write one trial's adapter to a folder, and check it.

    Stock peft and transformers load it, where peft can hold it; it is loaded once in a fresh process before this
    ends, and its logits compared. --merged writes a stock transformers model in place of an adapter, for methods whose
    updates can be added to the weights.

    Example: autopeft export runs/my-1 --pick max-params=50k --to my-adapter
    """
    from autopeft import app

    folder = app.open_run(run).export(pick, to, merged=merged, trust_remote_code=trust_remote_code)
    if as_json:
        _print_json({"folder": str(folder), **json.loads((folder / "autopeft.json").read_text(encoding="utf-8"))})
    else:
        print(folder)


@cli.command()
def predict(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An exported folder.", show_default=False)],
    file: Annotated[
        Path | None, typer.Argument(help="Rows: CSV, JSON Lines, Parquet, or a folder of pictures.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Write a CSV here (JSON Lines: .jsonl) instead of printing it.", show_default=False),
    ] = None,
    is_followed: Annotated[
        bool, typer.Option("--follow", help="Answer each line of standard input as it comes: texts, or JSON Lines.")
    ] = False,
    alert: Annotated[
        list[str] | None,
        typer.Option(
            help="With --follow: negative=0.4 says when this share of the last answers has the label.",
            show_default=False,
        ),
    ] = None,
    window: Annotated[int, typer.Option(help="How many last answers --alert is about.")] = 100,
    base: Annotated[
        str | None,
        typer.Option(help="Folder or hub name of the base model, where it has moved.", show_default=False),
    ] = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Predict with an exported adapter.

    Example: autopeft predict my-adapter new.csv --output predictions.csv

    Example: tail -f messages.txt | autopeft predict my-adapter --follow --alert negative=0.4 --window 100
    """
    from autopeft import app
    from autopeft.errors import UsageError

    if is_followed:
        if file is not None or output is not None:
            raise UsageError("--follow reads standard input and writes standard output: give no file and no --output")
        options: dict[str, Any] = {"alerts": alert or (), "window": window}
        options |= {"base": base, "trust_remote_code": trust_remote_code}
        _print_lines(app.follow(folder, sys.stdin.buffer, **options))
        return
    if alert:
        raise UsageError("--alert is about a stream of lines: give --follow, too")
    if file is None:
        raise UsageError("expected a file of rows, or --follow for lines of standard input")
    frame = app.predict(folder, file, output, base=base, trust_remote_code=trust_remote_code)
    if as_json:
        _print_json({"predictions": _records(frame)})
    elif output is None:
        print(frame.to_csv(index=False), end="")
    else:
        print(output)


# ── what there is ───────────────────────────────────────────────────────────────────────────────────────────────────


@cli.command(name="list")
def list_(
    kind: Annotated[
        str | None,
        typer.Argument(help="methods, tasks, samplers, stoppers, executors, trackers, or spaces.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """List plugins of a kind, and the search spaces.

    Example: autopeft list methods
    """
    from autopeft import plugins, spaces
    from autopeft.errors import UnknownName

    kinds = [*plugins.KINDS, "spaces"]
    if kind is not None and kind not in kinds:
        raise UnknownName("kind", kind, kinds)
    found = {
        one: {name: spaces.about(name) for name in spaces.shipped()}
        if one == "spaces"
        else {name: plugins.about(one, name) for name in plugins.names(one)}
        for one in ([kind] if kind is not None else kinds)
    }
    if as_json:
        _print_json({name: [{"name": n, "about": about} for n, about in rows.items()] for name, rows in found.items()})
        return
    for name, rows in found.items():
        if kind is None:
            print(f"{name}:")
        width = max(map(len, rows), default=0)
        print("\n".join(f"{'' if kind else '  '}{entry:<{width}}  {about}" for entry, about in rows.items()))


@cli.command()
def doctor(
    config: Annotated[Path | None, typer.Argument(help="A config: its tracker, executor and folders.")] = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Look for faults of this machine, its Ray and its tracker.

    Each finding is ok, warn or fail, with what to do. Changes nothing. Exits with 5 where something fails.

    Example: autopeft doctor my.yaml
    """
    from autopeft import app
    from autopeft.doctor import facts
    from autopeft.finding import worst

    found = []
    for finding in app.doctor(config, set_ or ()):
        found.append(finding)
        if not as_json:
            print(f"{finding.state:<4}  {finding.name}: {finding.text}", flush=True)
            if finding.todo:
                print(f"      → {finding.todo}", flush=True)
    state = worst(found)
    if as_json:
        checks = [asdict(finding) for finding in found]
        _print_json({"state": state, "checks": checks, **facts()})
    if state == "fail":
        raise typer.Exit(EnvironmentFault.exit_code)


# ── helpers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _search(config: Path, overrides: Sequence[str], name: str | None, quiet: bool, as_json: bool) -> None:
    from autopeft import app

    loaded = app.check(config, overrides)
    folder = app.new_folder(loaded, name)
    try:
        run = app.search(loaded, folder, quiet=quiet or as_json)
    except KeyboardInterrupt:
        _end_interrupted(folder)
    _show_search(run, as_json)


def _is_asked() -> bool:
    """Whether a person can answer a question."""
    return sys.stdin.isatty()


def _end_interrupted(folder: Path) -> NoReturn:
    from autopeft import ledger

    if (folder / ledger.NAME).exists():
        _say(f"interrupted; resume with: {command('autopeft', 'resume', _relative(folder))}")
    else:
        _say("interrupted before the search began")
    raise typer.Exit(INTERRUPTED) from None


def _show_search(run: Run, as_json: bool) -> None:
    """Prints the outcome of a search, and where its files are."""
    if as_json:
        _print_json(run.summary())
        return
    from autopeft.reports.table import front_table

    _print_table(front_table(run.history, run.describe))
    _print_classes(run)
    print(f"\npicture  {_relative(run.folder / 'front.png')}\nreport   {_relative(run.folder / 'report.html')}")
    for name, line in run.open_commands().items():
        print(f"{name:<8} {line}")


def _records(frame: Any) -> Any:
    """Returns a frame's rows as JSON data; an absent value is null."""
    return json.loads(frame.to_json(orient="records"))


def _relative(path: Path) -> str:
    """Returns a path as the user would type it in the working folder."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _print_table(table: Any) -> None:
    """Prints a table. In a narrow terminal columns of details are left out, and only names and reasons are wrapped."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160, markup=False)
    is_narrow = console.width < NARROW
    columns = [column for column in table.columns if not (is_narrow and column.is_detail)]
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        cells = [_cell(column, row) for row in table.rows]
        is_whole = is_narrow and column.key not in ("name", "why")
        width = max(map(len, [*column.title.split(), *cells]), default=1)
        shown.add_column(
            textwrap.fill(column.title, width) if is_whole else column.title,
            overflow="fold",
            no_wrap=is_whole,
            justify="right" if column.is_number else "left",
        )
    for row in table.rows:
        shown.add_row(*(_cell(column, row) for column in columns))
    console.print(shown)
    if table.note:
        print(f"\n{table.note}")


def _cell(column: Any, row: Any) -> str:
    """Returns a cell for the terminal. A name that fills lines, such as a long label, is cut; reports have it whole."""
    text = printable(column.show(row))
    return text if len(text) <= MOST_CELL or column.key == "why" else f"{text[: MOST_CELL - 1]}…"


def _print_classes(run: Run) -> None:
    """Prints the best trial by class, and scores over rows, if the table is short; the report has long ones."""
    from autopeft.reports.classes import class_tables
    from autopeft.reports.facts import Facts
    from autopeft.reports.rows import row_scores

    facts = Facts(run.history, run.describe)
    for table, most in ((row_scores(facts), MOST_SCORES), *((each, MOST_CLASSES) for each in class_tables(facts)[:1])):
        if 0 < len(table) <= most:
            print(f"\n{table.title}")
            _print_table(table)


def _print_json(data: dict[str, Any]) -> None:
    print(json.dumps({"schema": SCHEMA, **data}, default=str))


def _print_lines(rows: Iterable[Mapping[str, Any]]) -> None:
    """Prints a JSON object a line, each at once. Ends quietly if nobody reads them any more."""
    try:
        for row in rows:
            print(json.dumps(row, ensure_ascii=not _is_unicode(sys.stdout.encoding), default=str), flush=True)
            if isinstance(row.get("alert"), Mapping):
                said = row["alert"]
                share = f"{said['share']:.0%} of the last {said['window']:,} answers"
                _say(f"alert: {said['label']} is {share}, at line {said['line']:,}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python flushes at its end goes there


def _say(text: str) -> None:
    """Writes to stderr, without passwords that a library may have put into its message."""
    print(printable(Redactor.of(None).secret(text)), file=sys.stderr)
