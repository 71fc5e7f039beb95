"""What may be wrong with a machine, a cluster or a tracker, before a search: findings, each with what to do.

Checks look and change nothing. Each has a bounded time: what gives no answer in time is a warning, as a busy machine
may be the reason.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from autopeft import plugins
from autopeft.config import DEFAULTS, Config
from autopeft.doctor import folders, listening, machine
from autopeft.errors import AutoPEFTError
from autopeft.finding import Diagnosed, Finding
from autopeft.redact import Redactor

SECONDS = 90.0  # bound on one check; that of the devices imports torch
Check = Callable[[], Iterable[Finding]]
TRACKERS = ({"name": "mlflow"},)  # of a search without a config: the default's, less the console


def examine(config: Config | None = None) -> Iterator[Finding]:
    """Yields the findings, each as soon as it is known.

    Args:
        config: Looks at this config's folders, device, executor and trackers; None for those of the defaults.
    """
    runs = Path("runs" if config is None else config.runs)
    redactor = Redactor.of(None if config is None else config.model_dump(mode="json"))
    gpus = machine.Gpus()
    wanted = "auto" if config is None else config.training.device
    checks: list[tuple[str, Check]] = [
        ("versions", machine.versions),
        ("devices", partial(machine.devices, wanted, gpus)),
        ("processors", machine.processors),
        ("memory", machine.memory),
        ("folders", partial(folders.findings, runs)),
        ("executor", partial(_executor, config, gpus)),
        ("listening", listening.findings),
        *_trackers(config, runs),
    ]
    for name, check in checks:
        for found in bounded(name, check):
            yield Finding(found.name, found.state, redactor.message(found.text), redactor.secret(found.todo))


def bounded(name: str, check: Check, seconds: float = SECONDS) -> list[Finding]:
    """Returns what a check finds within a time, and a warning if it has not ended by then, or cannot look."""
    found: list[Finding] = []
    fault: list[Exception] = []

    def look() -> None:
        try:
            found.extend(check())
        except Exception as error:
            fault.append(error)

    thread = threading.Thread(target=look, name=f"autopeft-doctor-{name}", daemon=True)
    thread.start()
    thread.join(seconds)
    out = list(found)
    if fault and isinstance(fault[0], AutoPEFTError):
        out.append(Finding(name, "fail", str(fault[0]), "the message says what to do"))
    elif fault:
        why = f"could not be looked at: {type(fault[0]).__name__}: {fault[0]}"
        out.append(Finding(name, "warn", why, "nothing is known of it: look yourself"))
    elif thread.is_alive():
        busy = "this machine may be busy, or a disk or server may hang: try again, and look yourself"
        out.append(Finding(name, "warn", f"no answer in {seconds:g} s", busy))
    return out


def facts() -> dict[str, Any]:
    """Returns what a question about an installation begins with: versions, commit, machine, free disk, cache."""
    import shutil

    from autopeft.provenance import provenance
    from autopeft.tasks.digits import cache_folder

    found = provenance("cpu")
    free = shutil.disk_usage(Path.cwd()).free
    return {
        **found["versions"],
        **{key: found[key] for key in ("commit", "system", "processor", "cores")},
        "disk_free_gib": round(free / 2**30, 1),
        "cache": str(cache_folder()),
    }


def _executor(config: Config | None, gpus: machine.Gpus) -> Iterator[Finding]:
    """Looks at the executor that would run. How many GPUs it has is known by then."""
    name, options = (DEFAULTS["executor"], {}) if config is None else (config.executor.name, config.executor.options)
    offered = {"trial_seconds": None, "n_gpus": gpus.count}
    executor = plugins.make("executors", name, options, **plugins.taken(plugins.load("executors", name), offered))
    if isinstance(executor, Diagnosed):
        yield from executor.diagnose()
    else:
        executor.check()
        yield Finding("executor", "ok", f"{name} can run")


def _trackers(config: Config | None, runs: Path) -> Iterator[tuple[str, Check]]:
    entries: Iterable[tuple[str, Mapping[str, Any]]] = (
        [(entry["name"], {}) for entry in TRACKERS]
        if config is None
        else [(entry.name, entry.options) for entry in config.trackers]
    )
    for name, options in entries:
        yield name, partial(_tracker, name, options, runs)


def _tracker(name: str, options: Mapping[str, Any], runs: Path) -> Iterator[Finding]:
    tracker = plugins.make("trackers", name, options, runs / "run")
    if isinstance(tracker, Diagnosed):
        yield from tracker.diagnose()
