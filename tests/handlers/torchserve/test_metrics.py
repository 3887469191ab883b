"""What workers measure reaches TorchServe's cache: added up, once a second, and nothing is lost."""

from __future__ import annotations

import time
from typing import Any

import pytest

from handlers.metrics import COUNTER, GAUGE, HISTOGRAM, Measurement
from handlers.torchserve import metrics

pytest.importorskip("ts")


class Cache:
    """TorchServe's, as far as it is called."""

    def __init__(self) -> None:
        self.found: list[tuple[Any, ...]] = []

    def add_counter(self, name: str, value: float) -> None:
        self.found.append((name, value))

    def add_metric(self, name: str, value: float, unit: str, metric_type: Any) -> None:
        self.found.append((name, value, unit, metric_type.name))


def of(requests: int, size: int, seconds: float) -> list[Measurement]:
    return [
        Measurement("requests", requests, COUNTER),
        Measurement("size", size, GAUGE),
        Measurement("seconds", seconds, HISTOGRAM, "s"),
    ]


def test_counters_add_up_and_histograms_keep_each_value() -> None:
    gathered = metrics.Gathered(cache := Cache())
    for one in (of(2, 7, 0.5), of(3, 4, 0.25)):
        gathered.add(one)
    gathered.hand_over()
    assert cache.found == [
        ("requests", 5),
        ("size", 4, "count", "GAUGE"),
        ("seconds", 0.5, "s", "HISTOGRAM"),
        ("seconds", 0.25, "s", "HISTOGRAM"),
    ]
    gathered.hand_over()
    assert len(cache.found) == 4


def test_of_many_values_of_a_histogram_some_are_handed_over_from_the_first_to_the_last() -> None:
    gathered = metrics.Gathered(cache := Cache())
    for number in range(10 * metrics.MOST):
        gathered.add(of(1, number, float(number)))
    gathered.hand_over()
    seconds = [value for name, value, *_ in cache.found if name == "seconds"]
    assert cache.found[0] == ("requests", 10 * metrics.MOST)
    assert len(seconds) == metrics.MOST and (seconds[0], seconds[-1]) == (0.0, 10.0 * metrics.MOST - 1)
    assert all(9 <= after - before <= 11 for before, after in zip(seconds, seconds[1:], strict=False))


def test_a_number_that_is_refused_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered = metrics.Gathered(cache := Cache())

    def refuse(name: str, value: float) -> None:
        raise ValueError(f"{name} is no name")

    monkeypatch.setattr(cache, "add_counter", refuse)
    for _ in range(2):
        gathered.add(of(1, 7, 0.5))
        gathered.hand_over()
    assert cache.found == [("size", 7, "count", "GAUGE"), ("seconds", 0.5, "s", "HISTOGRAM")] * 2


def test_the_last_ones_do_not_wait_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SECONDS", 0.05)
    cache = Cache()
    for requests in (1, 2):
        metrics.emit(cache, of(requests, 1, 0.1)[:1])
        until = time.monotonic() + 10
        while len(cache.found) < requests and time.monotonic() < until:
            time.sleep(0.01)
    assert cache.found == [("requests", 1), ("requests", 2)]
    metrics.emit(None, of(1, 1, 0.1))
