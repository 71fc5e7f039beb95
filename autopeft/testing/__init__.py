"""Contract tests, one file for each kind of plugin. Call them on your plugin, as our tests do on ours.

Each `check_…` raises an AssertionError that names the broken promise. No check needs pytest, a network or a GPU.

    @pytest.mark.parametrize("check", testing.METHOD_CHECKS)
    @pytest.mark.parametrize("subject", testing.method_subjects(), ids=str)
    def test_contract(check, subject):
        check("my_method", subject)     # raises Refused if the method is not for such a model
"""

from __future__ import annotations

from autopeft.testing._examples import OBJECTIVES, example_sizes, example_space
from autopeft.testing.executors import check_executor
from autopeft.testing.methods import (
    METHOD_CHECKS,
    MethodSubject,
    check_method_clones_are_independent,
    check_method_count_is_exact,
    check_method_describes_itself,
    check_method_head_is_the_seeds,
    check_method_leaves_the_base,
    check_method_lowest_is_right,
    check_method_merges,
    check_method_saves_all_it_trains,
    check_method_takes_rows_end_to_end,
    check_method_trains_its_own,
    checksum,
    make_method_subject,
    method_pairs,
    method_recipes,
    method_subjects,
    train_method,
)
from autopeft.testing.samplers import check_sampler
from autopeft.testing.stoppers import check_stopper
from autopeft.testing.tasks import (
    TASK_CHECKS,
    TaskSubject,
    check_task_answers_without_targets,
    check_task_describes_itself,
    check_task_encodes_chunk_by_chunk,
    check_task_fits_its_model,
    check_task_reads_by_seed,
    check_task_scores,
)
from autopeft.testing.trackers import (
    TRACKER_CHECKS,
    check_tracker_begins_anywhere,
    check_tracker_fills_once,
    check_tracker_leaves_stdout,
    check_tracker_only_reads,
)

__all__ = [
    "METHOD_CHECKS",
    "OBJECTIVES",
    "TASK_CHECKS",
    "TRACKER_CHECKS",
    "MethodSubject",
    "TaskSubject",
    "check_executor",
    "check_method_clones_are_independent",
    "check_method_count_is_exact",
    "check_method_describes_itself",
    "check_method_head_is_the_seeds",
    "check_method_leaves_the_base",
    "check_method_lowest_is_right",
    "check_method_merges",
    "check_method_saves_all_it_trains",
    "check_method_takes_rows_end_to_end",
    "check_method_trains_its_own",
    "check_sampler",
    "check_stopper",
    "check_task_answers_without_targets",
    "check_task_describes_itself",
    "check_task_encodes_chunk_by_chunk",
    "check_task_fits_its_model",
    "check_task_reads_by_seed",
    "check_task_scores",
    "check_tracker_begins_anywhere",
    "check_tracker_fills_once",
    "check_tracker_leaves_stdout",
    "check_tracker_only_reads",
    "checksum",
    "example_sizes",
    "example_space",
    "make_method_subject",
    "method_pairs",
    "method_recipes",
    "method_subjects",
    "train_method",
]
