"""Several trials in one pass over their base, in this process: for one GPU that the batch of one trial leaves idle.

Trials of LoRA share passes, and so do trials that train the head only. Other trials run by themselves, to the bit as in
`serial`. All of them take turns, so that no trial waits for the end of another. Scores of those that share passes equal
those of `serial` up to rounding, which depends on the trials that share a pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from autopeft.errors import AutoPEFTError, UsageError
from autopeft.executors import Conversation, MakeEvaluate, Pack, Packing
from autopeft.executors._interrupt import interruptible
from autopeft.executors.serial import Serial
from autopeft.trial import Result, Trial

AUTO: Literal["auto"] = "auto"
TYPICAL = 16  # trials that share a pass, where memory says how many


class Packed:
    """Runs trials side by side here.

    Args:
        slots: Trials at once; "auto" for as many as a GPU's memory holds, by measurement: the first trial is measured
            alone, and others join while there is room, 32 at most; 16 on a CPU, where nobody measures. With one slot,
            results are those of `serial`, bit for bit.
        trial_seconds: Time limit of a trial, checked between steps. Each trial of a pass counts the whole pass.
    """

    processes: int | None = 1

    def __init__(self, slots: int | str = AUTO, trial_seconds: float | None = None) -> None:
        if isinstance(slots, str) and slots != AUTO:
            raise UsageError(f"executor.slots is a number or {AUTO}, not {slots!r}")
        if not isinstance(slots, str) and slots < 1:
            raise UsageError(f"executor.slots is 1 or more, or {AUTO}, not {slots}")
        self.slots = slots
        self.pack = TYPICAL if isinstance(slots, str) else slots

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
                has_more = True
                while has_more and self._has_slot(pack, running):
                    trial = search.ask()
                    if trial is None:
                        has_more = False
                    else:
                        running[trial.number] = trial
                        pack.join(trial)
                if not running:
                    return
                if has_more:
                    search.prepare(len(running))
                wants_more = has_more and self.slots == AUTO
                events = pack.advance(pack.has_room) if wants_more else pack.advance()
                for trial, event in events:
                    if isinstance(event, Result):
                        del running[trial.number]
                        search.tell(event)
                    elif search.report(trial, event):
                        pack.leave(trial)
                        del running[trial.number]
                        search.tell(Result.stopped(trial, event))
                is_idle = not events and not (wants_more and pack.has_room())
                if is_idle and not interrupts and not search.is_out_of_time():
                    raise AutoPEFTError(f"the pack of {len(running)} trials ended without results: that is a bug in it")
            if interrupts:
                raise KeyboardInterrupt

    def _has_slot(self, pack: Pack, running: Mapping[int, Trial]) -> bool:
        return not running or (pack.has_room() if isinstance(self.slots, str) else len(running) < self.slots)


plugin = Packed
