"""One trial on a resident base: attach, train, score, in one straight loop. The base is loaded once a worker.

All randomness comes from the trial's seed: the head, the adapters, the order of the rows, the dropout. The frozen
model stays in evaluation mode, so its own dropout is off. Only the modules that a method adds use dropout.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from autopeft.files import WORST, to_disk, trial_folder
from autopeft.recipe import Head
from autopeft.redact import shareable
from autopeft.tasks import Scores, Split, Task, Writer
from autopeft.training import worst
from autopeft.training.answers import NOT_FINITE, Answers, calibrated, score_batches, write
from autopeft.training.batches import collate, endless
from autopeft.training.compiled import Compiler
from autopeft.training.course import Course, total_steps
from autopeft.training.data import Data, prepare
from autopeft.training.faults import explain, is_out_of_memory, is_trials_own, peak_memory_bytes, require_device
from autopeft.training.head import headed, vectors
from autopeft.training.launch import Pause
from autopeft.training.model import ModelView, clone_shared, load_model, view
from autopeft.training.network import Network, as_trials_run
from autopeft.training.optimizer import learning_rate_factor, make_optimizer
from autopeft.training.precision import Precision
from autopeft.training.prefix_cache import Cached, Cut, PrefixCache, Reach
from autopeft.training.program import Program, is_static
from autopeft.training.programs import Programs
from autopeft.training.recipe import Attached, attach, counts, load_trained, read_tensors, trained_state
from autopeft.training.setup import Setup
from autopeft.training.static import Statics
from autopeft.trial import Phase, Report, Result, Status, Trial, strange

STATIC, PLAIN = "static", "plain"  # the ledger's words: steps in static shapes, or not


@dataclass
class Attempt:
    """An attempt at a trial, and what the next one has to know if memory ran out.

    Attributes:
        narrowed: How often the batch was made to need less memory.
        is_last: Whether it cannot be once more.
        ran: The ledger's word for how it ran.
    """

    narrowed: int = 0
    is_last: bool = True
    ran: str = PLAIN


class Worker:
    """Keeps a base model, its data and its caches in memory, and evaluates trial after trial.

    Args:
        setup: What all trials share.
        should_end: Is called between steps. If it returns true, the trial ends without a result.

    Attributes:
        programs: Trials' training in static shapes, kept for trials of the same structure.
        compiler: Compiles their blocks.
        has_company: Whether other trials hold memory, too. Then a trial that runs out of it begins again later, with
            less company, and does not divide its batches.
        is_shared: Whether trials run side by side here: no peak of memory is a trial's own then.

    Raises:
        EnvironmentFault: The device, the model or the data is not there.
    """

    def __init__(self, setup: Setup, should_end: Callable[[], bool] = lambda: False) -> None:
        self.setup, self.should_end = setup, should_end
        torch.set_num_threads(setup.machine.threads)
        self.device = torch.device(setup.machine.device)
        require_device(setup.machine.device)
        if self.device.type == "cuda":  # cuDNN plans its attention anew for each length of a batch: a tenth of a second
            torch.backends.cuda.enable_cudnn_sdp(False)
        self.data: Data = prepare(setup)
        self.task = self.data.task
        self.base = load_model(
            setup.model, self.task.auto_class, self.data.n_outputs, seed=setup.seed, device=self.device
        )
        self.view: ModelView = view(self.base)
        self.precision = Precision(setup.machine.precision, self.device, self.view)
        folder = (
            Path(setup.cache) / "prefix" / f"{self.data.folder.name}-{setup.machine.precision}-{setup.model.attention}"
        )
        self.statics = Statics(self.base, self.view, self.task, self.device, setup.seed)
        self.prefix = PrefixCache(folder, setup.machine.prefix_cache_bytes)
        self.programs = Programs()
        self.compiler = Compiler(setup.machine.compile, self.device)
        self.has_company: Callable[[], bool] = lambda: False
        self.is_shared = False

    def evaluate(
        self, trial: Trial, split: str = "validation", course: Course | None = None
    ) -> Generator[Report | Result, None, None]:
        """Trains a trial and scores it on a split: a Report a rung, then the Result.

        An exception that the trial itself causes becomes its status. Faults of the user or the machine are raised.

        Args:
            course: The trial's course, if the caller keeps its clock.
        """
        for event in self.turns(trial, split, course):
            if isinstance(event, (Report, Result)):
                yield event

    def phases(
        self, trial: Trial, split: str = "validation", course: Course | None = None
    ) -> Generator[Report | Result | Phase, None, None]:
        """Does the same as `evaluate`, and also yields each phase when it begins."""
        for event in self.turns(trial, split, course):
            if not isinstance(event, Pause):
                yield event

    def turns(
        self, trial: Trial, split: str = "validation", course: Course | None = None
    ) -> Generator[Report | Result | Phase | Pause, None, None]:
        """Does the same as `phases`, and also yields pauses, at which other trials can have their turn.

        If memory runs out in static shapes, the trial begins again: without the programs kept for others, and if there
        are none, with smaller passes.
        """
        course, known, done = course or self.course(trial), dict[str, float](), 0
        attempt = Attempt()
        while True:
            try:
                for event in self._evaluate(trial, split, course, attempt):
                    if isinstance(event, Report):
                        if event.step <= done:
                            continue
                        known, done = dict(event.metrics), event.step
                    yield event
                return
            except Exception as fault:
                if not is_trials_own(fault):
                    raise
                if is_out_of_memory(fault) and not self.has_company():
                    had_programs = self.programs.drop()
                    if had_programs or not attempt.is_last:
                        attempt.narrowed += not had_programs
                        course.again()
                        continue
                if os.environ.get("AUTOPEFT_DEBUG"):
                    print(shareable(traceback.format_exc()), file=sys.stderr)
                status = Status.OUT_OF_MEMORY if is_out_of_memory(fault) else Status.FAILED
                usable = {name: value for name, value in known.items() if name not in strange(known)}
                yield Result(trial, status, usable, error=explain(fault), ran=attempt.ran)
                return

    def _evaluate(
        self, trial: Trial, split: str, course: Course, attempt: Attempt
    ) -> Iterator[Report | Result | Phase | Pause]:
        setup, built = self.setup, self.prefix.seconds
        attempt.is_last, attempt.ran = True, PLAIN  # where memory runs out before it is known, or steps divide batches
        yield Phase.PREPARING
        with contextlib.ExitStack() as stack:
            network = self.network(trial)
            if is_static(network):
                for _ in range(attempt.narrowed):
                    network.narrow(setup.train.batch_size)
                attempt.is_last, attempt.ran = network.is_narrowest, STATIC
                program = stack.enter_context(self.programs.lent(trial, network, course.total))
                network, steps = program.network, program.run(course)
            else:
                program, steps = None, with_pauses(self.train(network, trial.seed, course.total))
            course.wait(self.prefix.seconds - built)  # caches serve all trials: no trial's time
            course.mark()
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
            yield Phase.TRAINING
            for done in steps:
                if isinstance(done, (Pause, Phase)):
                    if self.should_end():
                        return
                    yield done
                    continue
                failure = course.failure(*done)
                if failure is not None:
                    yield replace(failure, ran=ran(program))
                    return
                step = done[0]
                if step in course.rungs:
                    scores = self.scores(network, "validation").metrics if setup.train.score_rungs else {}
                    yield replace(course.report(step, scores), ran=ran(program))
            course.mark()
            yield Phase.SCORING
            answers = self.answers(network, split)
            used = {
                **({} if self.is_shared else {"peak_memory_bytes": float(peak_memory_bytes(self.device))}),
                "micro_batch_size": float(network.micro_batch_size),
                **({"gradient_checkpointing": 1.0} if network.is_checkpointed else {}),
            }
            result = self.finish(course, network.attached, answers, split, used, sorted(network.untrained))
            yield replace(result, ran=ran(program))

    def course(self, trial: Trial) -> Course:
        """Starts the clock of a trial, and returns its course on this data."""
        return Course(self.setup, trial, len(self.data.splits["train"]))

    def finish(
        self,
        course: Course,
        attached: Attached,
        answers: Answers,
        split: str,
        used: Mapping[str, float],
        untrained: Sequence[str] = (),
    ) -> Result:
        """Returns the result of a trained trial from its answers for a split. Keeps its tensors if the config says so.

        The trial fails if a tensor that it counts never had a gradient: its size on the front would be too large.
        """
        if untrained:
            some = f"{', '.join(untrained[:3])}{' and others' if len(untrained) > 3 else ''}"
            return Result(course.trial, Status.FAILED, error=f"counted as trained, yet no gradient reached {some}")
        wild = [name for name, tensor in trained_state(attached).items() if not bool(torch.isfinite(tensor).all())]
        if wild or not answers.are_finite:
            why = f"not finite after training: {', '.join(wild[:3])}" if wild else NOT_FINITE
            return Result(course.trial, Status.FAILED, error=why)
        scores = answers.scores(self.data.weights[split], self.data.about)
        result = course.result(scores, {**counts(attached), **used})
        if result.status is Status.COMPLETE and self.setup.keep != "none" and split == "validation":
            self.keep(course.trial, attached, answers)
        return result

    def network(self, trial: Trial) -> Network:
        """Returns a clone of the base with the trial's recipe attached, ready to train."""
        return self.wrap(self.attach(trial))

    def attach(self, trial: Trial) -> Attached:
        """Attaches the trial's recipe to a clone of the base, given the same steps and batches as in training."""
        split, setup = self.data.splits["train"], self.setup

        def batches() -> Iterator[Mapping[str, torch.Tensor]]:
            for rows in endless(split.lengths, setup.train.batch_size, trial.seed):
                yield collate(split, rows, self.device)

        steps = total_steps(setup, len(split))
        return attach(self.base, self.view, trial.params, trial.seed, steps, batches)

    def wrap(self, attached: Attached) -> Network:
        """Puts an attached clone in the precision of the search, without the blocks that the prefix cache replaces."""
        as_trials_run(attached.model, attached.view, self.precision)
        return Network(self, attached)

    def train(self, network: Network, seed: int, total: int) -> Iterator[tuple[int, float]]:
        """Trains for `total` optimiser steps; yields (step, mean loss of its batch) after each."""
        setup, split = self.setup, self.data.splits["train"]
        optimizer = make_optimizer(network.attached, setup)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(learning_rate_factor, setup, total))
        torch.manual_seed(seed)  # each method draws another amount of randomness to attach
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        network.train()
        batches = endless(split.lengths, setup.train.batch_size, seed)
        for step in range(1, total + 1):
            loss = network.backward("train", next(batches))
            if setup.train.clip is not None:
                nn.utils.clip_grad_norm_(parameters, setup.train.clip)
            optimizer.step()
            for during in network.attached.during:
                if during.after_step is not None:
                    during.after_step(step)
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            yield step, loss

    def scores(self, network: Network, split: str) -> Scores:
        """Computes all metrics of the task on a split."""
        return self.answers(network, split).scores(self.data.weights[split], self.data.about)

    def answers(self, network: Network, split: str) -> Answers:
        """Runs the network over a split and collects its answers. Leaves the network in training mode."""
        return calibrated(self.task, split, self.data.about, lambda name: [self._answers(network, name)])[0]

    def _answers(self, network: Network, split: str) -> Answers:
        data = self.data.splits[split]
        found = Answers(self.task, data)
        network.eval()
        with torch.no_grad():
            for rows in network.score_batches(split):
                outputs = network.logits(split, rows)
                with self.precision.context() if self.task.calls_model else contextlib.nullcontext():
                    found.take(rows, outputs, None if isinstance(self.task, Writer) else network.model)
            if isinstance(self.task, Writer):
                with self.precision.context():
                    write(self.task, [found], network.model, self.device)
        network.train()
        return found

    def base_answers(self, data: Split, task: Task) -> Answers:
        """Runs the unchanged base over a split and collects its answers for a task."""
        model = clone_shared(self.base, ())
        self.precision.lower(model)
        found = Answers(task, data)
        with torch.no_grad(), self.precision.context():
            for rows in score_batches(data.lengths, model):
                found.take(rows, model.eval()(**collate(data, rows, self.device)).logits, model)
        return found

    def sample(self, trial: Trial, tensors: Path, rows: int = 8) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
        """Returns the logits of a trained trial for some validation rows, and the model's inputs for these rows."""
        network = self.network(trial)
        load_trained(network.attached, read_tensors(tensors))
        network.eval()
        split = self.data.splits["validation"]
        chosen = np.arange(min(rows, len(split)))
        with torch.no_grad():
            logits = network.logits("validation", chosen).float().cpu().numpy()
        return logits, collate(split, chosen, self.device)

    def keep(self, trial: Trial, attached: Attached, answers: Answers) -> None:
        """Writes the trained tensors, and the rows that they get most wrong, first under a temporary name."""
        folder = trial_folder(self.setup.folder, trial.number)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{trial.number:05d}.", dir=folder.parent))
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trained_state(attached).items()}
        save_file(tensors, temporary / "trained.safetensors")
        (temporary / "recipe.json").write_text(json.dumps(trial.to_json()))
        data = self.data
        rows = worst.worst(answers, data.weights["validation"], data.quotes, data.about)
        (temporary / WORST).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        to_disk(temporary)  # before the ledger says that the tensors exist
        shutil.rmtree(folder, ignore_errors=True)  # left by an earlier run of the trial
        os.replace(temporary, folder)

    def cached(self, splits: Sequence[str], depth: int, head: Head | None = None) -> dict[str, Cached] | None:
        """Returns the cached activations of splits below `depth`, by split; None if together they exceed the bound.

        Args:
            head: A head that reads the block below `depth`: then the vectors that its pooling makes of the activations.
                All poolings but `own` make them of one cache, so that each costs no further pass over the base.
        """
        chosen = {name: self.data.splits[name] for name in splits}
        if head is None:
            return self.prefix.get(chosen, depth, self.reach)
        if head.pooling != "own":
            self.prefix.get(chosen, depth, self.reach)
        return self.prefix.get(chosen, depth, partial(self.reach, head=head), pooling=head.pooling)

    def reach(
        self, depth: int, lower: int | None = None, below: Cached | None = None, head: Head | None = None
    ) -> Reach:
        """Returns what computes the activations below `depth`, from the inputs or from the cache of a lower depth.

        Args:
            head: See `cached`.
        """
        model, view = self.base, self.view
        if head is not None:  # whatever its layers, the vectors are the same
            model, view = headed(model, view, replace(head, hidden=0, norm=False))
        model = clone_shared(model, ()).eval()
        self.precision.lower(model)
        cut = Cut(model, view.stem, view.blocks, lower) if lower is not None else None
        target = view.blocks[depth - 1] if head is None else vectors(view)
        return Reach(model, target, head is not None, self.precision.context, self.device, cut, below)


def with_pauses(steps: Iterable[tuple[int, float]]) -> Iterator[tuple[int, float] | Pause]:
    """Yields steps, and a pause after each."""
    for step in steps:
        yield step
        yield Pause()


def ran(program: Program | None) -> str:
    """Returns the ledger's word for how a trial ran."""
    return PLAIN if program is None else program.compiling.named(program.launcher.name)
