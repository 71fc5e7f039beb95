"""CIFAR-10 with MobileNetV2: `python benchmarks/cifar10/run.py` searches, confirms, writes REPORT.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from shared import of_data, search_and_confirm, shared

if __name__ == "__main__":
    model = str(shared() / "models" / "mobilenet_v2_1.0_224")
    search_and_confirm(Path(__file__).parent / "config.yaml", of_data("cifar10_subset", model))
