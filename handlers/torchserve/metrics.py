"""A worker's measurements in TorchServe's metrics cache, which prints a line for each: handed over once a second."""

import logging
import threading
import time
from collections.abc import Iterable
from typing import Any

from handlers.metrics import COUNTER, HISTOGRAM, Measurement

logger = logging.getLogger(__name__)

SECONDS = 1.0  # between two times that what was measured is handed over
MOST = 100  # values of one histogram of those: each costs a printed line, which the frontend reads, and parses


class Gathered:
    """What several batches measured: counters add up, of gauges the last one counts, a histogram gets each value, or MOST
    of them, spread evenly over the time.

    A thread hands it over, so that the last batch's numbers do not wait for the next one's.

    Args:
        cache: TorchServe's `context.metrics`.
    """

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self._lock = threading.Condition()
        self._sums: dict[str, Measurement] = {}
        self._values: dict[str, list[Measurement]] = {}
        threading.Thread(target=self._run, name="marpress-metrics", daemon=True).start()

    def add(self, measurements: Iterable[Measurement]) -> None:
        """More of them."""
        with self._lock:
            for found in measurements:
                before = self._sums.get(found.name)
                if found.kind == HISTOGRAM:
                    self._values.setdefault(found.name, []).append(found)
                elif found.kind == COUNTER and before is not None:
                    self._sums[found.name] = Measurement(found.name, before.value + found.value, COUNTER, found.unit)
                else:
                    self._sums[found.name] = found
            self._lock.notify()

    def hand_over(self) -> None:
        """Give all that was gathered to TorchServe."""
        with self._lock:
            sums, self._sums = self._sums, {}
            values, self._values = self._values, {}
        for found in (*sums.values(), *(one for many in values.values() for one in _thinned(many))):
            try:
                _put(self._cache, found)
            except Exception:  # whatever TorchServe finds in one number: the others are handed over all the same
                logger.exception("the measurement %s could not be handed over", found.name)

    def _run(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._sums or self._values)
            time.sleep(SECONDS)
            self.hand_over()


def emit(cache: Any, measurements: Iterable[Measurement]) -> None:
    """Hand the measurements over, within SECONDS.

    Args:
        cache: TorchServe's `context.metrics`; None outside a server: nothing happens.
        measurements: what to add. TorchServe's histogram buckets are made for seconds.
    """
    if cache is None:
        return
    gathered = vars(cache).get("marpress")
    if gathered is None:
        gathered = cache.marpress = Gathered(cache)
    gathered.add(measurements)


def _thinned(values: list[Measurement]) -> list[Measurement]:
    """At most MOST of them, from the first to the last."""
    if len(values) <= MOST:
        return values
    return [values[place * (len(values) - 1) // (MOST - 1)] for place in range(MOST)]


def _put(cache: Any, found: Measurement) -> None:
    from ts.metrics.metric_type_enum import MetricTypes

    if found.kind == COUNTER:
        cache.add_counter(found.name, found.value)
    else:
        cache.add_metric(found.name, found.value, found.unit, metric_type=MetricTypes[found.kind.upper()])
