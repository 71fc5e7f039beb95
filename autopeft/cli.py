"""The command line: parse, call app, print. What is wrong goes to stderr, in one message, with an exit code."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from autopeft.errors import AutoPEFTError

if TYPE_CHECKING:
    from autopeft.runs import Run

cli = typer.Typer(
    name="autopeft",
    help="Searches which parameters to fine-tune, and how: the front of accuracy against trainable parameters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigFile = Annotated[Path, typer.Argument(help="The config, a YAML file.", show_default=False)]
Folder = Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.", show_default=False)]
Set = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a key: budget.trials=60.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, with its schema version.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing while it runs.")]
Name = Annotated[str | None, typer.Option("--name", help="Name of the run's folder.")]
Format = Literal["markdown", "html", "csv", "json"]


def main() -> NoReturn:
    """The entry point: turns errors into messages and exit codes."""
    try:
        cli(standalone_mode=False)
    except AutoPEFTError as fault:
        _say(f"error: {fault}")
        sys.exit(fault.exit_code)
    except KeyboardInterrupt:
        _say("interrupted; what was told is kept: `autopeft resume RUN` goes on")
        sys.exit(130)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except typer.Abort:
        sys.exit(130)
    except Exception as fault:
        if hasattr(fault, "format_message") and hasattr(fault, "exit_code"):  # click's own: a wrong option
            _say(f"error: {fault.format_message()}")
            sys.exit(2)
        if os.environ.get("AUTOPEFT_DEBUG"):
            raise
        _say(f"internal error: {type(fault).__name__}: {fault}\nAUTOPEFT_DEBUG=1 shows where; please report it")
        sys.exit(1)
    sys.exit(0)


@cli.command()
def search(config: ConfigFile, set_: Set = [], name: Name = None, quiet: Quiet = False, as_json: Json = False) -> None:  # noqa: B006
    """Search, to the end of the budget.

    Example: autopeft search my.yaml --set budget.trials=60
    """
    from autopeft import app

    loaded = app.check(config, set_)
    _running(lambda: app.search(loaded, app.new_folder(loaded, name), quiet=quiet or as_json), as_json)


@cli.command()
def demo(set_: Set = [], name: Name = None, quiet: Quiet = False, as_json: Json = False) -> None:  # noqa: B006
    """Run the embedded default: real digits, a small vision transformer, offline.

    Example: autopeft demo
    """
    from autopeft import app

    _running(lambda: app.demo(name=name, overrides=set_, quiet=quiet or as_json), as_json)


@cli.command()
def resume(run: Folder, set_: Set = [], quiet: Quiet = False, as_json: Json = False) -> None:  # noqa: B006
    """Go on with a run that was interrupted, or add to its budget.

    Example: autopeft resume runs/my-1 --set budget.trials=60
    """
    from autopeft import app

    _running(lambda: app.open_run(run).resume(set_, quiet=quiet or as_json), as_json)


@cli.command()
def check(config: ConfigFile, set_: Set = [], as_json: Json = False) -> None:  # noqa: B006
    """Show all faults of a config at once. Imports no torch.

    Example: autopeft check my.yaml
    """
    from autopeft.config import load, resolve
    from autopeft.errors import ConfigError

    try:
        loaded = load(config, set_)
    except ConfigError as error:
        if as_json:
            faults = [{"path": fault.path, "line": fault.line, "message": fault.message} for fault in error.faults]
            _print_json({"file": str(config), "is_valid": False, "faults": faults})
            raise typer.Exit(error.exit_code) from None
        raise
    if as_json:
        _print_json({"file": str(config), "is_valid": True, "faults": [], "config": resolve(loaded)})
    else:
        print(f"{config}: no fault")


@cli.command()
def plan(config: ConfigFile, set_: Set = [], draws: int = 1000, as_json: Json = False) -> None:  # noqa: B006
    """Say what a search would be: size, refusals, time, memory. Spends no trial.

    Example: autopeft plan my.yaml
    """
    from autopeft import app

    found = app.plan(app.check(config, set_), draws)
    if as_json:
        _print_json(found.to_json())
    else:
        print("\n".join(found.lines()))


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
        rows = json.loads(opened.trials.to_json(orient="records"))
        _print_json({"run": str(opened.folder), "trials": rows})
    else:
        _print_table(trials_table(opened.history, opened.describe))


@cli.command()
def report(run: Folder, as_json: Json = False) -> None:
    """Write report.html and report.md.

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
    """Fill MLflow from the ledger. A second time adds nothing.

    Example: autopeft track runs/my-1
    """
    from autopeft import app

    counts = app.open_run(run).track()
    if as_json:
        _print_json({"trackers": counts})
    else:
        for name, count in counts.items():
            print(f"{name}: {', '.join(f'{number} {what}' for what, number in count.items())}")


@cli.command()
def confirm(
    run: Folder,
    seeds: Annotated[int, typer.Option(min=1, help="Fresh seeds each.")] = 5,
    pick: Annotated[list[str], typer.Option(help="best, knee, max-params=50k, trial=17; the front if none.")] = [],  # noqa: B006
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Retrain the front and the baselines with fresh seeds, and score the test split.

    Example: autopeft confirm runs/my-1 --seeds 5
    """
    from autopeft import app
    from autopeft.reports.facts import Facts
    from autopeft.reports.figure import front_data
    from autopeft.reports.table import front_table

    opened = app.open_run(run)
    if opened.history.confirmations and not as_json:
        _say("note: the test split was seen before; these seeds are added to the earlier ones")
    opened.confirm(seeds, pick, quiet=quiet or as_json)
    if as_json:
        _print_json({"run": str(opened.folder), **front_data(Facts(opened.history, opened.describe))})
    else:
        _print_table(front_table(opened.history, opened.describe))
        _say(str(opened.folder / "report.html"))


@cli.command()
def leaderboard(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.", show_default=False)],
    by: Annotated[
        Literal["search", "method", "all"], typer.Option(help="A row a search, a method, or a trial.")
    ] = "search",
    format: Annotated[Format, typer.Option(help="How to print it.")] = "markdown",
    output: Annotated[Path | None, typer.Option(help="Write to this file instead.")] = None,
    as_json: Json = False,
) -> None:
    """Set searches, methods or models side by side, confirmed numbers first.

    Example: autopeft leaderboard runs/a-1 runs/b-1 --format html --output board.html
    """
    from autopeft import app

    text = app.leaderboard(runs, "json" if as_json else format, by=by)
    if output is None:
        print(text)
    else:
        output.write_text(text)
        print(output)


@cli.command()
def export(
    run: Folder,
    pick: Annotated[str, typer.Option(help="best, knee, max-params=50k or trial=17.")] = "knee",
    to: Annotated[Path | None, typer.Option(help="The folder; <run>/export/trial-<n> if none.")] = None,
    as_json: Json = False,
) -> None:
    """Write one trial's adapter to a folder that stock peft loads, and check it in a fresh process.

    Example: autopeft export runs/my-1 --pick max-params=50k --to my-adapter
    """
    from autopeft import app

    folder = app.open_run(run).export(pick, to)
    if as_json:
        _print_json({"folder": str(folder), **json.loads((folder / "autopeft.json").read_text())})
    else:
        print(folder)


@cli.command()
def predict(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An exported folder.", show_default=False)],
    file: Annotated[
        Path, typer.Argument(help="Rows: CSV, JSON Lines, Parquet, or a folder of pictures.", show_default=False)
    ],
    output: Annotated[Path | None, typer.Option(help="Write a CSV here instead of printing.")] = None,
    as_json: Json = False,
) -> None:
    """Predict with an exported adapter.

    Example: autopeft predict my-adapter new.csv --output predictions.csv
    """
    from autopeft import app

    frame = app.predict(folder, file, output)
    if as_json:
        _print_json({"predictions": json.loads(frame.to_json(orient="records"))})
    elif output is None:
        print(frame.to_csv(index=False), end="")
    else:
        print(output)


@cli.command(name="list")
def list_(
    kind: Annotated[str, typer.Argument(help="methods, tasks, samplers, …, or spaces.")] = "methods",
    as_json: Json = False,
) -> None:
    """List plugins of a kind, or the search spaces.

    Example: autopeft list methods
    """
    from autopeft import plugins
    from autopeft.config import spaces_folder
    from autopeft.errors import UnknownName

    if kind == "spaces":
        found = sorted(path.stem for path in spaces_folder().glob("*.yaml"))
    elif kind in plugins.KINDS:
        found = list(plugins.names(kind))
    else:
        raise UnknownName("kind", kind, [*plugins.KINDS, "spaces"])
    if as_json:
        _print_json({kind: found})
    else:
        print("\n".join(found))


@cli.command()
def doctor(as_json: Json = False) -> None:
    """Show versions, device, disk, and where things are cached.

    Example: autopeft doctor
    """
    from autopeft import app

    found = app.doctor()
    if as_json:
        _print_json(found)
    else:
        for name, value in found.items():
            print(f"{name:<12} {value}")


def _running(start: Callable[[], Run], as_json: bool) -> None:
    """Runs a search, then shows what came out and where it is."""
    run = start()
    if as_json:
        _print_json(run.summary())
        return
    from autopeft.reports.table import front_table

    _print_table(front_table(run.history, run.describe))
    print(f"\npicture  {run.folder / 'front.png'}\nreport   {run.folder / 'report.html'}")
    for command in run.open_commands():
        print(f"MLflow   {command}")


def _print_table(table: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in table.columns:
        shown.add_column(column.title, overflow="fold", justify="right" if column.is_number else "left")
    for cells in table.cells():
        shown.add_row(*map(str, cells))
    Console(width=None if sys.stdout.isatty() else 160, markup=False).print(shown)


def _print_json(data: dict[str, Any]) -> None:
    print(json.dumps({"schema": 1, **data}, default=str))


def _say(text: str) -> None:
    print(text, file=sys.stderr)
