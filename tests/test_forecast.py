"""How long trials will take."""

import math

from hypothesis import given
from hypothesis import strategies as st

from autopeft.forecast import Forecast
from autopeft.history import Record
from autopeft.trial import Status, Trial


def told(forecast, method, size, seconds, status=Status.COMPLETE, metrics=None):
    known = {"trainable_parameters": size}
    record = Record(Trial(0, {"method": method}, 0), known, asked_seconds=10.0, told_seconds=10.0 + seconds)
    record.status, record.metrics = status, metrics or {}
    forecast.tell(record)


def seconds(forecast, method, size):
    return forecast.seconds({"method": method}, {"trainable_parameters": size})


def test_nothing_is_known_of_nothing():
    assert seconds(Forecast(), "lora", 100.0) == Forecast().longest == 0.0


def test_the_three_nearest_in_size_of_its_method_and_of_all_before_there_is_one():
    forecast = Forecast()
    for size, took in [(10, 1.0), (100, 2.0), (110, 3.0), (120, 4.0), (100_000, 90.0)]:
        told(forecast, "lora", size, took)
    told(forecast, "head", 100, 60.0)
    assert math.isclose(seconds(forecast, "lora", 105.0), 3.0)
    assert math.isclose(seconds(forecast, "head", 5.0), 60.0)
    assert seconds(forecast, "bias", 9.0) < 60.0
    assert math.isclose(forecast.longest, 90.0)


def test_measured_seconds_count_rather_than_the_time_between_ask_and_tell():
    forecast = Forecast()
    told(forecast, "lora", 10, 99.0, metrics={"train_seconds": 2.0, "evaluate_seconds": 0.5, "accuracy": 0.9})
    assert seconds(forecast, "lora", 10.0) == 2.5


def test_who_did_not_complete_says_nothing():
    forecast = Forecast()
    told(forecast, "lora", 10, 3.0, Status.STOPPED)
    told(forecast, "lora", 10, 3.0, Status.FAILED)
    assert seconds(forecast, "lora", 10.0) == 0.0


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.floats(1, 1e9), st.floats(0.1, 1e3)), min_size=1), st.floats(1, 1e9)
)
def test_a_forecast_lies_among_what_was_measured(measured, size):
    forecast = Forecast()
    for method, its_size, took in measured:
        told(forecast, method, its_size, took)
    times = [took for _, _, took in measured]
    assert min(times) - 1e-9 <= seconds(forecast, "a", size) <= max(times) + 1e-9


def test_what_is_within_another_measure_is_not_counted_twice():
    """`train_seconds` contains `attach_seconds`."""
    forecast = Forecast()
    metrics = {"attach_seconds": 4.0, "train_seconds": 10.0, "evaluate_seconds": 1.0}
    forecast.tell(Record(Trial(0, {"method": "lora"}, 0), {}, status=Status.COMPLETE, metrics=metrics))
    assert forecast.longest == forecast.seconds({"method": "lora"}, {}) == 11.0
