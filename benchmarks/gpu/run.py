"""Plain and ours on one GPU: Trainer and peft one after another, and in 8 processes, beside searches by the product.

`python benchmarks/gpu/run.py` takes everything, about an hour and a half; `--small` trains shorter, and fewer plain
trials, for a machine that is lent for 15 minutes; `--only NAME` takes one step, several times for several. Each process
runs under a limit, and what a step finds is printed at once. One JSON line comes last; a figure that was not taken is
null. `--rehearse` runs all of it in miniature on a CPU: it shows that the script works, and its figures say nothing.

Needs no network, no Ray, no MLflow, no Optuna. README.md says what to carry to a bare machine.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

import models  # noqa: E402
from configurations import LORA_SPACE, MIXED, MIXED_SPACE, lora_trials, mixed  # noqa: E402

FIGURES = {  # what issue and README call it → (at least, or at most where it is a difference)
    "mixed_encoder": 15.0,
    "mixed_encoder_processes": 4.0,
    "lora_135m": 40.0,
    "lora_1b": 8.0,
    "pictures": 4.0,
    "score_difference": 0.003,
    "busy": 0.7,
}
SEED = 0


@dataclass(frozen=True)
class Sizes:
    """How much is run. Ours always trains all of its trials; plain trains as many of them as are named, evenly spread.

    Attributes:
        intents, score_intents: Classes of CLINC150 whose rows are taken: for speed, and for `score_difference`.
        epochs: Of a trial of the mixed searches.
        trials, plain_trials, plain_processes_trials, processes: Of `mixed_encoder`.
        picture_trials, plain_picture_trials, pictures, scored_pictures, pixels: Of `pictures`.
        lora_trials: Trials of a language model.
        steps, plain_steps, warm: Optimiser steps of a language model's trial; steps before plain's clock starts.
        sums, longest: Rows of GSM8K, and most tokens of one.
        score_epochs, score_trials: Of `score_difference`.
        limit: Seconds of one process; it is ended then, and its figure is null.
    """

    intents: int = 151
    epochs: int = 3
    trials: int = 32
    plain_trials: int = 32
    plain_processes_trials: int = 32
    processes: int = 8
    picture_trials: int = 16
    plain_picture_trials: int = 16
    pictures: int | None = None
    scored_pictures: int | None = None
    pixels: int = 224
    lora_trials: int = 16
    steps: int = 400
    plain_steps: int = 130
    warm: int = 10
    sums: int | None = None
    longest: int = 512
    score_intents: int = 150
    score_epochs: int = 2
    score_trials: int = 16
    limit: int = 3600


WHOLE = Sizes()
SMALL = Sizes(
    epochs=2, plain_trials=6, plain_processes_trials=16, picture_trials=12, plain_picture_trials=6, steps=120,
    plain_steps=40, score_intents=20, limit=150,
)  # fmt: skip
REHEARSAL = Sizes(
    intents=4, epochs=1, trials=6, plain_trials=6, plain_processes_trials=2, processes=2,
    picture_trials=6, plain_picture_trials=6, pictures=64, scored_pictures=32, pixels=32, lora_trials=2, steps=4,
    plain_steps=4, warm=2, sums=64, longest=40, score_intents=4, score_epochs=1, score_trials=3, limit=600,
)  # fmt: skip


@dataclass
class Bench:
    """One run: where its files are, how much is run, and what was found."""

    folder: Path
    bundle: Path
    sizes: Sizes
    device: str
    is_rehearsal: bool
    executor: Mapping[str, Any]
    figures: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def intents(self, count: int) -> dict[str, str]:
        """The rows of CLINC150's first classes."""
        return self._written("clinc150", lambda frame, split: frame[frame["label"] < count])

    def pictures(self) -> dict[str, str]:
        """The first rows of CIFAR-10, shuffled when they were bundled."""
        rows = {"train": self.sizes.pictures, "validation": self.sizes.scored_pictures}
        return self._written("cifar10", lambda frame, split: frame.iloc[: rows[split]])

    def _written(self, name: str, choose: Callable[[Any, str], Any]) -> dict[str, str]:
        import pandas as pd

        out = {}
        for split in ("train", "validation"):
            out[split] = str(self.folder / f"{name}-{split}.parquet")
            choose(pd.read_parquet(self.bundle / name / f"{split}.parquet"), split).to_parquet(out[split], index=False)
        return out

    def encoder(self) -> str:
        """MiniLM; a BERT of two layers in a rehearsal."""
        if not self.is_rehearsal:
            return str(self.bundle / "encoder")
        return models.tiny_encoder(self.folder / "tiny-encoder", self.bundle / "encoder")

    def ours(self, name: str, config: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """One search by the product, in a process of its own; its seconds are those of the call, start to end."""
        whole = {
            "executor": self.executor, "trackers": [], "keep": "none", "seed": SEED, "stopper": "never",
            "budget": {"trials": len(config["sampler"]["params"])}, **config,
        }  # fmt: skip
        if self.is_rehearsal:  # measuring what is fastest would take most of its time
            whole["training"] = {"precision": "fp32", "attention": "sdpa", "layout": "flat", **whole["training"]}
        folder = self.folder / f"ours-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        return Started("ours.py", {"config": whole, "folder": str(folder), **more}, self).result()

    def plain(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Plain trials, one after another, in one process."""
        return Started("plain.py", {**self.common(), **job}, self).result()

    def plain_processes(self, job: Mapping[str, Any], count: int) -> float:
        """Wall seconds of plain trials over several processes at once, from when all have loaded to the last one's end."""
        begin = self.folder / "begin"
        begin.unlink(missing_ok=True)
        ready = [self.folder / f"ready-{index}" for index in range(count)]
        for path in ready:
            path.unlink(missing_ok=True)
        started = [
            Started("plain.py", {**self.common(), **job, "trials": job["trials"][index::count], "ready": str(path),
                                 "begin": str(begin)}, self)
            for index, path in enumerate(ready)
        ]  # fmt: skip
        while not all(path.exists() for path in ready) and all(side.process.poll() is None for side in started):
            time.sleep(0.05)
        begin.touch()
        try:
            return max(side.result()["seconds"] for side in started)
        finally:
            for side in started:  # where one failed
                side.process.kill()

    def common(self) -> dict[str, Any]:
        return {"device": self.device, "seed": SEED, "folder": str(self.folder)}


class OverLimit(Exception):
    """A process took longer than its step's limit, or failed."""


class Started:
    """A process of this benchmark. `result` waits for it, and reads its last line."""

    def __init__(self, script: str, job: Mapping[str, Any], bench: Bench) -> None:
        root = os.pathsep.join([str(HERE.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        quiet = {
            "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg",
        }  # fmt: skip
        self.script, self.limit = script, bench.sizes.limit
        self.begun, path = time.monotonic(), bench.folder / f"job-{time.monotonic_ns()}.json"
        path.write_text(json.dumps(job))  # for whoever wants to run it again by hand
        self.log = path.with_suffix(".log")
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / script), json.dumps(job)],
                stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **quiet, "PYTHONPATH": root},
            )  # fmt: skip

    def result(self) -> dict[str, Any]:
        try:
            out, _ = self.process.communicate(timeout=max(1.0, self.limit - (time.monotonic() - self.begun)))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise OverLimit(f"{self.script} took longer than {self.limit} s") from None
        if self.process.returncode != 0:
            raise OverLimit(f"{self.script} ended with {self.process.returncode}: {self.log.read_text()[-1500:]}")
        return dict(json.loads(out.strip().splitlines()[-1]))


# ── the steps ───────────────────────────────────────────────────────────────────────────────────────────────────────


def mixed_encoder(bench: Bench) -> None:
    """A mixed search on CLINC150: trials an hour, ours over plain, and the share of time in which the card computes."""
    sizes, encoder = bench.sizes, bench.encoder()
    data = bench.intents(sizes.intents)
    trials = mixed(sizes.trials, models.TINY["num_hidden_layers"] if bench.is_rehearsal else 6, SEED)
    ours = bench.ours("mixed", {
        "model": encoder, "task": "text_classification", "space": MIXED_SPACE,
        "data": {**data, "test": data["validation"], "text": "text", "label": "label"},
        "sampler": {"name": "fixed", "params": trials},
        "training": {"epochs": sizes.epochs, "batch_size": 32, "max_length": 64},
    })  # fmt: skip
    an_hour = len(trials) / ours["seconds"] * 3600
    bench.figures["busy"] = ours["busy"]
    note(bench, "mixed_encoder", ours=ours)
    job = {"kind": "texts", "model": encoder, **data, "epochs": sizes.epochs, "batch_size": 32, "max_length": 64}
    plain = bench.plain({**job, "trials": spread(trials, sizes.plain_trials)})
    bench.figures["mixed_encoder"] = an_hour / (sizes.plain_trials / plain["seconds"] * 3600)
    note(bench, "mixed_encoder", plain=plain)
    some = spread(trials, sizes.plain_processes_trials)
    seconds = bench.plain_processes({**job, "trials": some}, sizes.processes)
    bench.figures["mixed_encoder_processes"] = an_hour / (len(some) / seconds * 3600)
    note(bench, "mixed_encoder", processes_seconds=seconds)


def language(bench: Bench, name: str, shape: Mapping[str, Any]) -> None:
    """LoRA trials of a language model: real tokens a second of steps, ours over plain."""
    import pandas as pd

    sizes = bench.sizes
    tokenizer = bench.bundle / "tokenizer"
    model = models.language_model(bench.folder / name, dict(shape), tokenizer, bench.device)
    frame = pd.read_parquet(bench.bundle / "gsm8k.parquet").iloc[: sizes.sums]
    train, few = str(bench.folder / "sums.parquet"), str(bench.folder / "few-sums.parquet")
    frame.to_parquet(train, index=False)
    frame.iloc[:32].to_parquet(few, index=False)
    trials = lora_trials(sizes.lora_trials)
    a_step = 8 * mean_length(frame, tokenizer, sizes.longest)
    config: dict[str, Any] = {
        "model": model, "task": {"name": "causal_language_modelling", "generate_rows": 0}, "space": LORA_SPACE,
        "data": {"train": train, "validation": few, "test": few, "prompt": "prompt", "completion": "completion"},
        "sampler": {"name": "fixed", "params": trials}, "objectives": ["loss", "trainable_parameters"],
        "training": {"steps": sizes.steps, "batch_size": 8, "max_length": sizes.longest},
        "stopper": {"name": "never", "rungs": [0.25, 0.75], "signal": "train_loss"},
    }  # fmt: skip
    try:  # so few steps would not win back what compiling costs, which is not in the figure either
        compiled = {**config["training"], "layout": "flat", "compile": "on"}
        ours = bench.ours(name, {**config, "training": compiled}, tokens_a_step=a_step)
        note(bench, name, ours_compiled=ours)
    except OverLimit as fault:
        note(bench, name, not_compiled=str(fault))
        ours = bench.ours(name, config, tokens_a_step=a_step)
        note(bench, name, ours=ours)
    plain = bench.plain({
        "kind": "completions", "model": model, "train": train, "trials": trials[:1], "steps": sizes.plain_steps,
        "warm": sizes.warm, "batch_size": 8, "max_length": sizes.longest,
    })  # fmt: skip
    bench.figures[name] = ours["tokens_a_second"] / plain["trials"][0]["tokens_a_second"]
    whole = len(trials) * sizes.steps * a_step / ours["seconds"]
    note(bench, name, plain=plain, tokens_a_second_of_the_whole_search=whole)
    shutil.rmtree(bench.folder / name)


def mean_length(frame: Any, tokenizer: Path, longest: int) -> float:
    """Mean tokens of a row, its end token included."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(tokenizer)
    lengths = [
        min(longest, len(prompt) + len(completion) + 1)
        for prompt, completion in zip(
            tokens(frame["prompt"].tolist())["input_ids"],
            tokens(frame["completion"].tolist())["input_ids"],
            strict=True,
        )
    ]
    return sum(lengths) / len(lengths)


def lora_135m(bench: Bench) -> None:
    """SmolLM2-135M's shape."""
    language(bench, "lora_135m", models.TINY_LLAMA if bench.is_rehearsal else models.SMOLLM2)


def lora_1b(bench: Bench) -> None:
    """Llama-3.2-1B's shape."""
    language(bench, "lora_1b", models.TINY_LLAMA if bench.is_rehearsal else models.LLAMA_1B)


def pictures(bench: Bench) -> None:
    """A mixed search of ViT-small on CIFAR-10's pictures, enlarged: trials an hour, ours over plain."""
    sizes = bench.sizes
    shape = models.TINY if bench.is_rehearsal else models.VIT_SMALL
    model = models.vision_transformer(bench.folder / "vit", dict(shape), sizes.pixels)
    data = bench.pictures()
    trials = mixed(sizes.picture_trials, shape["num_hidden_layers"], SEED)
    ours = bench.ours("pictures", {
        "model": model, "task": "image_classification", "space": MIXED_SPACE,
        "data": {**data, "test": data["validation"], "image": "image", "label": "label", "image_size": sizes.pixels},
        "sampler": {"name": "fixed", "params": trials}, "training": {"epochs": sizes.epochs, "batch_size": 32},
    })  # fmt: skip
    note(bench, "pictures", ours=ours)
    some = spread(trials, sizes.plain_picture_trials)
    job = {"kind": "pictures", "model": model, **data, "pixels": sizes.pixels, "epochs": sizes.epochs, "batch_size": 32}
    plain = bench.plain({**job, "trials": some})
    bench.figures["pictures"] = len(trials) / ours["seconds"] / (len(some) / plain["seconds"])
    note(bench, "pictures", plain=plain)


def score_difference(bench: Bench) -> None:
    """The same trials as the product runs them here and by `serial` in fp32: how much their accuracies differ."""
    sizes = bench.sizes
    data = bench.intents(sizes.score_intents)
    trials = mixed(sizes.score_trials, models.TINY["num_hidden_layers"] if bench.is_rehearsal else 6, SEED)
    training = {"epochs": sizes.score_epochs, "batch_size": 32, "max_length": 64}
    config = {
        "model": bench.encoder(), "task": "text_classification", "space": MIXED_SPACE,
        "data": {**data, "test": data["validation"], "text": "text", "label": "label"},
        "sampler": {"name": "fixed", "params": trials}, "training": training,
    }  # fmt: skip
    ours = bench.ours("scores", config)
    exact = {**training, "precision": "fp32", "attention": "sdpa", "layout": "padded", "device": bench.device}
    serial = bench.ours("serial", {**config, "executor": "serial", "training": exact})
    by_trial = [a["accuracy"] - b["accuracy"] for a, b in zip(ours["trials"], serial["trials"], strict=True)]
    bench.figures["score_difference"] = abs(sum(by_trial) / len(by_trial))
    note(
        bench, "score_difference", differences=by_trial, serial=[trial["accuracy"] for trial in serial["trials"]],
        mean_absolute=sum(map(abs, by_trial)) / len(by_trial), ours_seconds=ours["seconds"],
        serial_seconds=serial["seconds"], chosen=ours["chosen"],
    )  # fmt: skip


STEPS: Mapping[str, Callable[[Bench], None]] = {
    "mixed_encoder": mixed_encoder,
    "lora_135m": lora_135m,
    "lora_1b": lora_1b,
    "pictures": pictures,
    "score_difference": score_difference,
}


# ── all of it ───────────────────────────────────────────────────────────────────────────────────────────────────────


def spread(trials: Sequence[Any], count: int) -> list[Any]:
    """So many of the trials: as many of each method, first the first of each. The list's methods take turns."""
    if count >= len(trials):
        return list(trials)
    if count % len(MIXED) == 0:
        return list(trials[:count])
    return [trials[round(index * (len(trials) - 1) / max(1, count - 1))] for index in range(count)]


def note(bench: Bench, step: str, **found: Any) -> None:
    """Keeps what was found, and prints it now: a run that is cut off has said what it knows."""
    bench.details.setdefault(step, {}).update(found)
    for key, value in found.items():
        short = value if not isinstance(value, dict) else {k: v for k, v in value.items() if k != "trials"}
        print(f"… {step} {key}: {json.dumps(short)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(STEPS), help="this step; several times for several")
    parser.add_argument("--small", action="store_true", help="for a machine that is lent for 15 minutes")
    parser.add_argument("--rehearse", action="store_true", help="in miniature, on a CPU: figures say nothing")
    parser.add_argument("--bundle", type=Path, help="what bundle.py wrote; made here where it is not given")
    parser.add_argument("--slots", default="auto", help="trials at once, ours; as many as memory holds")
    parser.add_argument("--limit", type=int, help="seconds of one process, in place of the size's own")
    parser.add_argument("--details", type=Path, help="a file for all that was found, as JSON, written after each step")
    options = parser.parse_args()
    import torch

    if not options.rehearse and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; --rehearse runs all of it in miniature on a CPU")
    sizes = REHEARSAL if options.rehearse else SMALL if options.small else WHOLE
    if options.limit:
        sizes = Sizes(**{**sizes.__dict__, "limit": options.limit})
    device = "cpu" if options.rehearse else "cuda"
    with tempfile.TemporaryDirectory(prefix="autopeft-gpu-", ignore_cleanup_errors=True) as folder:
        bundle = options.bundle or made_here(Path(folder) / "bundle")
        executor = {"name": "packed", "slots": int(options.slots) if options.slots.isdigit() else options.slots}
        bench = Bench(Path(folder), bundle, sizes, device, options.rehearse, executor)
        for name in options.only or STEPS:
            take(bench, name)
            if options.details:
                options.details.write_text(json.dumps({**last_line(bench, options), "details": bench.details}))
    print(json.dumps(last_line(bench, options)))


def made_here(folder: Path) -> Path:
    from bundle import write_bundle

    write_bundle(folder)
    return folder


def take(bench: Bench, name: str) -> None:
    """One step. If one fails or is over its limit, the others still run."""
    begun = time.perf_counter()
    print(f"{name} …", flush=True)
    try:
        STEPS[name](bench)
    except Exception as fault:  # whatever it is: the machine's time is short, and the other steps are worth having
        print(f"{name}: {type(fault).__name__}: {fault}", flush=True)
        bench.details.setdefault(name, {})["fault"] = f"{type(fault).__name__}: {fault}"
    shown = {key: bench.figures[key] for key in FIGURES if key in bench.figures}
    print(f"{name}: {time.perf_counter() - begun:.0f} s; so far {json.dumps(shown)}", flush=True)


def last_line(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """The figures, what each should be, and what they were taken on."""
    import torch

    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")}
    card = torch.cuda.get_device_name() if bench.device == "cuda" else "cpu"
    figures = {name: None if bench.figures.get(name) is None else round(bench.figures[name], 4) for name in FIGURES}
    mode = "rehearsal" if options.rehearse else "small" if options.small else "whole"
    return {
        **figures, "bars": FIGURES, "mode": mode, "device": card, "slots": options.slots, "seed": SEED,
        "date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), **versions, "cores": os.cpu_count(),
        "faults": {step: found["fault"][:300] for step, found in bench.details.items() if "fault" in found},
    }  # fmt: skip


if __name__ == "__main__":
    main()
