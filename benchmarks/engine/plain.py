"""The plain stack, as a practitioner writes it: Ray Tune, Optuna, a process a trial, Hugging Face Trainer, peft.

Tuned where that takes one line: dynamic padding, no checkpoints, no logging, bars off, one thread a process; bf16 where
the job asks for it. Optuna is given the configurations, so that both sides train the same. Knows nothing of autopeft.
"""

from __future__ import annotations

import json
import os
import resource
import secrets
import sys
import time
from typing import Any

from configurations import BATCH_SIZE, CONFIGURATIONS, EVERYWHERE, MAX_LENGTH, SEED, WARMUP, WEIGHT_DECAY

MODULE_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}


def targets(modules: list[str], layers: Any, n_layers: int) -> list[str]:
    """Full module names for peft."""
    indices = range(n_layers) if layers == "all" else layers
    return [f"bert.encoder.layer.{index}.{MODULE_NAMES[kind]}" for index in indices for kind in modules]


def adapt(model: Any, params: dict[str, Any]) -> Any:
    """The model of one configuration: peft where peft has the method, else `requires_grad`."""
    from peft import IA3Config, LoraConfig, get_peft_model

    n_layers, method = model.config.num_hidden_layers, params["method"]
    if method == "lora":
        names = targets(params["lora.modules"], params["lora.layers"], n_layers)
        config = LoraConfig(
            task_type="SEQ_CLS", r=params["lora.rank"], lora_alpha=params["lora.alpha"], target_modules=names
        )
        return get_peft_model(model, config)
    if method == "ia3":
        config = IA3Config(
            task_type="SEQ_CLS",
            target_modules=targets(["key", "value", "down"], "all", n_layers),
            feedforward_modules=targets(["down"], "all", n_layers),
        )
        return get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("classifier.") or _trains(method, params, name, n_layers)
    return model


def _trains(method: str, params: dict[str, Any], name: str, n_layers: int) -> bool:
    in_layers = name.startswith("bert.encoder.layer.")
    if method == "bias":
        return in_layers and name.endswith(".bias")
    if method == "norm":
        return in_layers and "LayerNorm" in name
    if method == "last_layers":
        return (in_layers and int(name.split(".")[3]) >= n_layers - params["last_layers.count"]) or "pooler" in name
    return method == "full"


def train(options: dict[str, Any], job: dict[str, Any]) -> None:
    """One trial, in a process of its own: what Ray Tune calls."""
    import numpy as np
    import pandas as pd
    import torch
    from datasets import Dataset
    from ray import tune
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    start = time.perf_counter()
    torch.set_num_threads(1)
    params = dict(CONFIGURATIONS[options["name"]])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    splits = {}
    for split in ("train", "validation"):
        rows = Dataset.from_pandas(pd.read_parquet(job[split], columns=["text", "label"]), preserve_index=False)
        splits[split] = rows.map(
            lambda batch: tokenizer(batch["text"], truncation=True, max_length=MAX_LENGTH),
            batched=True,
            remove_columns=["text"],
        )
    torch.manual_seed(SEED)
    model = adapt(AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=2), params)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    own_lr = params.get(f"{params['method']}.lr", params["head.lr"])
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for name, p in trained if "classifier" not in name], "lr": own_lr},
            {"params": [p for name, p in trained if "classifier" in name], "lr": params["head.lr"]},
        ],
        weight_decay=WEIGHT_DECAY,
        fused=True,  # as Trainer's own would be
    )
    steps = job["epochs"] * -(-len(splits["train"]) // BATCH_SIZE)
    warm = round(WARMUP * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (step + 1) / (warm + 1) if step < warm else max(0.0, (steps - step) / (steps - warm))
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir="trainer",
            num_train_epochs=job["epochs"],
            per_device_train_batch_size=BATCH_SIZE,
            per_device_eval_batch_size=128,
            eval_strategy="epoch",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=job["bf16"],
            seed=SEED,
        ),
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float((np.argmax(p.predictions, axis=1) == p.label_ids).mean())},
        optimizers=(optimizer, schedule),
    )
    trainer.train()
    accuracy = next(row["eval_accuracy"] for row in reversed(trainer.state.log_history) if "eval_accuracy" in row)
    tune.report(
        {
            "accuracy": accuracy,
            "rows": len(splits["validation"]),
            "trainable_parameters": sum(p.numel() for _, p in trained),
            "cpu_seconds": cpu_seconds(),  # of the whole process: its start and imports too
            "train_wall_seconds": time.perf_counter() - start,
        }
    )


def cpu_seconds() -> float:
    """Of this process so far, and of its children that ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def main() -> None:
    """Reads a job as JSON from the command line, prints one JSON line: a row a trial, in order, and the wall time."""
    os.environ.update(
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    )  # it listens on all addresses
    import ray
    from ray import tune
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    job = json.loads(sys.argv[1])
    here = os.path.dirname(os.path.abspath(__file__))
    environment = {"PYTHONPATH": here, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    ray.init(
        num_cpus=1,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        object_store_memory=200_000_000,
        runtime_env={"env_vars": environment},
    )
    start = time.perf_counter()
    search = OptunaSearch(
        {"name": tune.choice(job["names"])},
        metric="accuracy",
        mode="max",
        points_to_evaluate=[{"name": name} for name in job["names"]],
    )
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(train, job=job), {"cpu": 1}),
        tune_config=tune.TuneConfig(search_alg=ConcurrencyLimiter(search, 1), num_samples=len(job["names"])),
        run_config=tune.RunConfig(storage_path=job["folder"], verbose=0),
    )
    results = tuner.fit()
    if results.errors:
        sys.exit(str(results.errors[0]))
    keys = ("accuracy", "rows", "trainable_parameters", "cpu_seconds", "train_wall_seconds")
    rows = {result.config["name"]: {key: result.metrics[key] for key in keys} for result in results}
    wall = time.perf_counter() - start
    ray.shutdown()
    print(json.dumps({"trials": [{"name": name, **rows[name]} for name in job["names"]], "wall_seconds": wall}))


assert set(EVERYWHERE) == set(MODULE_NAMES)

if __name__ == "__main__":
    main()
