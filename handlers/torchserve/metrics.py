"""A worker's measurements in TorchServe's metrics cache."""

from collections.abc import Iterable
from typing import Any

from handlers.metrics import COUNTER, Measurement


def emit(cache: Any, measurements: Iterable[Measurement]) -> None:
    """Hand the measurements over.

    Args:
        cache: TorchServe's `context.metrics`; None outside a server: nothing happens.
        measurements: what to add. TorchServe's histogram buckets are made for seconds.
    """
    if cache is None:
        return
    from ts.metrics.metric_type_enum import MetricTypes

    for found in measurements:
        if found.kind == COUNTER:
            cache.add_counter(found.name, found.value)
        else:
            cache.add_metric(found.name, found.value, found.unit, metric_type=MetricTypes[found.kind.upper()])


def share(cache: Any) -> None:
    """Keep TorchServe's asynchronous service from copying all metrics with the context of every request.

    Args:
        cache: `context.metrics` of the worker's start, or None. No request writes to it but through `emit`.
    """
    if cache is not None:
        cache.__deepcopy__ = lambda memo: cache
