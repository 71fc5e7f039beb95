"""The task `digits`, whose trials say on which machine they ran, and take a while: a plugin that all machines have."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.namespaces import PROJECT

TASK = """
import time
from dataclasses import replace

from autopeft.tasks.digits import Digits

class Where(Digits):
    def __init__(self, seconds=0.0):
        super().__init__()
        self.seconds = seconds

    def score(self, kept, targets, about):
        import ray

        scores = super().score(kept, targets, about)
        if not ray.is_initialized():  # the driver's own scores
            return scores
        time.sleep(self.seconds)
        return replace(scores, detail={**scores.detail, "machine": ray.util.get_node_ip_address()})
"""


def install(folder: Path) -> Path:
    """Writes the plugin as an installed package. Returns the folder for PYTHONPATH; it must be one that all see."""
    about = folder / "where-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: where\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[autopeft.tasks]\nwhere = where:Where\n")
    (folder / "where.py").write_text(TASK)
    return folder


def of_driver(folder: Path) -> str:
    """Returns PYTHONPATH of a driver."""
    return f"{folder}:{PROJECT}"
