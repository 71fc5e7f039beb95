"""The plain side: Trainer and peft, tuned as far as their own settings go. Knows nothing of autopeft.

bf16, fused AdamW, dynamic padding, no checkpoints, no logging, bars off. One process trains its configurations one
after the other, on data that it has encoded before the clock starts; several processes begin together. Reads a job as
JSON from the command line, prints one JSON line.

    kind: "texts", "pictures" or "completions"
    model, train, validation: folder and files
    trials: configurations, in the words of autopeft's spaces
    steps or epochs, batch_size, max_length, device, seed
    warm: steps before the clock of `tokens_a_second` starts
    ready, begin: files; the process makes the first when it has loaded, and starts when the second appears
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Kind of module, as autopeft calls it → endings of names in BERT, in ViT and in Llama.
ENDINGS = {
    "query": ("attention.self.query", "q_proj", "attention.attention.query"),
    "key": ("attention.self.key", "k_proj", "attention.attention.key"),
    "value": ("attention.self.value", "v_proj", "attention.attention.value"),
    "output": ("attention.output.dense", "o_proj"),
    "up": ("intermediate.dense", "mlp.fc1", "up_proj", "gate_proj"),
    "down": ("output.dense", "mlp.fc2", "down_proj"),
}


def main() -> None:
    job = json.loads(sys.argv[1])
    import torch
    from transformers import set_seed

    make = {"texts": texts, "pictures": pictures, "completions": completions}[job["kind"]]
    load, splits, collate = make(job)
    if job["device"] == "cuda":
        torch.zeros(1, device="cuda")
    if "begin" in job:
        Path(job["ready"]).touch()
        while not Path(job["begin"]).exists():
            time.sleep(0.01)
    rows, start = [], time.perf_counter()
    for params in job["trials"]:
        set_seed(job["seed"])
        began = time.perf_counter()
        found = train(adapt(load(), params), params, splits, collate, job)
        rows.append({"method": params["method"], "seconds": time.perf_counter() - began, **found})
    peak = torch.cuda.max_memory_reserved() if job["device"] == "cuda" else None
    print(json.dumps({"trials": rows, "seconds": time.perf_counter() - start, "peak_memory_bytes": peak}))


# ── data ────────────────────────────────────────────────────────────────────────────────────────────────────────────

Made = tuple[Callable[[], Any], Mapping[str, Any], Callable[[Any], Any]]


def texts(job: Mapping[str, Any]) -> Made:
    """Sentences with a label."""
    import pandas as pd
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

    tokens = AutoTokenizer.from_pretrained(job["model"])
    splits, n = {}, 0
    for split in ("train", "validation"):
        frame = pd.read_parquet(job[split])
        ids = tokens(frame["text"].tolist(), truncation=True, max_length=job["max_length"])["input_ids"]
        splits[split] = [{"input_ids": i, "labels": int(y)} for i, y in zip(ids, frame["label"], strict=True)]
        n = max(n, int(frame["label"].max()) + 1)
    load = lambda: AutoModelForSequenceClassification.from_pretrained(  # noqa: E731
        job["model"], num_labels=n, dtype=torch.float32
    )
    return load, splits, DataCollatorWithPadding(tokens)


def pictures(job: Mapping[str, Any]) -> Made:
    """Pictures with a label, decoded and resized before the clock starts, kept as whole numbers."""
    import io

    import numpy as np
    import pandas as pd
    import torch
    from PIL import Image
    from transformers import AutoModelForImageClassification

    def pixels(picture: Mapping[str, Any]) -> Any:
        image = Image.open(io.BytesIO(picture["bytes"])).convert("RGB").resize((job["pixels"],) * 2)
        return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())

    splits, n = {}, 0
    for split in ("train", "validation"):
        frame = pd.read_parquet(job[split])
        splits[split] = [
            {"pixel_values": pixels(p), "labels": int(y)} for p, y in zip(frame["image"], frame["label"], strict=True)
        ]
        n = max(n, int(frame["label"].max()) + 1)

    def collate(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        stacked = torch.stack([row["pixel_values"] for row in rows])
        return {"pixel_values": stacked / 127.5 - 1, "labels": torch.tensor([row["labels"] for row in rows])}

    load = lambda: AutoModelForImageClassification.from_pretrained(  # noqa: E731
        job["model"], num_labels=n, ignore_mismatched_sizes=True, dtype=torch.float32
    )
    return load, splits, collate


def completions(job: Mapping[str, Any]) -> Made:
    """Prompts and completions; the loss is on the completion. Collating counts the real tokens of each batch."""
    import pandas as pd
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq

    tokens = AutoTokenizer.from_pretrained(job["model"])
    frame = pd.read_parquet(job["train"])
    rows = []
    for prompt, completion in zip(frame["prompt"], frame["completion"], strict=True):
        asked, given = tokens(prompt)["input_ids"], [*tokens(completion)["input_ids"], tokens.eos_token_id]
        ids, labels = [*asked, *given], [*[-100] * len(asked), *given]
        rows.append({"input_ids": ids[: job["max_length"]], "labels": labels[: job["max_length"]]})
    padded = DataCollatorForSeq2Seq(tokens, padding=True)

    def collate(some: Sequence[Mapping[str, Any]]) -> Any:
        batch = padded([dict(row, attention_mask=[1] * len(row["input_ids"])) for row in some])
        COUNTED.append(sum(len(row["input_ids"]) for row in some))
        return batch

    # A frozen base in bf16: peft keeps the adapter's own weights in fp32.
    dtype = torch.bfloat16 if job["device"] == "cuda" else torch.float32
    load = lambda: AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype)  # noqa: E731
    return load, {"train": rows}, collate


COUNTED: list[int] = []  # real tokens of each batch, in the order in which they are made, which is that of the steps


# ── one configuration ───────────────────────────────────────────────────────────────────────────────────────────────


def kind_of(name: str) -> str | None:
    """The kind of a linear module; the most specific ending wins, as BERT's `output.dense` ends two names."""
    found = [(len(ending), kind) for kind, endings in ENDINGS.items() for ending in endings if name.endswith(ending)]
    return max(found)[1] if found else None


def adapt(model: Any, params: Mapping[str, Any]) -> Any:
    """The model of one configuration: peft's LoRA, else `requires_grad`."""
    from peft import LoraConfig, get_peft_model

    method, n_layers = params["method"], model.config.num_hidden_layers
    heads = [name for name, _ in model.named_children() if name == "classifier"]
    if method == "lora":
        wanted, layers = params["lora.modules"], params["lora.layers"]
        inside = range(n_layers) if layers == "all" else layers
        names = [n for n, _ in model.named_modules() if kind_of(n) in wanted and layer_of(n) in inside]
        own = {"r": params["lora.rank"], "lora_alpha": 16, "target_modules": names, "modules_to_save": heads or None}
        return get_peft_model(model, LoraConfig(**own))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("classifier.") or trains(method, params, name, n_layers)
    return model


def layer_of(name: str) -> int | None:
    """The block that a module belongs to."""
    match = re.search(r"\.(\d+)\.", name)
    return int(match[1]) if match else None


def trains(method: str, params: Mapping[str, Any], name: str, n_layers: int) -> bool:
    """Whether a parameter outside the head trains under a method that adds nothing."""
    layer = layer_of(name)
    if method == "bias":
        return layer is not None and name.endswith(".bias")
    if method == "norm":
        return layer is not None and "norm" in name.lower()
    if method == "last_layers":
        is_behind = layer is None and "embeddings" not in name
        return is_behind or (layer is not None and layer >= n_layers - params["last_layers.count"])
    return method == "full"


def train(model: Any, params: Mapping[str, Any], splits: Mapping[str, Any], collate: Any, job: Any) -> dict[str, Any]:
    """Trains, and scores the validation split once if there is one."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    COUNTED.clear()
    is_gpu = job["device"] == "cuda"
    own, head = params.get(f"{params['method']}.lr", 1e-3), params.get("head.lr", 1e-3)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if ("classifier" in name) is is_head], "lr": lr}
        for is_head, lr in ((False, own), (True, head))
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.01, fused=True)
    steps = job.get("steps") or int(job["epochs"]) * -(-len(splits["train"]) // job["batch_size"])
    warm = round(0.06 * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (step + 1) / (warm + 1) if step < warm else max(0.0, (steps - step) / (steps - warm))
    )
    stamps: list[float] = []

    class Stamp(TrainerCallback):
        """Notes when each step ended."""

        def on_step_end(self, *given: Any, **more: Any) -> None:
            if is_gpu and len(stamps) + 1 in (job.get("warm", 0), steps):
                torch.cuda.synchronize()
            stamps.append(time.perf_counter())

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(Path(job["folder"]) / "trainer"), max_steps=steps, per_device_eval_batch_size=256,
            per_device_train_batch_size=job["batch_size"], bf16=is_gpu, use_cpu=not is_gpu, save_strategy="no",
            logging_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False, seed=job["seed"],
            dataloader_pin_memory=is_gpu, prediction_loss_only=False,
        ),
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        data_collator=collate,
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(1) == p.label_ids).mean())},
        callbacks=[Stamp()],
        optimizers=(optimizer, schedule),
    )  # fmt: skip
    trainer.train()
    found: dict[str, Any] = {"steps": steps, "trainable_parameters": sum(p.numel() for _, p in trained)}
    if "validation" in splits:
        found["accuracy"] = trainer.evaluate()["eval_accuracy"]
    warm = job.get("warm")
    if warm:
        found["tokens_a_second"] = sum(COUNTED[warm:steps]) / (stamps[-1] - stamps[warm - 1])
        found["step_seconds"] = (stamps[-1] - stamps[warm - 1]) / (steps - warm)
    return found


if __name__ == "__main__":
    main()
