"""The engine against the plain stack: CPU seconds and wall seconds a trial, scores, ablation, arithmetic floor.

`python benchmarks/engine/run.py` writes REPORT.md beside this file; `--quick` runs 4 of the 12 configurations on fewer
rows, without the ablation. Both end with one JSON line. What is run stands in configurations.py; plain.py and ours.py
are the two sides, each in processes of its own, one thread each.

`--against FOLDER` compares this checkout with another one of autopeft instead, by turns in one run: did anything get
slower? (`git worktree add ../before COMMIT`, then `--quick --against ../before`.)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

from configurations import (  # noqa: E402
    ALL_LAYER_LORA,
    CONFIGURATIONS,
    EPOCHS,
    MEMORY_ROWS,
    MEMORY_TRIALS,
    QUICK,
    QUICK_ROWS,
    QUICK_VALIDATION_ROWS,
    SEED,
    TRAIN_ROWS,
    TWO_WORKERS,
)
from shared import minilm, shared  # noqa: E402

BARS = {
    "plain_over_ours": (8.0, "CPU seconds a trial, plain stack over ours, mixed space"),
    "all_layer_lora": (6.5, "all-layer LoRA alone"),
    "step_over_floor": (1.7, "step time over the arithmetic floor, all-layer LoRA (at most)"),
    "two_workers": (1.8, "two workers over one"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4 of the 12 configurations, fewer rows, no ablation")
    parser.add_argument("--report", type=Path, help="where it goes; REPORT.md here, for --quick the screen only")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout, in place of the plain stack")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each checkout, with --against")
    options = parser.parse_args()
    names = QUICK if options.quick else CONFIGURATIONS
    rows, scored = (QUICK_ROWS, QUICK_VALIDATION_ROWS) if options.quick else (TRAIN_ROWS, None)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="autopeft-engine-", ignore_cleanup_errors=True) as folder:
        job = {"model": minilm(), "names": list(names), "epochs": EPOCHS, **write_data(Path(folder), rows, scored)}
        if options.against:
            compare(job, Path(folder), options.against.resolve(), options.repeats)
            return
        measured = {**measure(job, folder, with_ablation=not options.quick), "rows": rows}
    figures = summarise(measured)
    report = write_report(measured, figures, (time.perf_counter() - started) / 60)
    print(report)
    path = options.report or (None if options.quick else HERE / "REPORT.md")
    if path is not None:
        path.write_text(report)
    keys = (*BARS, "score_difference")
    print(json.dumps({key: round(figures[key], 4) for key in keys}))


def measure(job: dict[str, Any], folder: str, *, with_ablation: bool) -> dict[str, Any]:
    """Everything that is run, one after the other."""
    say("ours")
    ours = run("ours.py", {**job, "folder": f"{folder}/ours"})
    job = {**job, "chosen": ours["chosen"]}
    say("plain stack")
    plain = run("plain.py", {**job, "folder": f"{folder}/plain", "bf16": False})
    check_same(plain, ours)
    half = None
    if ours["chosen"]["precision"] != "fp32":  # else this machine is slower in bf16
        say("plain stack in bf16, all-layer LoRA")
        half = run("plain.py", {**job, "folder": f"{folder}/plain-bf16", "bf16": True, "names": [ALL_LAYER_LORA]})
    ablation = ablate(job, folder, ours) if with_ablation else []
    say("arithmetic floor")
    floor = run("ours.py", {**job, "folder": f"{folder}/floor", "task": "floor"})
    say("two workers")
    pair = two_workers({**job, "names": list(TWO_WORKERS)}, folder)
    say("memory")
    tiny = {"train": job["tiny"], "validation": job["tiny"]}
    memory = run("ours.py", {**job, **tiny, "folder": f"{folder}/memory", "task": "memory"})
    return {"ours": ours, "plain": plain, "plain_bf16": half and half["trials"][0], "ablation": ablation, "floor": floor,
            "two_workers": pair, "memory": memory, "epochs": job["epochs"]}  # fmt: skip


def compare(job: dict[str, Any], folder: Path, other: Path, repeats: int) -> None:
    """Prints CPU seconds of each configuration here over those in another checkout; each counts at its fastest turn.

    The sides take turns, and which one begins alternates: the machine's speed wanders. Each side's ours.py is its own.
    """
    roots = {"here": HERE.parent.parent, "there": other}
    found: dict[str, list[Mapping[str, Any]]] = {side: [] for side in roots}
    for repeat in range(repeats):
        for side in sorted(roots, reverse=bool(repeat % 2)):
            say(f"{side}, turn {repeat + 1} of {repeats}")
            own = Started("ours.py", {**job, "folder": f"{folder}/{side}-{repeat}"}, roots[side]).result()
            job = {**job, "chosen": own["chosen"]}  # the first one's choice is all others', too
            found[side].append(own)
    ratios = {}
    print(
        f"CPU seconds a configuration, here and in {other}; the fastest of {repeats} turns, then all of them. {machine()}"
    )
    for index, name in enumerate(job["names"]):
        seconds = {side: [run["trials"][index]["cpu_seconds"] for run in runs] for side, runs in found.items()}
        accuracy = {side: runs[0]["trials"][index]["accuracy"] for side, runs in found.items()}
        ratios[name] = min(seconds["here"]) / min(seconds["there"])
        turns = "; ".join(f"{side} {', '.join(f'{value:.2f}' for value in seconds[side])}" for side in roots)
        both = f"accuracy {accuracy['here']:.4f} and {accuracy['there']:.4f}"
        print(f"  {name}: {ratios[name]:.3f} ({turns}; {both})")
    once = {side: min(run["once_cpu_seconds"] for run in runs) for side, runs in found.items()}
    whole = {
        side: sum(min(run["trials"][index]["cpu_seconds"] for run in runs) for index in range(len(job["names"])))
        for side, runs in found.items()
    }
    print(f"  once a worker: {once['here'] / once['there']:.3f} ({once['here']:.1f} and {once['there']:.1f})")
    figures = {"here_over_there": whole["here"] / whole["there"], "worst": max(ratios.values()),
               "once": once["here"] / once["there"]}  # fmt: skip
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


def say(text: str) -> None:
    print(f"… {text}", file=sys.stderr, flush=True)


def write_data(folder: Path, n_rows: int, n_scored: int | None) -> dict[str, str]:
    """Stratified training rows and the validation split of SST-2 or its first rows, as files that both sides read."""
    import pandas as pd
    from sklearn.model_selection import train_test_split

    source = shared() / "data" / "sst2"
    frame = pd.read_parquet(source / "train.parquet", columns=["text", "label"])
    rows, _ = train_test_split(frame, train_size=n_rows, stratify=frame["label"], random_state=SEED)
    rows.reset_index(drop=True).to_parquet(folder / "train.parquet")
    rows.iloc[:MEMORY_ROWS].reset_index(drop=True).to_parquet(folder / "tiny.parquet")
    scored = pd.read_parquet(source / "validation.parquet", columns=["text", "label"]).iloc[:n_scored]
    scored.to_parquet(folder / "validation.parquet")
    return {split: str(folder / f"{split}.parquet") for split in ("train", "validation", "tiny")}


class Started:
    """A side's process; `result` waits for it and reads its last line.

    Args:
        checkout: The one whose autopeft and whose script it runs.
    """

    def __init__(self, script: str, job: Mapping[str, Any], checkout: Path = HERE.parent.parent) -> None:
        root = str(checkout)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "TOKENIZERS_PARALLELISM": "false",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        }
        command = [sys.executable, str(checkout / "benchmarks" / "engine" / script), json.dumps(job)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.script = script

    def result(self) -> dict[str, Any]:
        out, err = self.process.communicate()
        if self.process.returncode != 0:
            sys.exit(f"{self.script} ended with {self.process.returncode}:\n{err[-4000:]}")
        return dict(json.loads(out.strip().splitlines()[-1]))


def run(script: str, job: Mapping[str, Any]) -> dict[str, Any]:
    return Started(script, job).result()


def ablate(job: Mapping[str, Any], folder: str, ours: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Each part switched off alone: (part, CPU seconds a trial, mean accuracy); the first row has all parts on."""
    precision, attention = ours["chosen"]["precision"], ours["chosen"]["attention"]
    switched: dict[str, Mapping[str, Any]] = {
        "length-sorted pools": {"pool": 1},
        "frozen prefix": {"setup": {"prefix_cache_bytes": 0}},
        "first token alone behind the last attention (all tokens)": {"all_tokens": True},
        "validation scored once at the end (at rungs too)": {"setup": {"score_rungs": True}},
        "dropout in what is added alone (in the frozen model too)": {"base_dropout": True},
    }
    if precision != "fp32":
        switched[f"{precision} (fp32 instead)"] = {"setup": {"precision": "fp32"}}
    other = "sdpa" if attention == "eager" else "eager"
    switched[f"{attention} attention ({other} instead)"] = {"setup": {"attention": other}}
    rows = [("nothing: all parts on", *means(ours["trials"]))]
    for number, (part, change) in enumerate(switched.items()):
        say(f"without {part}")
        # A folder of its own: nothing that another run has cached.
        rows.append((part, *means(run("ours.py", {**job, "folder": f"{folder}/without-{number}", **change})["trials"])))
    say("without resident base")
    alone = []
    for number, name in enumerate(job["names"]):
        own = run("ours.py", {**job, "names": [name], "folder": f"{folder}/alone-{number}"})
        alone.append({**own["trials"][0], "cpu_seconds": own["trials"][0]["cpu_seconds"] + own["once_cpu_seconds"]})
    rows.append(("resident base (a process a trial)", *means(alone)))
    return rows


def means(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Mean CPU seconds and mean accuracy."""
    n = len(rows)
    return sum(row["cpu_seconds"] for row in rows) / n, sum(row["accuracy"] for row in rows) / n


def two_workers(job: Mapping[str, Any], folder: str) -> float:
    """Trials an hour of two workers over one, each running the same list, from when both have loaded.

    Each has its own cache, empty at first, so that one worker and each of two do the same work.
    """

    def wall_seconds(workers: int) -> float:
        begin = Path(folder) / f"begin-{workers}"
        names = [f"{workers}-{worker}" for worker in range(workers)]
        ready = [Path(folder) / f"ready-{name}" for name in names]
        sides = [
            Started("ours.py", {**job, "folder": f"{folder}/{name}", "ready": str(path), "begin": str(begin)})
            for name, path in zip(names, ready, strict=True)
        ]
        while not all(path.exists() for path in ready) and all(side.process.poll() is None for side in sides):
            time.sleep(0.05)
        begin.touch()  # also for one that waits while another has failed: `result` says why
        return max(float(side.result()["wall_seconds"]) for side in sides)

    return 2 * wall_seconds(1) / wall_seconds(2)


def check_same(plain: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Both sides trained the same number of parameters, or the comparison is none."""
    for theirs, own in zip(plain["trials"], ours["trials"], strict=True):
        if (theirs["name"], theirs["trainable_parameters"]) != (own["name"], own["trainable_parameters"]):
            sys.exit(f"the sides differ: plain {theirs}, ours {own}")


def summarise(measured: Mapping[str, Any]) -> dict[str, float]:
    """The figures of the JSON line and some more.

    What a worker pays once is spread over the benchmark's twelve configurations: a short search.
    """
    import numpy as np
    from scipy import stats

    ours, plain = measured["ours"], measured["plain"]
    once = ours["once_cpu_seconds"] / len(CONFIGURATIONS)
    plain_cpu, ours_cpu = means(plain["trials"])[0], means(ours["trials"])[0] + once
    lora = {
        side: next(row for row in measured[side]["trials"] if row["name"] == ALL_LAYER_LORA)["cpu_seconds"]
        for side in ("plain", "ours")
    }
    differences = np.array(
        [own["accuracy"] - theirs["accuracy"] for own, theirs in zip(ours["trials"], plain["trials"], strict=True)]
    )
    half = stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences))
    first, last = measured["memory"]["peak_bytes"]
    return {
        "plain_over_ours": plain_cpu / ours_cpu,
        "all_layer_lora": lora["plain"] / (lora["ours"] + once),
        **(
            {"all_layer_lora_bf16": measured["plain_bf16"]["cpu_seconds"] / (lora["ours"] + once)}
            if measured["plain_bf16"]
            else {}
        ),
        "step_over_floor": measured["floor"]["ratio"],
        "two_workers": measured["two_workers"],
        "memory_growth": last / first,
        "score_difference": float(differences.mean()),
        "score_interval": float(half),
        "plain_cpu": plain_cpu,
        "ours_cpu": ours_cpu,
        "once": once,
    }


def write_report(measured: Mapping[str, Any], figures: Mapping[str, float], minutes: float) -> str:
    """The report, in Markdown."""
    ours, plain, floor = (measured[key] for key in ("ours", "plain", "floor"))
    count, epochs = len(ours["trials"]), measured["epochs"]
    step, share = floor["step_cpu_seconds"], floor["floor_seconds"]
    first, last = (size / 2**20 for size in measured["memory"]["peak_bytes"])
    base = measured["memory"]["base_bytes"] / 2**20
    lines = [
        "# The engine against the plain stack",
        "",
        (
            f"Written by `benchmarks/engine/run.py`: {count} of {len(CONFIGURATIONS)} configurations, MiniLM on "
            f"{measured['rows']:,} rows of SST-2, {epochs} epochs; {minutes:.0f} minutes. {machine()} "
            f"Ours chose {ours['chosen']['precision']} and {ours['chosen']['attention']} attention by measurement; the "
            "plain stack is in fp32, as it comes."
        ),
        "",
        "| | figure | bar |",
        "|---|---|---|",
        *(f"| {what} | {figures[key]:.2f} | {bar} |" for key, (bar, what) in BARS.items()),
        (
            f"| peak memory after {MEMORY_TRIALS} trials of LoRA over that after a tenth of them | "
            f"{figures['memory_growth']:.3f} | no growth |"
        ),
        (
            f"| accuracy, ours less plain: mean of {count}, 95 % interval (paired, t) | "
            f"{figures['score_difference']:+.4f} ± {figures['score_interval']:.4f} | holds 0 |"
        ),
        *(
            [f"| all-layer LoRA where the plain stack is in bf16, too | {figures['all_layer_lora_bf16']:.2f} | |"]
            if "all_layer_lora_bf16" in figures
            else []
        ),
        "",
        "| configuration | trainable | plain CPU s | ours CPU s | ratio | plain accuracy | ours |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {own['name']} | {own['trainable_parameters']:,} | {theirs['cpu_seconds']:.1f} | "
            f"{own['cpu_seconds']:.1f} | {theirs['cpu_seconds'] / own['cpu_seconds']:.1f} | "
            f"{interval(theirs['accuracy'], theirs['rows'])} | {interval(own['accuracy'], theirs['rows'])} |"
            for theirs, own in zip(plain["trials"], ours["trials"], strict=True)
        ),
        "",
        "Accuracies with 95 % intervals over the validation rows, one seed.",
        "",
        (
            f"A trial, CPU: plain {figures['plain_cpu']:.1f} s, ours {figures['ours_cpu']:.1f} s, of which "
            f"{figures['once']:.1f} s are what a worker pays once ({ours['once_cpu_seconds']:.1f} s: imports, model, "
            f"data, measuring precision), spread over {len(CONFIGURATIONS)} trials. A trial, wall: plain "
            f"{plain['wall_seconds'] / count:.1f} s, ours {ours['wall_seconds'] / count:.1f} s. The first trial of ours "
            "that needs a cached prefix pays for it. Neither side counts the driver's process and Ray's own."
        ),
        "",
        *ablation_table(measured["ablation"]),
        "## Arithmetic",
        "",
        f"A step of all-layer LoRA takes {1000 * step:.0f} ms of CPU; the model's {floor['gflop_a_step']:.1f} GFLOP on the "
        f"{floor['tokens_a_step']:.0f} tokens that are real, as transformers runs it, take {1000 * share:.0f} ms at the "
        "rate of bare products, run between the steps; these reach "
        + ", ".join(f"{shape} {rate:.0f}" for shape, rate in floor["gflop_a_second"].items())
        + " GFLOP/s.",
        "",
        "## Memory",
        "",
        (
            f"The worker's peak is {first:.0f} MiB after {MEMORY_TRIALS // 10} trials of all-layer LoRA and {last:.0f} MiB "
            f"after {MEMORY_TRIALS}; the base is {base:.0f} MiB."
        ),
    ]
    return "\n".join(lines) + "\n"


def ablation_table(rows: Sequence[tuple[str, float, float]]) -> list[str]:
    """Its section of the report; nothing where it was left out."""
    if not rows:
        return []
    return [
        "## Each part switched off alone",
        "",
        "| without | CPU s a trial | times as much | mean accuracy |",
        "|---|---|---|---|",
        *(f"| {part} | {cpu:.2f} | {cpu / rows[0][1]:.2f} | {score:.3f} |" for part, cpu, score in rows),
        "",
    ]


def interval(accuracy: float, rows: int) -> str:
    """An accuracy with the half-width of its 95 % interval (normal) over so many rows."""
    return f"{accuracy:.3f} ± {1.96 * (accuracy * (1 - accuracy) / rows) ** 0.5:.3f}"


def machine() -> str:
    """What it ran on, with which versions."""
    import torch
    import transformers

    return (
        f"{time.strftime('%Y-%m-%d')}, {processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the "
        f"end; one thread a process; Python {platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}; seed {SEED}."
    )


def processor() -> str:
    """The CPU's name, where the system tells."""
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    except OSError:
        names = []
    return names[0].partition(": ")[2] if names else platform.machine()


if __name__ == "__main__":
    main()
