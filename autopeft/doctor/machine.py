"""Checks of the machine itself: packages, devices, processors, memory."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from autopeft.doctor import cgroups
from autopeft.finding import Finding
from autopeft.provenance import provenance

TORCH_SECONDS = 80.0
LITTLE_BYTES, NOTHING_BYTES = 2 * 2**30, 2**29  # of free memory: a warning, and too little to import the libraries
BUSY = 1.5  # load a core from which a machine is called busy
BUSY_GPU = 0.5  # share of a GPU's memory that others may have

# In a process of its own, as a broken driver makes torch hang.
LOOK = """
import json, torch
from torch import cuda
gpus = [(cuda.get_device_name(n), *cuda.mem_get_info(n)) for n in range(cuda.device_count())] if cuda.is_available() else []
print(json.dumps({"gpus": gpus, "build": torch.version.cuda or torch.version.hip, "version": torch.__version__}))
"""


@dataclass
class Gpus:
    """What torch sees, for later checks.

    Attributes:
        names: Of the GPUs; empty if there are none, or if it is not known.
    """

    names: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.names)


def versions() -> Iterator[Finding]:
    """Compares the installed packages with those that autopeft asks for."""
    from packaging.requirements import Requirement

    shown = ", ".join(f"{name} {version}" for name, version in provenance("cpu")["versions"].items())
    try:
        needed = [Requirement(text) for text in importlib.metadata.requires("autopeft") or ()]
    except importlib.metadata.PackageNotFoundError:
        todo = "install it: pip install ."
        yield Finding("versions", "warn", f"{shown}; autopeft is not installed, so what it needs is not known", todo)
        return
    wrong = []
    for requirement in needed:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append((requirement, "is missing"))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append((requirement, f"is {version}"))
    if not wrong:
        yield Finding("versions", "ok", shown)
    for requirement, what in wrong:
        text = f"{requirement.name} {what}; autopeft needs {requirement.specifier or 'it'}"
        yield Finding("versions", "fail", text, f"pip install '{requirement}'")


def devices(wanted: str, gpus: Gpus) -> Iterator[Finding]:
    """Looks for GPUs as torch sees them.

    Args:
        wanted: The config's device: "auto", "cpu", "cuda", "cuda:1".
        gpus: Gets what was found.
    """
    try:
        words = [sys.executable, "-c", LOOK]
        done = subprocess.run(words, capture_output=True, text=True, timeout=TORCH_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        todo = "a busy machine, or a GPU's driver that hangs: try again, and look at nvidia-smi"
        yield Finding("devices", "warn", f"torch did not answer in {TORCH_SECONDS:g} s", todo)
        return
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        yield Finding("devices", "fail", f"torch cannot be used: {why}", "install torch anew")
        return
    found = json.loads(done.stdout.splitlines()[-1])
    gpus.names = [name for name, _, _ in found["gpus"]]
    yield _device(wanted, found)
    for number, (name, free, total) in enumerate(found["gpus"]):
        shown = f"GPU {number}, {name}: {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        if free < BUSY_GPU * total:
            yield Finding("devices", "warn", shown, "another program has the rest: see nvidia-smi, or wait")
        else:
            yield Finding("devices", "ok", shown)


def _device(wanted: str, found: dict[str, object]) -> Finding:
    assert isinstance(found["gpus"], list)
    count, build = len(found["gpus"]), found["build"]
    number = int(wanted.partition(":")[2] or 0) if wanted.startswith("cuda") else -1
    if number >= count:
        text = f"training.device is {wanted}, and torch {found['version']} sees {count} GPUs"
        return Finding("devices", "fail", text, "training.device: auto, or a machine with a GPU" + _driver(build))
    if count == 0 and _has_card():
        text = f"there is an NVIDIA card, and torch {found['version']} does not see it"
        return Finding("devices", "warn", text, "look at CUDA_VISIBLE_DEVICES" + _driver(build))
    return Finding(
        "devices", "ok", f"{count} GPUs, torch {found['version']}" if count else "no GPU: trials run on the CPU"
    )


def _driver(build: object) -> str:
    return "; its driver may be too old for this torch" if build else "; this torch is built for the CPU only"


def _has_card() -> bool:
    return Path("/proc/driver/nvidia/version").exists()


def processors() -> Iterator[Finding]:
    """Counts the cores that this process may use, and says how busy they are."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroups.cpus()
    text = f"{cores} cores" + ("" if quota is None else f", and a quota of {quota:g} of them (cgroup)")
    usable = cores if quota is None else min(cores, quota)
    if usable < cores:
        slots = max(1, int(usable))
        todo = f"executor: {{name: ray_tune, slots: {slots}}}, as trials side by side share the quota; or a larger one"
        yield Finding("processors", "warn", text, todo)
    else:
        yield Finding("processors", "ok", text)
    with_load = getattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))()[1]
    if with_load > BUSY * max(usable, 1):
        text = f"load {with_load:.1f} in the last five minutes, on {usable:g} cores: trials take longer"
        yield Finding("processors", "warn", text, "end what else runs here; training.trial_seconds counts waiting, too")


def memory() -> Iterator[Finding]:
    """Says how much memory is free, in the container's limit if there is one."""
    found = _memory()
    limit = cgroups.memory()
    if found is None and limit is None:
        yield Finding(
            "memory", "warn", "not known on this system", "a trial needs its model a few times over: look yourself"
        )
        return
    total, free = found if found is not None else (0, 0)
    text = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    if limit is not None and (found is None or limit[0] < total):
        total, left = limit
        free = min(free, left) if found is not None else left
        text = f"{free / 2**30:.1f} GiB free, of a limit of {total / 2**30:.1f} GiB (cgroup)"
    if free < NOTHING_BYTES:
        yield Finding("memory", "fail", text, "less than the libraries need: end other programs, or raise the limit")
    elif free < LITTLE_BYTES:
        todo = "executor: serial, as each trial side by side has a base of its own; or more memory"
        yield Finding("memory", "warn", text, todo)
    else:
        yield Finding("memory", "ok", text)


def _memory() -> tuple[int, int] | None:
    """Returns bytes of memory, and how many are available; None if that is not known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return sizes["MemTotal"], sizes["MemAvailable"]
