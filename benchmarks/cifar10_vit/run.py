"""CIFAR-10's last five classes, a vision transformer that knows the first five: `python benchmarks/cifar10_vit/run.py`
searches, confirms, writes REPORT.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from shared import search_and_confirm, shared, small_vit
from vit import rows

if __name__ == "__main__":
    files = rows(shared() / "data")
    search_and_confirm(
        Path(__file__).parent / "config.yaml",
        [f"model={small_vit()}", *(f"data.{split}={file}" for split, file in files.items())],
    )
