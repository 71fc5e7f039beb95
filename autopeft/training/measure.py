"""Measured choices: precision and attention by one step of each candidate, and what a trial costs."""

from __future__ import annotations

import contextlib
import itertools
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from autopeft.errors import EnvironmentFault, UsageError
from autopeft.tasks import Ragged, Split
from autopeft.training import pace
from autopeft.training.answers import score_batches
from autopeft.training.batches import endless, order, pick_split
from autopeft.training.course import total_steps
from autopeft.training.faults import explain, is_out_of_memory, is_trials_own, peak_memory_bytes
from autopeft.training.loop import Worker
from autopeft.training.model import NoSuchAttention, meta_model
from autopeft.training.network import Network
from autopeft.training.precision import PRECISIONS
from autopeft.training.setup import Setup
from autopeft.training.stack import Member, Stack
from autopeft.trial import Trial

logger = logging.getLogger(__name__)

# Largest difference that a candidate's logits may have from those of fp32 eager, as a share of the largest logit. bf16
# has 8 bits of mantissa; this is its rounding error after a dozen layers.
TOLERANCE = 0.05
STEPS = 4  # measured for a cost
CHOICE_STEPS, ROUNDS = 3, 2  # measured for a choice: each round runs all candidates; each step counts at its fastest
PRODUCT = 512  # rows, inner size and columns of the product that shows whether bf16 is fast here
SAMPLE = 512  # rows of a split that a cost is measured on
# On a CPU so many rows as pass in this time, but not fewer: what is measured takes minutes, whatever the model.
PASS_SECONDS, FEWEST = 0.5, 2
SHOWING = 64  # most rows that show how long one takes
LONG = 3.0  # seconds after which no other round or step follows: those that take long vary little


@dataclass(frozen=True)
class Choice:
    """A measured choice. It is in the ledger's first line; resume and confirm use it again.

    Attributes:
        precision, attention: The fastest candidate that agrees with fp32 eager.
        micro_batch_size: Rows of one forward pass.
        layout: "padded" or "flat"; it follows from the device, unless the config names it.
        candidates: For each: seconds a step (CPU seconds on a CPU; None if the candidate does not agree, or a step of it
            failed), and the largest difference of logits as a share of the largest logit. There is no bf16 candidate if
            bf16 is slow.
    """

    precision: str
    attention: str
    micro_batch_size: int
    layout: str = "padded"
    candidates: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def choose(setup: Setup, precision: str, attention: str, params: Mapping[str, Any], pack: int = 1) -> Choice:
    """Measures a step of each candidate if the config says `auto`; keeps what the user fixed.

    Args:
        setup: Setup of the search; its precision and attention are not read.
        precision, attention: A name, or "auto".
        params: A configuration that trains through all blocks, as most steps of the search do.
        pack: Number of trials in a measured step, if `params` can be packed.

    Raises:
        UsageError: The model does not take this data, or has no such attention.
        EnvironmentFault: Memory ran out.
    """
    if attention not in ("auto", "eager"):  # fail before anything is trained
        meta_model(setup.but(attention=attention).model, setup.task.make().auto_class, 0, with_attention=True)
    precisions = (
        (PRECISIONS if is_bf16_fast(setup.machine.device) else ("fp32",)) if precision == "auto" else (precision,)
    )
    attentions = ("eager", "sdpa") if attention == "auto" else (attention,)
    if len(precisions) * len(attentions) == 1:
        return Choice(precisions[0], attentions[0], setup.machine.micro_batch_size, setup.machine.layout)
    rows = quick_rows(_with(setup, ("fp32", attentions[-1])), params)
    exact: np.ndarray | None = None
    differences: dict[tuple[str, str], float] = {}
    for name in itertools.product(dict.fromkeys(("fp32", *precisions)), attentions):
        if name[0] not in precisions and exact is not None:
            continue  # if fp32 is no candidate, it runs once, as the reference
        try:
            logits = _logits(_with(setup, name), params, rows)
        except NoSuchAttention:
            continue
        except UsageError as fault:
            if exact is None:
                raise
            _leave_out(name, fault)
            continue
        exact = logits if exact is None else exact
        if name[0] in precisions:
            differences[name] = float(np.abs(logits - exact).max() / np.abs(exact).max())
    agree = [name for name, difference in differences.items() if difference <= TOLERANCE]
    agree = agree or list(differences)  # a precision that the user fixed is kept, even if it differs more
    seconds = _fastest_steps(setup, params, agree, pack, rows)
    best = min(seconds, key=seconds.__getitem__)
    candidates = tuple(
        {"precision": name[0], "attention": name[1], "step_seconds": seconds.get(name), "difference": difference}
        for name, difference in differences.items()
    )
    return Choice(*best, setup.machine.micro_batch_size, setup.machine.layout, candidates)


def _fastest_steps(
    setup: Setup, params: Mapping[str, Any], names: Sequence[tuple[str, str]], pack: int, rows: int
) -> dict[tuple[str, str], float]:
    """Measures the mean seconds of a step of each candidate, each step at its fastest.

    Candidates take turns, so that a slow phase of the machine does not decide: its speed can halve within a minute.

    Args:
        rows: Most rows of the steps, of all trials of a pack together.
    """
    found: dict[tuple[str, str], list[list[float]]] = {name: [] for name in names}
    start = time.process_time()
    for index in range(ROUNDS):
        if index and time.process_time() - start > LONG * len(names):
            break
        for name in list(found):
            worker = Worker(_with(setup, name).but(prefix_cache_bytes=0))
            if rows < pack * setup.train.batch_size:
                worker.data = replace(worker.data, splits=_some(worker, max(FEWEST, rows // pack)))
            # CPU seconds on a CPU, so that other processes of the machine do not change the choice.
            clock = time.process_time if worker.device.type == "cpu" else time.perf_counter
            try:
                with taken(worker, "train"):
                    found[name].append(_step_times(worker, params, pack, clock))
            except UsageError as fault:
                del found[name]
                if not found:
                    raise
                _leave_out(name, fault)
    return {name: statistics.mean(map(min, zip(*rounds, strict=True))) for name, rounds in found.items()}


def _leave_out(name: tuple[str, str], fault: UsageError) -> None:
    logger.warning("%s with attention %s is left out, as the model or this device does not take it: %s", *name, fault)


def _step_times(worker: Worker, params: Mapping[str, Any], pack: int, clock: Callable[[], float]) -> list[float]:
    """Measures training steps of a configuration, or of a pack of it under several seeds, as they run in a search."""
    trials = [Trial(number, params, worker.setup.seed + number) for number in range(pack)]
    members = [member for trial in trials if pack > 1 and (member := Member.of(worker, trial)) is not None]
    if members:
        static = pace.of_pack(worker, members, CHOICE_STEPS, clock)
        stack = Stack(worker, members, pack)
        return static or [*_timed(worker, (stack.step() for _ in range(CHOICE_STEPS + 1)), clock)][1:]
    network = worker.network(trials[0])
    static = pace.of_trial(network, CHOICE_STEPS, clock)
    return static or [*_timed(worker, worker.train(network, worker.setup.seed, CHOICE_STEPS + 1), clock)][1:]


def _logits(setup: Setup, params: Mapping[str, Any], most_rows: int) -> np.ndarray:
    """Computes the logits of some validation rows, before any training step."""
    worker = Worker(setup.but(prefix_cache_bytes=0))
    lengths = worker.data.splits["validation"].lengths
    rows = np.arange(min(most_rows, len(score_batches(lengths, worker.base)[0])))
    with taken(worker, "validation"), torch.no_grad():
        network = worker.network(Trial(0, params, setup.seed))
        network.eval()
        logits: np.ndarray = network.logits("validation", rows).float().cpu().numpy()
    return logits


@contextlib.contextmanager
def taken(worker: Worker, split: str) -> Iterator[None]:
    """Guards the first passes of a model over its data. An error there means that the two do not fit together.

    Raises:
        UsageError: The model does not take these rows.
        EnvironmentFault: Memory ran out.
    """
    try:
        yield
    except Exception as fault:
        if isinstance(fault, (UsageError, EnvironmentFault)) or not is_trials_own(fault):
            raise
        model, rows = worker.setup.model.path, _shapes(worker.data.splits[split])
        if is_out_of_memory(fault):
            raise EnvironmentFault(
                f"memory ran out in the first passes of {model} over {split} ({rows}): set training.micro_batch_size or "
                f"training.max_length lower. {explain(fault)}"
            ) from fault
        raise UsageError(
            f"the model {model} does not take the rows of {split} ({rows}): {explain(fault)}. Look at training.max_length "
            "for texts, at data.image_size and the channels for pictures. AUTOPEFT_DEBUG=1 shows where"
        ) from fault


def _shapes(split: Split) -> str:
    """Describes a row: `input_ids up to 600`, `pixel_values 3 × 64 × 64`."""
    parts = []
    for name, column in split.inputs.items():
        if isinstance(column, Ragged):
            parts.append(f"{name} up to {int(split.lengths.max())}")
        else:
            parts.append(" ".join([name, " × ".join(map(str, column.shape[1:]))]).strip())
    return ", ".join(parts)


def _with(setup: Setup, name: tuple[str, str]) -> Setup:
    return setup.but(precision=name[0], attention=name[1])


def is_bf16_fast(device: str) -> bool:
    """Whether a product is faster in bf16 than in fp32. A CPU without bf16 instructions takes three times as long."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.ones(PRODUCT, PRODUCT, dtype=dtype, device=device) for _ in range(2))
        seconds[dtype] = min(_seconds_of(lambda a=a, b=b: (a @ b)[0, 0].item()) for _ in range(8))  # type: ignore[misc]
    return seconds[torch.bfloat16] < seconds[torch.float32]


def _seconds_of(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def clock_of(worker: Worker) -> Callable[[], float]:
    """Returns a worker's clock: CPU time on one CPU thread, so that other processes do not count; else wall time."""
    alone = worker.device.type == "cpu" and worker.setup.machine.threads == 1
    return time.process_time if alone else time.perf_counter


def step_seconds(worker: Worker, network: Network, steps: int) -> list[float]:
    """Measures the seconds of each of some training steps, of fewer if they are slow. The first one is a warm-up."""
    clock, out = clock_of(worker), list[float]()
    for seconds in _timed(worker, worker.train(network, worker.setup.seed, steps + 1), clock):
        out.append(seconds)
        if len(out) > 1 and sum(out) > LONG:
            break
    return out


def _timed(worker: Worker, steps: Iterator[Any], clock: Callable[[], float]) -> Iterator[float]:
    """Yields the seconds of each step, by a clock."""
    last = clock()
    for _ in steps:
        if worker.device.type == "cuda":
            torch.cuda.synchronize(worker.device)
        now = clock()
        yield now - last
        last = clock()


@dataclass(frozen=True)
class Cost:
    """Cost of one trial of a configuration, from a few measured steps.

    Attributes:
        method: The configuration's recipe.
        seconds: Time for attaching, training and scoring, without building caches.
        cache_seconds: Time for building caches that no earlier configuration built: once a search, not once a trial.
        peak_memory_bytes: Peak on the device, the base included. None on a CPU, where only the peak of the whole
            process is known.
    """

    method: str
    seconds: float
    cache_seconds: float
    peak_memory_bytes: int | None


def costs(setup: Setup, members: Sequence[Mapping[str, Any]]) -> list[Cost]:
    """Measures a few steps of each configuration and the scoring of some rows, and scales them up to a whole trial.

    Args:
        setup: Has a cache folder of its own, as the caches written there hold some rows only.
        members: Configurations, in the order in which a search would ask for them.
    """
    rows = quick_rows(setup, members[0]) if members else SAMPLE
    worker = Worker(setup)
    whole = {name: int(split.lengths.sum()) for name, split in worker.data.splits.items()}
    lengths = worker.data.splits["train"].lengths
    steps, a_step = (
        total_steps(setup, len(lengths)),
        _units(lengths, order(lengths, setup.train.batch_size, setup.seed, 0)),
    )
    some = _some(worker, rows)
    worker.data = replace(worker.data, splits=some)
    parts = {name: int(split.lengths.sum()) / whole[name] for name, split in some.items()}
    worker.prefix.parts = parts  # so that the bound holds for the whole splits
    passes = 1 + (len(setup.train.rungs) if setup.train.score_rungs else 0)
    out = []
    for params in members:
        if worker.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(worker.device)
        try:
            attaching, building, network = _attach_seconds(worker, params)
            # Each step counts at its fastest of some rounds, as in `choose`.
            seconds, batches = _steps_of(worker, network)
            scoring = _score_seconds(worker, network) / parts["validation"]
        except Exception as fault:  # trials of this configuration will fail in the same way; the plan goes on
            if not is_trials_own(fault):
                raise
            print(f"{params['method']}: not measured: {explain(fault)}", file=sys.stderr)
            continue
        # Batches differ in length: a step's time is in proportion to its tokens.
        step = seconds * a_step / _units(some["train"].lengths, batches)
        memory = peak_memory_bytes(worker.device) if worker.device.type == "cuda" else None
        cached = max(building - attaching, 0.0) / min(parts.values())
        out.append(Cost(str(params["method"]), attaching + step * steps + scoring * passes, cached, memory))
    return out


def _steps_of(worker: Worker, network: Network) -> tuple[float, list[np.ndarray]]:
    """Measures a step, at its fastest of some rounds. Returns its seconds, and the batches of which it is the mean."""
    static = pace.of_trial(network, ROUNDS, clock_of(worker))
    if static is not None:
        return min(static), [pace.middle_batch(worker)]
    rounds = _in_rounds(lambda: step_seconds(worker, network, STEPS)[1:], clock_of(worker))
    lengths, setup = worker.data.splits["train"].lengths, worker.setup
    n_steps = min(map(len, rounds))
    batches = list(islice(endless(lengths, setup.train.batch_size, setup.seed), 1 + n_steps))[1:]
    return statistics.mean(min(own[index] for own in rounds) for index in range(n_steps)), batches


def _some(worker: Worker, rows: int) -> dict[str, Split]:
    """Returns some rows of each split but the test."""
    splits = worker.data.splits.items()
    return {name: some_rows(split, rows, worker.setup.seed) for name, split in splits if name != "test"}


def quick_rows(setup: Setup, params: Mapping[str, Any]) -> int:
    """Returns how many rows pass a configuration in PASS_SECONDS of a CPU, FEWEST to SAMPLE; SAMPLE on a GPU."""
    if setup.machine.device != "cpu":
        return SAMPLE
    try:
        worker = Worker(setup.but(prefix_cache_bytes=0))
        clock, most = clock_of(worker), min(SHOWING, len(worker.data.splits["validation"]))
        network = worker.network(Trial(0, params, setup.seed))
        network.eval()
        n_rows, seconds = 1, 0.0
        with torch.no_grad():
            network.logits("validation", np.arange(n_rows))  # the first pass is slower
            while n_rows < most and seconds < PASS_SECONDS / 4:
                n_rows = min(2 * n_rows, most)
                start = clock()
                network.logits("validation", np.arange(n_rows))
                seconds = clock() - start
    except Exception as fault:  # of the configuration, or an attention that the model lacks: said when that is measured
        if not is_trials_own(fault) and not isinstance(fault, NoSuchAttention):
            raise
        return SAMPLE
    return int(np.clip(n_rows * PASS_SECONDS / max(seconds, 1e-9), FEWEST, SAMPLE))


def _in_rounds(measured: Callable[[], Any], clock: Callable[[], float]) -> list[Any]:
    """Measures once in each of ROUNDS, or in one alone if it is LONG."""
    start, found = clock(), [measured()]
    while len(found) < ROUNDS and clock() - start < LONG:
        found.append(measured())
    return found


def _attach_seconds(worker: Worker, params: Mapping[str, Any]) -> tuple[float, float, Network]:
    """Measures seconds of attaching, with the caches built and with building them first. Returns the network, too."""
    clock, seconds = clock_of(worker), []
    for _ in range(1 + ROUNDS):
        start = clock()
        network = worker.network(Trial(0, params, worker.setup.seed))
        seconds.append(clock() - start)
    return min(seconds[1:]), seconds[0], network


def _score_seconds(worker: Worker, network: Network) -> float:
    """Measures the scoring of the validation rows, at its fastest of some rounds."""
    clock = clock_of(worker)

    def scored() -> float:
        start = clock()
        worker.scores(network, "validation")
        return clock() - start

    return float(min(_in_rounds(scored, clock)))


def some_rows(split: Split, most: int, seed: int) -> Split:
    """Returns at most `most` rows of a split, drawn by seed."""
    if len(split) <= most:
        return split
    rows = np.sort(np.random.default_rng(seed).choice(len(split), most, replace=False))
    return pick_split(split, rows)


def _units(lengths: np.ndarray, batches: Sequence[np.ndarray]) -> float:
    """Returns the mean number of tokens of a batch, padding included."""
    return float(np.mean([lengths[rows].max() * len(rows) for rows in batches]))
