"""A folder that holds a model: its digest, and the refusal of peft adapters. Knows files, and no framework."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from autopeft.errors import UsageError

ADAPTER = "adapter_config.json"
PREFIX = "files:"  # of a digest; older ledgers have "sha256:", of the safetensors alone

# Files that a model is read from beside its weights. If one changes, the model or its inputs change.
READ = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "*.model", "preprocessor_config.json", "processor_config.json", "*.index.json", "*.py",
)  # fmt: skip
WEIGHTS = ("*.safetensors", "*.bin")
NO_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin")  # left by the model's own training


def digest(model: str) -> str | None:
    """Returns the digest of a local model's files, which stands for a revision; None for a name on the hub."""
    if not os.path.isdir(model):
        return None
    folder, total = Path(model), hashlib.sha256()
    files = {file for pattern in (*READ, *WEIGHTS) for file in folder.glob(pattern) if file.name not in NO_WEIGHTS}
    for file in sorted(files):
        total.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        _add(total, file)
    return f"{PREFIX}{total.hexdigest()[:16]}"


def digest_as(model: str, was: str) -> str | None:
    """Returns a local model's digest in the same form as the digest `was`; None for a name on the hub."""
    if was.startswith(PREFIX) or not os.path.isdir(model):
        return digest(model)
    total = hashlib.sha256()
    for file in sorted(Path(model).glob("*.safetensors")):
        _add(total, file)
    return f"sha256:{total.hexdigest()[:16]}"


def _add(total: hashlib._Hash, file: Path) -> None:
    with open(file, "rb") as handle:
        while block := handle.read(2**20):
            total.update(block)


def refuse_adapter(model: str) -> None:
    """Raises UsageError for a folder with a peft adapter, as transformers would silently load and apply the adapter."""
    fault = adapter_fault(Path(model)) if os.path.isdir(model) else None
    if fault is not None:
        raise UsageError(f"the model {model!r} {fault}")


def adapter_fault(folder: Path) -> str | None:
    """Explains why a folder with a peft adapter is refused, and what to do; None for a folder without an adapter."""
    file = folder / ADAPTER
    if not file.is_file():
        return None
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        base = None
    if (folder / "config.json").is_file():
        return (
            f"holds a peft adapter beside the model ({ADAPTER}), which transformers would apply unasked: merge it into the "
            "model (peft's merge_and_unload), or move it elsewhere to start from the model alone"
        )
    named = f", {base!r}" if base else ""
    return (
        f"is a peft adapter and no model ({ADAPTER} without config.json): merge it into its base{named} (peft's "
        "merge_and_unload) and give the merged model, or give the base"
    )
