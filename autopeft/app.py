"""What a user does: search, check, plan, compare, predict.

run = autopeft.run("my.yaml")          # search
run = autopeft.open_run("runs/my-1")   # look at one, resume it, confirm, export
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autopeft import ledger as ledgers
from autopeft import wiring
from autopeft.config import Config, load
from autopeft.errors import UsageError, command
from autopeft.files import remove_empty
from autopeft.plan import Plan, plan
from autopeft.run_folder import opened, write_config
from autopeft.runs import Run, go, open_run

if TYPE_CHECKING:
    import pandas as pd

    from autopeft.finding import Finding
    from autopeft.start import Started


__all__ = ["Plan", "Run", "check", "demo", "init", "leaderboard", "open_run", "plan", "predict", "run", "search"]


def run(config: Config | Mapping[str, Any] | str | Path, *, name: str | None = None, quiet: bool = False) -> Run:
    """Runs a search to its end.

    Args:
        config: A config file, or its content as a mapping.
        name: Name of the run's folder.
        quiet: Whether to show nothing while it runs.

    Raises:
        autopeft.errors.AutoPEFTError: The run failed; the subclass tells why.
        KeyboardInterrupt: The user interrupted; `open_run(folder).resume()` goes on.
    """
    config = config if isinstance(config, Config) else load(config)
    return search(config, new_folder(config, name), quiet=quiet)


def search(config: Config, folder: Path | None = None, *, quiet: bool = False) -> Run:
    """Runs a new search in a folder."""
    folder = (folder or new_folder(config)).resolve()
    try:
        prepared = _begin(config, folder, quiet)
    except BaseException:
        remove_empty(folder)  # of a search that never began, for want of its model, say
        raise
    go(prepared, folder, quiet)
    return open_run(folder)


def _begin(config: Config, folder: Path, quiet: bool) -> wiring.Prepared:
    """Prepares a search, and writes the first line of its ledger."""
    taken = UsageError(f"{folder} holds a run already: {command('autopeft', 'resume', folder)} goes on with it")
    if (folder / ledgers.NAME).exists() and ledgers.read(folder / ledgers.NAME):
        raise taken
    if not quiet:  # in a pipe too, as loading libraries and measuring are slow
        print("preparing: data, model, and what is measured to choose", file=sys.stderr, flush=True)
    executor = wiring.ready_executor(config)
    folder.mkdir(parents=True, exist_ok=True)
    prepared = wiring.prepare(config, folder, executor)
    with opened(folder) as ledger:
        if ledger.events:  # another process has begun here meanwhile
            raise taken
        ledger.append(prepared.header)
    write_config(folder, prepared.header["config"])
    return prepared


def new_folder(config: Config, name: str | None = None) -> Path:
    """Creates `<runs>/<name>`, or `<runs>/<config's name>-<n>` with the first free n. Safe between processes."""
    runs = Path(config.runs)
    name = name or config.name
    if name is not None:
        if Path(name).name != name or name in (".", ".."):
            raise UsageError(f"a run's name is one folder's name, not {name!r}")
        return runs / name
    for number in itertools.count(1):
        with contextlib.suppress(FileExistsError):
            folder = runs / f"{config.stem or 'search'}-{number}"
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("numbers do not end")


def check(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Returns the checked config, or raises all its faults at once. Imports no torch."""
    return load(path, overrides)


def init(source: str | Path, model: str | None = None, to: str | Path | None = None) -> Started:
    """Looks at data, and writes the config of a first search. See `autopeft.start.init`."""
    from autopeft import start

    return start.init(source, model, to)


def leaderboard(
    folders: Sequence[str | Path], format: str = "markdown", *, by: Literal["search", "method", "all"] = "search"
) -> str:
    """Runs side by side, confirmed numbers first.

    Args:
        format: markdown, html, csv or json.
        by: A row a `search`, a `method`, or `all` trials of the fronts.
    """
    from autopeft.reports import leaderboard as boards

    # One after the other, as a long run's history is large
    runs = (open_run(folder, keeps_reports=False) for folder in folders)
    with ledgers.without_collection():
        return boards.render((boards.Entry(run.name, run.history, run.describe) for run in runs), format, by=by)


def writable(path: str | Path) -> Path:
    """Returns the path if its folder exists. Called before any work is done for the file.

    Raises:
        UsageError: The folder does not exist.
    """
    path = Path(path).expanduser()
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(
            f"cannot write to {path}: " + ("it is a folder" if path.is_dir() else f"no folder {path.parent}")
        )
    return path


def predict(
    folder: str | Path,
    file: str | Path,
    output: str | Path | None = None,
    *,
    base: str | None = None,
    trust_remote_code: bool = False,
) -> pd.DataFrame:
    """Predicts the rows of a file with an exported adapter: label, and the probability of each.

    Args:
        folder: A folder that `export` wrote.
        file: A file of rows, with or without labels; or a folder of pictures.
        output: A file to write: CSV, or JSON Lines if its name ends in .jsonl.
        base, trust_remote_code: See `autopeft.load`.
    """
    import pandas as pd

    from autopeft.training.export import load as load_export

    output = None if output is None else writable(output)
    frame = load_export(folder, base=base, trust_remote_code=trust_remote_code).predict_file(file)
    assert isinstance(frame, pd.DataFrame)
    if output is not None and output.suffix == ".jsonl":
        frame.to_json(output, orient="records", lines=True, force_ascii=False)
    elif output is not None:
        frame.to_csv(output, index=False)
    return frame


def follow(
    folder: str | Path,
    lines: Iterable[bytes],
    *,
    alerts: Sequence[str] = (),
    window: int = 100,
    base: str | None = None,
    trust_remote_code: bool = False,
) -> Iterator[Mapping[str, Any]]:
    """Yields the answer of an exported adapter to each line of text, as it comes.

    Args:
        folder: A folder that `export` wrote.
        lines: A text each, or a JSON object with the input columns.
        alerts: `negative=0.4`: an `alert` follows the answer with which this share of the last ones has the label.
        window: How many last answers alerts are about.
        base, trust_remote_code: See `autopeft.load`.
    """
    from autopeft.training.alerts import Alert, watched
    from autopeft.training.export import load as load_export
    from autopeft.training.lines import answered

    wanted = [Alert.of(text) for text in alerts]
    exported = load_export(folder, base=base, trust_remote_code=trust_remote_code)
    return watched(exported, answered(exported, lines), wanted, window)


DEMO = Path(__file__).parent / "demo.yaml"


def demo(*, name: str | None = None, overrides: Sequence[str] = (), quiet: bool = False) -> Run:
    """The embedded default: scikit-learn's digits and a small vision transformer pretrained on the spot, offline."""
    return run(load(DEMO, overrides), name=name, quiet=quiet)


def doctor(config: str | Path | None = None, overrides: Sequence[str] = ()) -> Iterator[Finding]:
    """Yields what may be wrong with this machine, or with what a config names. See `autopeft.doctor.examine`."""
    from autopeft.doctor import examine

    return examine(None if config is None else check(config, overrides))
