"""What the benchmark reads, as one folder of less than 60 MB that can be carried to a machine without a network.

`encoder/` MiniLM's real weights in fp16, for scores and for the mixed search; `tokenizer/` SmolLM2's, for rows of real
lengths; `clinc150/` and `cifar10/` as they are; `gsm8k.parquet` as prompts and completions. The language models and the
vision transformer have random weights, which take as long as real ones: `models.py` makes them where they are needed.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from shared import minilm, shared, smollm2  # noqa: E402

PICTURES, SCORED_PICTURES = 2000, 500


def write_bundle(folder: Path) -> None:
    """Writes the folder from the shared data, MiniLM's package and SmolLM2's folder."""
    import pandas as pd
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    AutoModel.from_pretrained(minilm()).to(torch.float16).save_pretrained(folder / "encoder")
    AutoTokenizer.from_pretrained(minilm()).save_pretrained(folder / "encoder")
    AutoTokenizer.from_pretrained(smollm2()).save_pretrained(folder / "tokenizer")
    (folder / "clinc150").mkdir(exist_ok=True)
    (folder / "cifar10").mkdir(exist_ok=True)
    data = shared() / "data"
    for split, count in (("train", PICTURES), ("validation", SCORED_PICTURES)):
        texts = pd.read_parquet(data / "clinc150" / f"{split}.parquet", columns=["text", "label"])
        texts.to_parquet(folder / "clinc150" / f"{split}.parquet")
        pictures = pd.read_parquet(data / "cifar10_subset" / f"{split}.parquet", columns=["image", "label"])
        pictures.sample(count, random_state=0).to_parquet(folder / "cifar10" / f"{split}.parquet", index=False)
    sums = pd.read_parquet(data / "gsm8k" / "train.parquet")
    pairs = {"prompt": "Question: " + sums["question"] + "\nAnswer:", "completion": " " + sums["answer"]}
    pd.DataFrame(pairs).to_parquet(folder / "gsm8k.parquet")


if __name__ == "__main__":
    write_bundle(Path(sys.argv[1]))
    print(sys.argv[1])
