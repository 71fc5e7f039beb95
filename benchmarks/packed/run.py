"""Packed trials against one trial after another, and against several processes, on one GPU.

`python benchmarks/packed/run.py` trains 16 LoRA trials of a BERT-base (110 M parameters, random weights: speed does not
depend on them) on SST-2 at several lengths of input, one after another, in packs of 2 to 16, and in 2 to 8 processes
that share the GPU; then 16 trials of MiniLM's real weights both ways, to compare their scores. Writes REPORT.md beside
this file, and ends with one JSON line. Needs a GPU; `--device cpu` is for trying it out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from shared import minilm, shared  # noqa: E402

TRIALS = 16
PACKS = (2, 4, 8, 16)
PROCESSES = (2, 4, 8)
SENTENCES = (1, 4, 16)  # joined to one input
SEED, BATCH_SIZE, TRAIN_ROWS, VALIDATION_ROWS = 0, 32, 1500, 872
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
EVERYWHERE = ["query", "key", "value", "output", "up", "down"]


def trials(n: int) -> list[Any]:
    """LoRA through all layers: four ranks, on query and value or on every module, learning rates over a decade."""
    from autopeft.trial import Trial, derive_seed

    out = []
    for number in range(n):
        lr = 3e-4 * 10 ** (number % 8 / 8)
        own = {
            "rank": (4, 8, 16, 32)[number % 4],
            "modules": (["query", "value"], EVERYWHERE)[number // 4 % 2],
            "lr": lr,
        }
        params = {"method": "lora", **{f"lora.{key}": value for key, value in own.items()}, "head.lr": 1e-3}
        out.append(Trial(number, params, derive_seed(SEED, number)))
    return out


# ── one process ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Conversation:
    """A search that asks for fixed trials, stops none, and keeps their results."""

    def __init__(self, some: Sequence[Any]) -> None:
        self.left, self.results = list(reversed(some)), {}

    def ask(self) -> Any:
        return self.left.pop() if self.left else None

    def prepare(self, slots: int) -> None:
        pass

    def is_out_of_time(self) -> bool:
        return False

    def report(self, trial: Any, report: Any) -> bool:
        return False

    def tell(self, result: Any) -> None:
        from autopeft.trial import Status

        if result.status is not Status.COMPLETE:
            sys.exit(f"trial {result.trial.number}: {result.status}: {result.error}")
        self.results[result.trial.number] = result


class Resident:
    """A make_evaluate whose worker is loaded once, for all that this process times."""

    def __init__(self, setup: Any) -> None:
        from autopeft.training.loop import Worker

        self.worker = Worker(setup)

    def __call__(self, should_end: Any) -> Any:
        return self.worker.evaluate

    def pack(self, should_end: Any) -> Any:
        from autopeft.training.pack import Pack

        return Pack(self.worker)


def timed(resident: Resident, slots: int, some: Sequence[Any]) -> dict[str, Any]:
    """The product's executor over some trials: wall seconds, scores by number, peak memory."""
    import torch

    from autopeft.executors.packed import Packed

    is_gpu = resident.worker.device.type == "cuda"
    if is_gpu:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    conversation, start = Conversation(some), time.perf_counter()
    Packed(slots).run(conversation, resident)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "accuracy": {n: result.metrics["accuracy"] for n, result in sorted(conversation.results.items())},
        "loss": {n: result.metrics["train_loss"] for n, result in sorted(conversation.results.items())},
        "peak_memory_mib": torch.cuda.max_memory_allocated() / 2**20 if is_gpu else None,
    }


def child(job: Mapping[str, Any]) -> dict[str, Any]:
    """What one process runs: `slots` in turn, `repeats` times, over the trials `numbers`.

    Precision and attention are measured for one trial at a time and for a pack, where the job does not give them.
    """
    from autopeft.training.measure import choose
    from autopeft.training.setup import Setup

    setup, some = Setup.of(**job["setup"]), trials(max(job["numbers"]) + 1)
    chosen, candidates = dict(job.get("chosen", {})), {}
    for kind, pack in (("alone", 1), ("packed", TRIALS)):
        if kind not in chosen:
            choice = choose(setup, "auto", "auto", some[0].params, pack)
            chosen[kind] = {"precision": choice.precision, "attention": choice.attention}
            candidates[kind] = choice.candidates
    alone = Resident(setup.but(**chosen["alone"]))
    packed = alone if chosen["packed"] == chosen["alone"] else Resident(setup.but(**chosen["packed"]))
    residents = {slots: alone if slots == 1 else packed for slots in job["slots"]}
    for slots, resident in residents.items():  # what is slow the first time: kernels, buffers
        whole = resident.worker.setup
        resident.worker.setup = replace(whole, epochs=None, steps=3)
        timed(resident, slots, some[:slots])
        resident.worker.setup = whole
    if "begin" in job:
        Path(job["ready"]).touch()
        while not Path(job["begin"]).exists():
            time.sleep(0.01)
    numbers = job["numbers"]
    runs = [
        {"slots": slots, **timed(resident, slots, [some[number] for number in numbers])}
        for _ in range(job["repeats"])
        for slots, resident in residents.items()
    ]
    return {"runs": runs, "chosen": chosen, "candidates": candidates}


# ── all of it ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Started:
    """A process of this benchmark."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        root = os.pathsep.join([str(HERE.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "run.py"), "--child", json.dumps(job)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **quiet, "PYTHONPATH": root},
        )  # fmt: skip

    def result(self) -> dict[str, Any]:
        out, err = self.process.communicate()
        if self.process.returncode != 0:
            sys.exit(f"a process ended with {self.process.returncode}:\n{err[-4000:]}")
        return dict(json.loads(out.strip().splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="where")
    parser.add_argument("--model", help="folder of a pretrained text encoder, in place of MiniLM")
    parser.add_argument("--steps", type=int, default=30, help="optimiser steps of a trial where speed is measured")
    parser.add_argument("--epochs", type=int, default=2, help="of a trial where scores are compared")
    parser.add_argument(
        "--repeats", type=int, default=2, help="of each measurement at the first length; once at others"
    )
    parser.add_argument("--report", type=Path, default=HERE / "REPORT.md", help="where it goes")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(json.loads(options.child))))
        return
    import torch

    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; --device cpu tries the benchmark out")
    with tempfile.TemporaryDirectory(prefix="autopeft-packed-") as folder:
        measured = measure(Path(folder), options)
    report = render(measured, options)
    print(report)
    options.report.write_text(report)
    print(json.dumps(summary(measured)))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    pretrained = options.model or minilm()
    base = write_base(folder / "base", pretrained, {} if options.device != "cpu" else {"num_hidden_layers": 2})
    out: dict[str, Any] = {"lengths": {}, "processes": {}}
    chosen: dict[str, Any] = {}
    for sentences in SENTENCES:
        data = write_data(folder / f"data-{sentences}", sentences)
        setup = make_setup(base, data, folder / f"run-{sentences}", options, steps=options.steps, epochs=None)
        is_first = sentences == SENTENCES[0]
        say(f"one after another and packed, {sentences} sentences an input")
        job = {"setup": setup, "numbers": list(range(TRIALS)), "chosen": chosen}
        job["slots"] = [1, *(PACKS if is_first else PACKS[1::2])]
        found = Started({**job, "repeats": options.repeats if is_first else 1}).result()
        out["lengths"][sentences] = {**found, "tokens": tokens(setup)}
        say(json.dumps([(run["slots"], round(run["seconds"], 2)) for run in found["runs"]]))
        if is_first:
            out["chosen"], out["candidates"] = found["chosen"], found["candidates"]
            chosen = found["chosen"]
            say(json.dumps([chosen, found["candidates"]]))
            for n in PROCESSES:
                out["processes"][n] = processes(n, setup, chosen, folder / f"processes-{n}")
                say(f"{n} processes: {out['processes'][n]:.2f} s")
    say("scores, on real weights")
    data = write_data(folder / "data-scores", 1)
    for precision in ("fp32", "bf16"):
        setup = make_setup(pretrained, data, folder / f"scores-{precision}", options, epochs=options.epochs)
        both = {key: {"precision": precision, "attention": "sdpa"} for key in ("alone", "packed")}
        job = {"setup": setup, "numbers": list(range(TRIALS)), "slots": [1, TRIALS], "repeats": 2, "chosen": both}
        out[precision] = Started(job).result()["runs"]
    return out


def processes(n: int, setup: Mapping[str, Any], chosen: Mapping[str, Any], folder: Path) -> float:
    """Wall seconds of the trials over several processes, each with its share, one after another, all on one GPU."""
    folder.mkdir()
    started = []
    for index in range(n):
        files = {"ready": str(folder / f"ready-{index}"), "begin": str(folder / "begin")}
        own = dict(setup) | {"folder": str(folder / f"run-{index}"), "cache": str(folder / f"cache-{index}")}
        share = {"numbers": list(range(index, TRIALS, n)), "slots": [1], "repeats": 1}
        job = {"setup": own, "chosen": chosen, **share, **files}
        started.append(Started(job))
    while len(list(folder.glob("ready-*"))) < n:
        if any(process.process.poll() for process in started):
            break
        time.sleep(0.05)
    (folder / "begin").touch()
    return max(process.result()["runs"][0]["seconds"] for process in started)


def make_setup(model: str, data: Mapping[str, str], folder: Path, options: argparse.Namespace, **more: Any) -> Any:
    return {
        "model": model, "task": "text_classification", "data": {**data, "text": "text", "label": "label"},
        "folder": str(folder), "cache": str(folder / "cache"), "device": options.device, "batch_size": BATCH_SIZE,
        "micro_batch_size": BATCH_SIZE, "max_length": 512, "keep": "none", "seed": SEED, **more,
    }  # fmt: skip


def write_base(folder: Path, tokenizer: str, smaller: Mapping[str, int]) -> str:
    """BERT-base's shape with random weights, and the tokenizer of another model."""
    import torch
    import transformers

    torch.manual_seed(SEED)
    own = transformers.AutoTokenizer.from_pretrained(tokenizer)
    config = transformers.BertConfig(vocab_size=len(own), **{**BASE, **smaller})
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    own.save_pretrained(folder)
    return str(folder)


def write_data(folder: Path, sentences: int) -> dict[str, str]:
    """Rows of SST-2, or several joined to one, with the label of the first."""
    import pandas as pd

    folder.mkdir()
    paths = {}
    for split, n in (("train", TRAIN_ROWS), ("validation", VALIDATION_ROWS)):
        frame = pd.read_parquet(shared() / "data" / "sst2" / f"{split}.parquet", columns=["text", "label"])
        rows = frame.sample(n, random_state=SEED).reset_index(drop=True)
        texts = [" ".join(rows["text"][(at + k) % n] for k in range(sentences)) for at in range(n)]
        paths[split] = str(folder / f"{split}.parquet")
        pd.DataFrame({"text": texts, "label": rows["label"]}).to_parquet(paths[split])
    return {**paths, "test": paths["validation"]}


def tokens(setup: Mapping[str, Any]) -> float:
    """Mean length of an input."""
    from autopeft.training.data import prepare
    from autopeft.training.setup import Setup

    return float(prepare(Setup.of(**setup)).splits["train"].lengths.mean())


def say(text: str) -> None:
    print(f"… {text}", file=sys.stderr, flush=True)


# ── the report ──────────────────────────────────────────────────────────────────────────────────────────────────────


def ratios(runs: Sequence[Mapping[str, Any]], slots: int) -> list[float]:
    """Seconds one after another over seconds packed, by repeat."""
    alone, packed = ([run["seconds"] for run in runs if run["slots"] == s] for s in (1, slots))
    return [a / b for a, b in zip(alone, packed, strict=True)]


def differences(runs: Sequence[Mapping[str, Any]], one: int, other: int, key: str = "accuracy") -> list[float]:
    """Of each trial, between two runs."""
    return [runs[other][key][n] - runs[one][key][n] for n in runs[one][key]]


def summary(measured: Mapping[str, Any]) -> dict[str, float]:
    first = measured["lengths"][SENTENCES[0]]["runs"]
    alone = statistics.median(run["seconds"] for run in first if run["slots"] == 1)
    return {
        "packed_over_sequential": round(statistics.median(ratios(first, TRIALS)), 3),
        "processes_over_sequential": round(max(alone / s for s in measured["processes"].values()), 3),
        "score_difference": round(statistics.mean(differences(measured["bf16"], 0, 1)), 4),
    }


def render(measured: Mapping[str, Any], options: argparse.Namespace) -> str:
    import torch
    import transformers

    name = torch.cuda.get_device_name() if options.device != "cpu" else platform.processor()
    chosen = measured["chosen"]
    alone, packed = (f"{chosen[kind]['precision']} with {chosen[kind]['attention']}" for kind in ("alone", "packed"))
    about = (
        f"`python benchmarks/packed/run.py`, {time.strftime('%Y-%m-%d')}: {name}, {os.cpu_count()} CPUs, torch "
        f"{torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}. {TRIALS} "
        f"trials of LoRA through all layers of a BERT-base, batches of {BATCH_SIZE}, {options.steps} steps, then "
        f"{VALIDATION_ROWS} rows scored. As measured there, one after another in {alone} attention, packed in {packed}. "
        "Wall seconds, workers loaded and warm; the median, and the range where there are repeats."
    )
    head = "| tokens an input | trials a pass | seconds of 16 trials | times as fast as one after another | peak MiB |"
    lines = ["# Packed trials on one GPU", "", about, "", head, "|---|---|---|---|---|"]
    for found in measured["lengths"].values():
        for slots in dict.fromkeys(run["slots"] for run in found["runs"]):
            own = [run for run in found["runs"] if run["slots"] == slots]
            seconds, times = [run["seconds"] for run in own], ratios(found["runs"], slots)
            memory = own[0]["peak_memory_mib"]
            lines.append(
                f"| {found['tokens']:.0f} | {slots} | {spread(seconds)} | {spread(times)} | "
                f"{'–' if memory is None else f'{memory:,.0f}'} |"
            )
    first = measured["lengths"][SENTENCES[0]]["runs"]
    one = statistics.median(run["seconds"] for run in first if run["slots"] == 1)
    lines += ["", "Several processes on the same GPU, one trial after another in each (once each):", ""]
    lines += ["| processes | seconds of 16 trials | times as fast as one |", "|---|---|---|"]
    lines += [f"| {n} | {seconds:.1f} | {one / seconds:.2f} |" for n, seconds in measured["processes"].items()]
    lines += [
        "",
        "Real weights (MiniLM, SST-2), the same 16 trials both ways; difference of each trial's accuracy:",
        "",
    ]
    lines += ["| | mean difference | largest | largest of train loss |", "|---|---|---|---|"]
    for precision in ("fp32", "bf16"):
        runs = measured[precision]
        for text, one, other in (("packed less alone", 0, 1), ("alone, twice", 0, 2), ("packed, twice", 1, 3)):
            found, losses = differences(runs, one, other), differences(runs, one, other, "loss")
            lines.append(
                f"| {precision}, {text} | {statistics.mean(found):+.4f} | {max(map(abs, found)):.4f} | "
                f"{max(map(abs, losses)):.2g} |"
            )
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float]) -> str:
    """The median, and the range where there are several."""
    middle = f"{statistics.median(values):.2f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f}–{max(values):.2f})"


if __name__ == "__main__":
    main()
