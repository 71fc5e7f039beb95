"""The command line: what it calls, what it prints, how it exits. `app` is mocked where a model would be needed."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from safetensors import SafetensorError

from autopeft import app, cli
from autopeft.errors import AutoPEFTError, BudgetSpent, EnvironmentFault, NothingCompleted, UsageError
from autopeft.finding import Finding
from autopeft.history import History
from autopeft.naming import describe
from autopeft.reports.table import Column, Table

PROJECT = Path(__file__).resolve().parent.parent
COMMANDS = (
    "search", "demo", "resume", "init", "check", "plan", "front", "trials", "report", "track", "leaderboard", "confirm",
    "export", "predict", "list", "doctor", "runs", "watch", "stop", "add",
)  # fmt: skip
READERS = ("init", "check", "plan", "front", "trials", "report", "track", "leaderboard", "confirm", "export", "predict",
           "list", "doctor", "search", "demo", "resume", "runs", "stop", "add")  # fmt: skip
HEAVY = ("torch", "transformers", "peft", "ray", "optuna", "mlflow", "sklearn", "pandas", "datasets", "pydantic")

CONFIG = """\
model: digits
task: digits
data: {}
space: {method: [head], head: {lr: {float: [1e-3, 1e-1], log: true, default: 1e-2}}}
trackers: [console]
budget: {trials: 4}
"""
HEADER = {
    "event": "search", "schema": 1, "seconds": 0.0, "id": "x", "config": {}, "signal": "accuracy",
    "objectives": [
        {"metric": "accuracy", "goal": "maximize", "reference": 0.2, "scale": "linear"},
        {"metric": "trainable_parameters", "goal": "minimize", "reference": 77000.0, "scale": "log10"},
    ],
    "dataset": {"label_names": ["5", "6"], "sizes": {"train": 8, "validation": 4, "test": 4}, "origin": {}},
    "model": {"name": "digits", "n_layers": 4, "kinds": [], "parameters": 77000},
    "baselines": {"majority": {"accuracy": 0.2}}, "chosen": {}, "provenance": {},
}  # fmt: skip


def ledger_events() -> list[dict[str, Any]]:
    """A search of a head, full fine-tuning, and one failure."""
    events: list[dict[str, Any]] = [HEADER]
    failure = "the loss is nan at step 3"
    outcomes = [("head", 0.7, 245.0, ""), ("full", 0.93, 77000.0, ""), ("full", 0.0, 77000.0, failure)]
    for number, (method, accuracy, size, error) in enumerate(outcomes):
        params = {"method": method, f"{method}.lr": 0.01 + number / 100, "head.lr": 0.01}
        known = {"trainable_parameters": size, "adapter_parameters": size - 245, "head_parameters": 245.0}
        status, metrics = ("FAILED", {}) if error else ("COMPLETE", {"accuracy": accuracy})
        events += [
            {"event": "ask", "number": number, "params": params, "seed": number, "known": known, "seconds": 1.0},
            {"event": "tell", "number": number, "status": status, "metrics": {**known, **metrics}, "error": error,
             "seconds": 2.0},
        ]  # fmt: skip
    return events


class FakeRun:
    """What app gives the commands, recorded: a run with a ledger's history, and no model."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.history, self.calls = folder, History(ledger_events()), []  # type: ignore[var-annotated]
        self.trials = pd.DataFrame([{"number": 0, "accuracy": 0.7}, {"number": 2, "accuracy": None}])

    def describe(self, params: Any) -> str:
        return describe(params, 4)

    def summary(self) -> dict[str, Any]:
        return {"schema": 1, "run": str(self.folder), "counts": {"COMPLETE": 2}, "hypervolume": 1.0, "front": []}

    def open_commands(self) -> dict[str, str]:
        return {"mlflow": "mlflow ui --backend-store-uri sqlite:////x.db"}

    def write_front(self) -> list[Path]:
        return [self.folder / "front.json"]

    def report(self) -> list[Path]:
        return [self.folder / "report.html", self.folder / "report.md"]

    def track(self) -> dict[str, dict[str, int]]:
        return {"mlflow": {"runs": 3, "metrics": 9}}

    def confirm(self, seeds: int | None, which: Any, *, race: int | None, quiet: bool) -> list[Any]:
        self.calls.append(("confirm", seeds, list(which), race, quiet))
        return []

    def export(self, which: str, to: Path | None, *, merged: bool, trust_remote_code: bool) -> Path:
        self.calls.append(("export", which, to, merged))
        target = to or self.folder / "export"
        target.mkdir()
        (target / "autopeft.json").write_text('{"trial": 1}')
        return target

    def resume(self, overrides: Any, *, quiet: bool) -> FakeRun:
        self.calls.append(("resume", list(overrides), quiet))
        return self


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    monkeypatch.chdir(tmp_path)
    fake = FakeRun(tmp_path / "runs" / "my-1")
    fake.folder.mkdir(parents=True)
    monkeypatch.setattr(app, "open_run", lambda folder: fake)
    return fake


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my.yaml"
    path.write_text(CONFIG)
    return path


def call(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of `autopeft …`, in this process."""
    monkeypatch.setattr(sys, "argv", ["autopeft", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert isinstance(end.value.code, int)
    return end.value.code


Autopeft = Callable[..., tuple[int, str, str]]


@pytest.fixture
def autopeft(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Autopeft:
    """Calls `autopeft …`; (exit code, stdout, stderr)."""

    def run_it(*arguments: object) -> tuple[int, str, str]:
        code = call(*arguments, monkeypatch=monkeypatch)
        out, err = capsys.readouterr()
        return code, out, err

    return run_it


# ── help ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_help_names_all_commands(autopeft: Autopeft) -> None:
    code, out, _ = autopeft("--help")
    assert code == 0
    listed = [line.split()[0] for line in out.split("Commands:")[1].strip().splitlines()]
    assert sorted(listed) == sorted(COMMANDS)
    assert "..." not in out.split("Commands:")[1], "a command's first line is too long to be shown whole"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_commands_help_has_an_example(autopeft: Autopeft, command: str) -> None:
    code, out, _ = autopeft(command, "--help")
    assert code == 0
    assert f"Example: autopeft {command}" in out


@pytest.mark.parametrize("command", READERS)
def test_every_command_that_reads_has_json(autopeft: Autopeft, command: str) -> None:
    assert "--json" in autopeft(command, "--help")[1]


def test_alone_it_shows_its_help(autopeft: Autopeft) -> None:
    code, out, err = autopeft()
    assert (code, err) == (2, "")
    assert "Usage:" in out


def test_version(autopeft: Autopeft) -> None:
    from autopeft import __version__

    assert autopeft("--version") == (0, f"autopeft {__version__}\n", "")


def fresh(*arguments: str, code: str = "", **environment: str) -> tuple[int, str, str, float]:
    """`python -m autopeft …`, or other code, in a process of its own; (exit code, stdout, stderr, CPU seconds)."""
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *(["-c", code] if code else ["-m", "autopeft"]), *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(PROJECT), **environment},
    )  # fmt: skip
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime  # wall time is that of a busy machine
    return done.returncode, done.stdout, done.stderr, seconds


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = f"""
import sys
sys.argv = ["autopeft", "--help"]
from autopeft.cli import main
try:
    main()
finally:
    print(*(name for name in {HEAVY!r} if name in sys.modules), end="", file=sys.stderr)
"""
    found = [fresh(code=code) for _ in range(3)]
    assert [(code, err) for code, _, err, _ in found] == [(0, "")] * 3
    assert min(seconds for *_, seconds in found) < 0.5


def test_check_is_quick(config: Path) -> None:
    found = [fresh("check", str(config)) for _ in range(6)]
    assert [(code, err) for code, _, err, _ in found] == [(0, "")] * 6
    assert min(seconds for *_, seconds in found) < 1


def test_shells_complete_its_commands() -> None:
    code = "import sys; sys.argv = ['autopeft']; from autopeft.cli import main; main()"
    asked = {"_AUTOPEFT_COMPLETE": "complete_bash", "COMP_WORDS": "autopeft se", "COMP_CWORD": "1"}
    assert fresh(code=code, **asked)[1].split() == ["search"]


# ── faults and exit codes ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (UsageError("wrong input"), 2),
        (NothingCompleted("no trial completed"), 3),
        (BudgetSpent("the time is over"), 4),
        (EnvironmentFault("the disk is full"), 5),
        (AutoPEFTError("ours"), 1),
        (OSError(errno.ENOSPC, "No space left on device", "/x/report.html"), 5),
        (OSError(errno.EACCES, "Permission denied"), 5),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), 5),
        (ZeroDivisionError("division by zero"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(autopeft: Autopeft, monkeypatch: pytest.MonkeyPatch, fault: BaseException, code: int) -> None:
    def fail(folder: Path) -> None:
        raise fault

    monkeypatch.setattr(app, "open_run", fail)
    monkeypatch.delenv("AUTOPEFT_DEBUG", raising=False)
    found, out, err = autopeft("front", "runs/my-1")
    assert (found, out) == (code, "")
    assert "Traceback" not in err
    if not isinstance(fault, (KeyboardInterrupt, OSError)):
        assert str(fault) in err


def test_debug_shows_where(autopeft: Autopeft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "open_run", lambda folder: 1 / 0)
    monkeypatch.setenv("AUTOPEFT_DEBUG", "1")
    code, _, err = autopeft("front", "x")
    assert code == 1
    assert "Traceback" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serch"], "Did you mean 'search'?"),
        (["search"], "Missing argument"),
        (["search", "x.yaml", "--sett", "a=b"], "--set"),
        (["confirm", "x", "--seeds", "0"], "--seeds"),
        (["leaderboard", "x", "--by", "colour"], "--by"),
        (["list", "methodz"], "Did you mean 'methods'?"),
        (["front", "nowhere"], "is no run"),
    ],
)
def test_wrong_usage(
    autopeft: Autopeft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = autopeft(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("error: ")


def test_the_module_runs_as_a_program() -> None:
    code, out, err, _ = fresh("front", "/nowhere")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")


# ── check ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_check(autopeft: Autopeft, config: Path) -> None:
    assert autopeft("check", "my.yaml") == (0, "my.yaml: no faults\n", "")
    code, out, _ = autopeft("check", "my.yaml", "--json", "--set", "seed=5")
    said = json.loads(out)
    assert (code, said["schema"], said["is_valid"], said["faults"]) == (0, 1, True, [])
    assert said["config"]["seed"] == 5


def test_check_of_a_wrong_config(autopeft: Autopeft, config: Path) -> None:
    config.write_text(CONFIG + "seed: x\nkep: all\n")
    code, out, err = autopeft("check", "my.yaml")
    assert (code, out) == (2, "")
    assert err.startswith("error: my.yaml: 2 faults\n  line 7: seed: expected a whole number")
    code, out, err = autopeft("check", "my.yaml", "--json")
    said = json.loads(out)
    assert (code, err, said["is_valid"]) == (2, "", False)
    assert [(fault["path"], fault["line"]) for fault in said["faults"]] == [("seed", 7), ("kep", 8)]


# ── searching ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def searched(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `app.search` was called with."""
    calls: list[Any] = []

    def search(config: Any, folder: Path, *, quiet: bool) -> FakeRun:
        calls.append(SimpleNamespace(config=config, folder=folder, quiet=quiet))
        return run

    monkeypatch.setattr(app, "search", search)
    return calls


def test_search(autopeft: Autopeft, config: Path, searched: list[Any]) -> None:
    overrides = ("--set", "budget.trials=60", "--set", "seed=3")
    code, out, err = autopeft("search", "my.yaml", *overrides, "--name", "first", "-q")
    assert (code, err) == (0, "")
    (asked,) = searched
    assert (asked.config.budget.trials, asked.config.seed, asked.quiet) == (60, 3, True)
    assert asked.folder == Path("runs/first")
    assert "full fine-tuning" in out
    for line in ("picture  runs/my-1/front.png", "report   runs/my-1/report.html", "mlflow   mlflow ui"):
        assert line in out


def test_search_in_json_is_quiet(autopeft: Autopeft, config: Path, searched: list[Any]) -> None:
    code, out, err = autopeft("search", "my.yaml", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["counts"] == {"COMPLETE": 2}
    assert searched[0].quiet
    assert searched[0].folder == Path("runs/my-2")  # the next that is free


def test_demo(autopeft: Autopeft, searched: list[Any]) -> None:
    code, _, err = autopeft("demo", "--set", "trackers=[console]", "--set", "budget.trials=3")
    assert (code, err) == (0, "")
    assert searched[0].config.model.path == "digits"
    assert searched[0].config.budget.trials == 3


def test_an_interrupted_search_says_how_to_go_on(
    autopeft: Autopeft, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(config: Any, folder: Path, *, quiet: bool) -> None:
        folder.mkdir(parents=True)
        (folder / "ledger.jsonl").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "search", search)
    code, out, err = autopeft("search", "my.yaml", "--name", "mine")
    assert (code, out) == (130, "")
    assert err.strip() == "interrupted; resume with: `autopeft resume runs/mine`"


def test_a_search_interrupted_before_its_ledger(
    autopeft: Autopeft, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(config: Any, folder: Path, *, quiet: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "search", search)
    assert autopeft("search", "my.yaml") == (130, "", "interrupted before the search began\n")


def test_resume(autopeft: Autopeft, run: FakeRun) -> None:
    code, out, _ = autopeft("resume", run.folder, "--set", "budget.trials=60")
    assert code == 0
    assert run.calls == [("resume", ["budget.trials=60"], False)]
    assert "picture" in out


def test_an_interrupted_resume(autopeft: Autopeft, run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def resume(overrides: Any, *, quiet: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "resume", resume)
    (run.folder / "ledger.jsonl").touch()
    code, _, err = autopeft("resume", "runs/my-1")
    assert (code, err) == (130, "interrupted; resume with: `autopeft resume runs/my-1`\n")


def test_plan(autopeft: Autopeft, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def plan(config: Any, draws: int) -> Any:
        asked.append((config.budget.trials, draws))
        return SimpleNamespace(to_json=lambda: {"combinations": 7}, lines=lambda: ["space  7 combinations"])

    monkeypatch.setattr(app, "plan", plan)
    found = autopeft("plan", "my.yaml", "--draws", "50", "--set", "budget.trials=9")
    assert found == (0, "space  7 combinations\n", "")
    assert json.loads(autopeft("plan", "my.yaml", "--json")[1]) == {"schema": 1, "combinations": 7}
    assert asked == [(9, 50), (4, 1000)]


# ── looking and using ───────────────────────────────────────────────────────────────────────────────────────────────


def test_front_and_trials(autopeft: Autopeft, run: FakeRun) -> None:
    code, out, _ = autopeft("front", run.folder)
    assert code == 0
    assert "head only" in out
    assert "full fine-tuning" in out
    code, out, _ = autopeft("trials", run.folder)
    assert "the loss is nan at step 3" in out
    said = json.loads(autopeft("trials", run.folder, "--json")[1])
    assert said["trials"] == [{"number": 0, "accuracy": 0.7}, {"number": 2, "accuracy": None}]
    assert json.loads(autopeft("front", run.folder, "--json")[1])["counts"] == {"COMPLETE": 2}


@pytest.mark.parametrize("width", [80, 160])
def test_a_table_fits_the_terminal(
    autopeft: Autopeft, run: FakeRun, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """Numbers and words stay whole at any width; the details go first."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    confirmation = {"event": "confirm", "name": "trial 0", "number": 0, "params": run.history.records[0].params,
                    "status": "COMPLETE", "error": "", "seconds": 9.0}  # fmt: skip
    for seed, score in enumerate((0.61, 0.64)):
        run.history.apply({**confirmation, "seed": seed, "metrics": {"accuracy": score, "trainable_parameters": 245.0}})
    out = re.sub(r"\x1b\[[\d;]*m", "", autopeft("front", run.folder)[1])
    assert max(map(len, out.splitlines())) <= width
    for whole in ("configuration", "validation,", "0.6250 ± 0.1906", "trainable", "head only,", "knee"):
        assert whole in out
    assert ("of the model" in out) == (width == 160)


def test_report_and_track(autopeft: Autopeft, run: FakeRun) -> None:
    assert autopeft("report", run.folder)[1].splitlines()[-1] == str(run.folder / "report.md")
    assert len(json.loads(autopeft("report", run.folder, "--json")[1])["files"]) == 3
    assert autopeft("track", run.folder)[1] == "mlflow: 3 runs, 9 metrics\n"
    assert json.loads(autopeft("track", run.folder, "--json")[1])["trackers"] == {"mlflow": {"runs": 3, "metrics": 9}}


def test_confirm(autopeft: Autopeft, run: FakeRun) -> None:
    code, out, err = autopeft("confirm", run.folder, "--seeds", "3", "--pick", "knee", "--pick", "trial=1")
    assert (code, err) == (0, "")
    assert run.calls == [("confirm", 3, ["knee", "trial=1"], None, False)]
    assert "report   runs/my-1/report.html" in out


def test_an_interrupted_confirm(autopeft: Autopeft, run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def confirm(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "confirm", confirm)
    code, _, err = autopeft("confirm", "runs/my-1", "--seeds", "3", "--pick", "knee", "--pick", "best")
    assert code == 130
    assert err.endswith("Go on with: autopeft confirm runs/my-1 --seeds 3 --pick knee --pick best\n")


def test_an_interrupted_race(autopeft: Autopeft, run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def confirm(*_: Any, race: int, **__: Any) -> None:
        raise KeyboardInterrupt(race)

    monkeypatch.setattr(run, "confirm", confirm)
    _, _, err = autopeft("confirm", "runs/my-1", "--race", "60")
    assert err.endswith("Go on with: autopeft confirm runs/my-1 --race 60\n")


def test_confirm_in_json(autopeft: Autopeft, run: FakeRun) -> None:
    code, out, err = autopeft("confirm", run.folder, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["schema"] == 1
    assert run.calls == [("confirm", None, [], None, True)]


def test_leaderboard(autopeft: Autopeft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = []

    def leaderboard(folders: list[Path], format: str, *, by: str) -> str:
        asked.append((list(map(str, folders)), format, by))
        return "{}"

    monkeypatch.setattr(app, "leaderboard", leaderboard)
    assert autopeft("leaderboard", "a", "b", "--by", "method") == (0, "{}\n", "")
    assert autopeft("leaderboard", "a", "--output", "board.html")[1] == "board.html\n"
    assert autopeft("leaderboard", "a", "--output", "board.html", "--format", "csv")[0] == 0
    assert autopeft("leaderboard", "a", "--json")[0] == 0
    assert (tmp_path / "board.html").read_text() == "{}"
    assert asked == [(["a", "b"], "markdown", "method"), (["a"], "html", "search"), (["a"], "csv", "search"),
                     (["a"], "json", "search")]  # fmt: skip


def test_export(autopeft: Autopeft, run: FakeRun, tmp_path: Path) -> None:
    assert autopeft("export", run.folder, "--pick", "max-params=50k", "--to", "adapter") == (0, "adapter\n", "")
    assert run.calls == [("export", "max-params=50k", Path("adapter"), False)]
    assert autopeft("export", run.folder, "--to", "merged", "--merged")[0] == 0
    assert run.calls[1] == ("export", "knee", Path("merged"), True)
    said = json.loads(autopeft("export", run.folder, "--json")[1])
    assert (said["schema"], said["trial"]) == (1, 1)


def test_predict(autopeft: Autopeft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame([{"label": "fine", "probability": 0.9}])
    asked: list[Any] = []
    monkeypatch.setattr(app, "predict", lambda *_, **options: asked.append(options) or frame)
    assert autopeft("predict", "adapter", "new.csv")[1] == "label,probability\nfine,0.9\n"
    assert autopeft("predict", "adapter", "new.csv", "--output", "out.csv")[1] == "out.csv\n"
    said = json.loads(autopeft("predict", "adapter", "new.csv", "--json")[1])
    assert said == {"schema": 1, "predictions": [{"label": "fine", "probability": 0.9}]}
    assert autopeft("predict", "adapter", "new.csv", "--base", "moved", "--trust-remote-code")[0] == 0
    assert "expected a file of rows" in autopeft("predict", "adapter")[2]
    monkeypatch.setattr(app, "follow", lambda *_, **options: iter([{"label": "fein"}, {"error": "ä"}]))
    assert autopeft("predict", "adapter", "--follow")[1] == '{"label": "fein"}\n{"error": "ä"}\n'
    assert "give no file" in autopeft("predict", "adapter", "new.csv", "--follow")[2]
    said = {"label": "sad", "share": 0.5, "window": 4, "line": 1_234}
    monkeypatch.setattr(app, "follow", lambda *_, **options: asked.append(options) or iter([{"alert": said}]))
    code, out, errors = autopeft("predict", "adapter", "--follow", "--alert", "sad=0.5", "--window", "4")
    assert (code, json.loads(out)) == (0, {"alert": said})
    assert errors == "alert: sad is 50% of the last 4 answers, at line 1,234\n"
    assert asked.pop() == {"alerts": ["sad=0.5"], "window": 4, "base": None, "trust_remote_code": False}
    assert "give --follow" in autopeft("predict", "adapter", "new.csv", "--alert", "sad=0.5")[2]
    assert asked[0] == {"base": None, "trust_remote_code": False}
    assert asked[-1] == {"base": "moved", "trust_remote_code": True}


def test_list(autopeft: Autopeft) -> None:
    from autopeft import plugins, spaces

    code, out, _ = autopeft("list", "methods")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(plugins.names("methods"))
    assert "Hu et al." in out
    said = json.loads(autopeft("list", "spaces", "--json")[1])
    assert [space["name"] for space in said["spaces"]] == sorted(spaces.shipped())
    assert all(space["about"].endswith((".", ":")) or space["about"] for space in said["spaces"])
    every = json.loads(autopeft("list", "--json")[1])
    assert set(every) == {"schema", *plugins.KINDS, "spaces"}
    assert "executors:" in autopeft("list")[1]


def test_doctor(autopeft: Autopeft, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Finding("memory", "ok", "8.0 GiB free"), Finding("disk", "warn", "2.0 GiB free", "make room")]
    monkeypatch.setattr(app, "doctor", lambda config, overrides: iter(found))
    assert autopeft("doctor")[:2] == (0, "ok    memory: 8.0 GiB free\nwarn  disk: 2.0 GiB free\n      → make room\n")
    said = json.loads(autopeft("doctor", "--json")[1])
    assert (said["schema"], said["state"], said["checks"][1]["todo"]) == (1, "warn", "make room")
    found.append(Finding("cluster", "fail", "nobody listens", "start it"))
    assert autopeft("doctor")[0] == 5


@pytest.mark.parametrize(("key", "is_cut"), [("class", True), ("name", True), ("why", False)])
def test_a_name_that_fills_lines_is_cut_in_the_terminal_and_a_reason_is_not(key: str, is_cut: bool) -> None:
    table = Table("", (Column(key, key),), ({key: "g" * 600},))
    assert cli._cell(table.columns[0], table.rows[0]) == ("g" * 99 + "…" if is_cut else "g" * 600)
