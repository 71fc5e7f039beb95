"""SST-2 with MiniLM: `python benchmarks/sst2/run.py` searches, confirms, writes REPORT.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from shared import minilm, search_and_confirm, shared

if __name__ == "__main__":
    data = shared() / "data" / "sst2"
    search_and_confirm(
        Path(__file__).parent / "config.yaml",
        [
            f"model={minilm()}",
            f"data.train={data / 'train.parquet'}",
            f"data.validation={data / 'validation.parquet'}",
        ],
        ["data.validation_share=0.003"],
    )
