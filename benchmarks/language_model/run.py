"""GSM8K with SmolLM2-135M: `python benchmarks/language_model/run.py` searches, confirms, writes REPORT.md. For one GPU.

`--quick` is for two cores of a CPU, in less than ten minutes: the 60 shortest rows, five trials, two fresh seeds.
The front is against the loss of the untouched base. The exact match is of the number after `####`; a model of this size
does hardly any sum.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from shared import of_data, search_and_confirm, shared, smollm2

SHORT = {"train": 60, "test": 12}  # rows of --quick


def quick() -> list[str]:
    """Writes the shortest rows of each split, and gives what `--quick` changes."""
    import pandas as pd

    folder = Path("runs", "short-sums")
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in SHORT.items():
        rows = pd.read_parquet(shared() / "data" / "gsm8k" / f"{split}.parquet")
        order = (rows["question"].str.len() + rows["answer"].str.len()).sort_values(kind="stable").index
        rows.loc[sorted(order[:count])].to_parquet(folder / f"{split}.parquet", index=False)
    return [
        *(f"data.{split}={folder.resolve() / split}.parquet" for split in SHORT),
        "data.train_rows=48",
        "data.validation_share=0.2",
        "training.batch_size=4",
        "training.threads=2",
        "budget.trials=5",
        "task.generate_rows=4",
        "task.new_tokens=48",
        "training.attention=sdpa",
    ]


if __name__ == "__main__":
    search_and_confirm(
        Path(__file__).parent / "config.yaml", of_data("gsm8k", smollm2()), quick() if "--quick" in sys.argv else []
    )
