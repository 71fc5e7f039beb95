"""Where a number comes from: versions, commit and whether it was changed, device. No environment, no secrets."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = (
    "autopeft", "torch", "transformers", "peft", "optuna", "ray", "mlflow", "scikit-learn", "datasets", "numpy",
)  # fmt: skip


def provenance(device: str) -> dict[str, Any]:
    """What a reader needs to judge a measured number, as JSON data.

    Args:
        device: "cpu", "cuda" or "cuda:0": what training ran on.
    """
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "commit": _commit(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": _device(device),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> dict[str, Any] | None:
    """The commit that autopeft runs from and whether its files were changed since; None outside a checkout."""
    folder = Path(__file__).parent
    if not (folder.parent / ".git").exists():
        return None

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        return {"id": git("rev-parse", "HEAD"), "is_dirty": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _device(device: str) -> str:
    if not device.startswith("cuda"):
        return device
    import torch

    return f"{device}: {torch.cuda.get_device_name(torch.device(device))}"
