"""ESC-10, YAMNet: `python benchmarks/esc10/run.py` searches, confirms, writes REPORT.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from shared import of_data, search_and_confirm, shared

if __name__ == "__main__":
    model = shared() / "models" / "yamnet_mobilenet_v1"
    search_and_confirm(Path(__file__).parent / "config.yaml", of_data("esc10", str(model)), ["data.train_rows=200"])
