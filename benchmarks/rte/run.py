"""RTE with MiniLM: `python benchmarks/rte/run.py` searches, confirms, writes REPORT.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from shared import minilm, of_data, search_and_confirm

if __name__ == "__main__":
    quick = ["training.max_length=64", "data.validation_share=0.08"]
    search_and_confirm(Path(__file__).parent / "config.yaml", of_data("rte", minilm()), quick)
