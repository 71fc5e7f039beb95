"""The executor that suits the machine: `packed` on one GPU, `ray_tune` on several, and on a machine without any."""

from __future__ import annotations

from collections.abc import Iterable

from autopeft.executors import Conversation, Executor, MakeEvaluate
from autopeft.executors.packed import Packed
from autopeft.executors.ray_tune import RayTune
from autopeft.finding import Diagnosed, Finding


class Auto:
    """Runs trials by another executor.

    Args:
        slots: Trials at once; None for as many as memory (on GPUs) or processors hold.
        trial_seconds: Time limit of a trial.
        n_gpus: Number of GPUs that trials may use here.
    """

    def __init__(self, slots: int | None = None, trial_seconds: float | None = None, n_gpus: int = 0) -> None:
        if n_gpus == 1:
            self.chosen: Executor = Packed("auto" if slots is None else slots, trial_seconds)
        else:
            self.chosen = RayTune(slots, trial_seconds=trial_seconds, n_gpus=n_gpus)
        self.processes, self.pack = self.chosen.processes, self.chosen.pack

    def check(self) -> None:
        """Checks that the chosen executor can run."""
        self.chosen.check()

    def diagnose(self) -> Iterable[Finding]:
        """Looks at the chosen executor (`autopeft.finding.Diagnosed`)."""
        return self.chosen.diagnose() if isinstance(self.chosen, Diagnosed) else ()

    def run(self, search: Conversation, make_evaluate: MakeEvaluate) -> None:
        """Runs the search to its end by the chosen executor."""
        self.chosen.run(search, make_evaluate)


plugin = Auto
