"""An executor of many slots on a simulated clock: trials take time that is only counted, the driver takes its own."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from contextlib import closing

from autopeft.executors import Conversation, MakeEvaluate
from autopeft.trial import Evaluate, Result, Status, Trial


class Simulated:
    """Slots that share one driver, as Tune's workers do: each holds still from a report or a result until it is served.

    Args:
        slots: Trials at once.
        seconds: How long a trial takes from its begin to a step; to its end where the step is None.
        clock: What the driver's own time is read from. One that stands still makes a driver that takes none.

    Attributes:
        busy_seconds, waiting_seconds: Of all slots until the search has no more trials: training, and waiting for the
            driver. Simulated.
        now: The simulated time.
    """

    def __init__(
        self,
        slots: int,
        seconds: Callable[[Trial, int | None], float],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.slots, self.seconds, self.clock = slots, seconds, clock
        self.busy_seconds = self.waiting_seconds = self.now = 0.0

    def run(self, search: Conversation, make_evaluate: MakeEvaluate) -> None:
        evaluate = make_evaluate(lambda: False)
        due = [(0.0, number, self._slot(search, evaluate)) for number in range(self.slots)]
        while due:
            when, number, slot = heapq.heappop(due)
            self.now, start = max(self.now, when), self.clock()
            training = next(slot, None)
            if self.slots > 1:
                search.prepare(self.slots)
            self.now += self.clock() - start
            if training is not None:
                self.waiting_seconds += self.now - when
                self.busy_seconds += training
                heapq.heappush(due, (self.now + training, number, slot))

    def _slot(self, search: Conversation, evaluate: Evaluate) -> Iterator[float]:
        """One trial after another; yields the seconds until it needs the driver again."""
        while (trial := search.ask()) is not None:
            spent = 0.0
            with closing(evaluate(trial)) as events:
                for event in events:
                    until = self.seconds(trial, None if isinstance(event, Result) else event.step)
                    yield until - spent
                    spent = until
                    if isinstance(event, Result):
                        search.tell(event)
                    elif search.report(trial, event):
                        search.tell(Result(trial, Status.STOPPED, event.metrics))
                        break
