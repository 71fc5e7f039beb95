"""Where a number comes from: versions, commit and whether it was changed, device. No environment, no secrets."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from autopeft import __version__

PACKAGES = (
    "torch", "transformers", "peft", "optuna", "ray", "mlflow", "scikit-learn", "datasets", "tokenizers",
    "safetensors", "numpy",
)  # fmt: skip


def provenance(device: str) -> dict[str, Any]:
    """Collects as JSON data what a reader needs to judge a measured number.

    Args:
        device: The device that trained: "cpu", "cuda" or "cuda:0".
    """
    return {
        "versions": {"python": platform.python_version(), "autopeft": __version__, **_versions()},
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
    """Returns autopeft's own commit and whether files were changed since; None outside a checkout."""
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
    """Returns `cuda:0: NVIDIA H100, 79 GiB`; only `cuda:0` if torch is not loaded, as loading takes long."""
    torch = sys.modules.get("torch")
    if not device.startswith("cuda") or torch is None or not torch.cuda.is_available():
        return device
    found = torch.cuda.get_device_properties(torch.device(device))
    count = torch.cuda.device_count()
    return f"{device}: {found.name}, {found.total_memory / 2**30:.0f} GiB" + (f", one of {count}" if count > 1 else "")
