"""Pretrains a small character BERT on the spot, for the Chinese sets: `python benchmarks/chinese.py` prints its folder.

No Chinese model is at hand, and MiniLM does not know two thirds of the characters. The base learns to fill in masked
characters of the sets' own training and validation texts, some 3,000 short ones, in minutes on one core. It shows that
Chinese text goes the whole way; of its quality nothing is claimed.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

SETS = ("fewclue_eprstmt", "fewclue_tnews", "fewclue_bustm")
SPLITS = ("train", "validation")  # the test split is touched by `confirm` only
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SIZES = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512,
         "max_position_embeddings": 128}  # fmt: skip
STEPS, BATCH, RATE, MASKED, SEED, VERSION = 1_500, 32, 1e-3, 0.15, 0, 1


def folder(data: Path) -> Path:
    """The base's folder in the user's cache; trains it first if it is not there.

    Args:
        data: The folder of data sets.
    """
    from autopeft.files import build_once
    from autopeft.tasks.digits import cache_folder

    rows = texts(data)
    digest = hashlib.sha256(repr((VERSION, SIZES, STEPS, BATCH, RATE, MASKED, SEED, rows)).encode()).hexdigest()[:12]
    made = cache_folder() / f"chinese-base-{digest}"
    made.parent.mkdir(parents=True, exist_ok=True)
    build_once(made, lambda to: pretrain(rows, to))
    return made


def texts(data: Path) -> list[str]:
    """All texts of the sets' training and validation splits, each once; the two of a pair apart."""
    import pandas as pd

    found: dict[str, None] = {}
    for name in SETS:
        for split in SPLITS:
            frame = pd.read_parquet(data / name / f"{split}.parquet")
            for column in frame.columns.intersection(["text", "text_a", "text_b"]):
                found.update(dict.fromkeys(frame[column]))
    return list(found)


def pretrain(rows: list[str], to: Path, steps: int = STEPS) -> None:
    """Trains the base to fill in masked characters, one thread, and saves it with its tokenizer."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    words = vocabulary(rows)
    (to / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokens = BertTokenizerFast.from_pretrained(to, model_max_length=SIZES["max_position_embeddings"])
    tokens.save_pretrained(to)
    ids = sorted(tokens(rows, truncation=True)["input_ids"], key=len)  # neighbours share a batch: little padding
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = BertForMaskedLM(BertConfig(vocab_size=len(words), pad_token_id=0, **SIZES)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    say(
        f"pretraining a character BERT of {model.num_parameters():,} parameters on {len(rows):,} texts, {steps:,} steps"
    )
    began, last = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        first = int(torch.randint(max(1, len(ids) - BATCH + 1), ()))
        batch, labels = masked(ids[first : first + BATCH], len(words))
        loss = model(input_ids=batch, attention_mask=(batch != 0).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        last = 0.99 * last + 0.01 * float(loss.detach())
        if step % max(1, steps // 5) == 0:
            mean = last / (1 - 0.99**step)
            say(f"  step {step:,}: loss {mean:.2f} a masked character, {time.monotonic() - began:.0f} s")
    model.eval().save_pretrained(to)


def vocabulary(rows: list[str]) -> list[str]:
    """Special tokens, every character that occurs twice or more, and inner pieces of words in Latin letters."""
    counts = Counter("".join(rows).lower())
    characters = sorted(character for character, count in counts.items() if count > 1 and not character.isspace())
    return [*SPECIAL, *characters, *(f"##{character}" for character in characters if character.isascii())]


def masked(rows: list[list[int]], n_words: int) -> tuple[Any, Any]:
    """Masks characters as BERT does: of those chosen 80 % become [MASK], 10 % another one. Returns (inputs, labels)."""
    import torch

    batch = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for at, row in enumerate(rows):
        batch[at, : len(row)] = torch.tensor(row)
    chosen = (torch.rand(batch.shape) < MASKED) & (batch >= len(SPECIAL))
    chosen[0, 1] = True  # a batch without one has no loss
    labels = torch.where(chosen, batch, -100)
    how = torch.rand(batch.shape)
    batch = torch.where(chosen & (how < 0.8), SPECIAL.index("[MASK]"), batch)
    other = torch.randint(len(SPECIAL), n_words, batch.shape)
    return torch.where(chosen & (how >= 0.9), other, batch), labels


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    from shared import shared

    print(folder(shared() / "data"))
