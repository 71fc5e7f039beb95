"""Several trials in one pass over their base, in this process: for one GPU that the batch of one trial leaves idle.

Trials of LoRA share passes, and so do trials that train the head only. Other trials run by themselves, to the bit as in
`serial`. All of them take turns, so that no trial waits for the end of another. Scores of those that share passes equal
those of `serial` up to rounding, which depends on the trials that share a pass.
"""

from __future__ import annotations

from autopeft.errors import AutoPEFTError, UsageError
from autopeft.executors import Conversation, MakeEvaluate, Packing
from autopeft.executors._interrupt import interruptible
from autopeft.executors.serial import Serial
from autopeft.trial import Result, Status, Trial


class Packed:
    """Runs trials side by side here.

    Args:
        slots: Trials at once. With one slot, results are those of `serial`, bit for bit.
        trial_seconds: Time limit of a trial, checked between steps. Each trial of a pass counts the whole pass.
    """

    processes = 1

    def __init__(self, slots: int = 16, trial_seconds: float | None = None) -> None:
        if slots < 1:
            raise UsageError(f"executor.slots is 1 or more, not {slots}")
        self.slots = self.pack = slots

    def check(self) -> None:
        """Does nothing: this executor can always run."""

    def run(self, search: Conversation, make_evaluate: MakeEvaluate) -> None:
        if self.slots == 1:
            Serial().run(search, make_evaluate)
            return
        if not isinstance(make_evaluate, Packing):
            raise UsageError("this evaluate trains one trial at a time: use the executor serial, or ray_tune")
        with interruptible() as interrupts:
            pack = make_evaluate.pack(lambda: bool(interrupts) or search.is_out_of_time())
            running: dict[int, Trial] = {}
            while not interrupts and not search.is_out_of_time():
                while len(running) < self.slots and (trial := search.ask()) is not None:
                    running[trial.number] = trial
                    pack.join(trial)
                if not running:
                    return
                if len(running) == self.slots:
                    search.prepare(self.slots)
                events = pack.advance()
                for trial, event in events:
                    if isinstance(event, Result):
                        del running[trial.number]
                        search.tell(event)
                    elif search.report(trial, event):
                        pack.leave(trial)
                        del running[trial.number]
                        search.tell(Result(trial, Status.STOPPED, event.metrics))
                if not events and not interrupts and not search.is_out_of_time():
                    raise AutoPEFTError(f"the pack of {len(running)} trials ended without results: that is a bug in it")
            if interrupts:
                raise KeyboardInterrupt


plugin = Packed
