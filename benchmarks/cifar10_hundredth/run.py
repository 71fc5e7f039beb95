"""CIFAR-10 with a hundredth of MobileNetV2: `python benchmarks/cifar10_hundredth/run.py` searches, confirms, reports."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from shared import search_and_confirm, shared

if __name__ == "__main__":
    data = shared() / "data" / "cifar10_subset"
    search_and_confirm(
        Path(__file__).parent / "config.yaml",
        [
            f"model={shared() / 'models' / 'mobilenet_v2_1.0_224'}",
            f"data.train={data / 'train.parquet'}",
            f"data.validation={data / 'validation.parquet'}",
            f"data.test={data / 'test.parquet'}",
        ],
    )
