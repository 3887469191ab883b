"""What a worker measures about its batches, apart from the server that collects it: `handlers.torchserve.metrics` sends it.

Times are in seconds. The server needs `model_metrics_auto_detect=true` or these names in its metrics.yaml.
"""

from collections.abc import Sequence
from dataclasses import dataclass

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"


@dataclass(frozen=True)
class Measurement:
    """One number for Prometheus; kind: COUNTER, GAUGE or HISTOGRAM."""

    name: str
    value: float
    kind: str
    unit: str = "count"


def counters(**values: int) -> list[Measurement]:
    """Counters `marpress_NAME` for those of `values` that are not 0."""
    return [Measurement(f"marpress_{name}", value, COUNTER) for name, value in values.items() if value]


def batch_measurements(
    *, requests: int, errors: int, inputs: int, tokens: int, computed_tokens: int, seconds: float
) -> list[Measurement]:
    """What one batch did; padding waste over any span = 1 − marpress_tokens / marpress_computed_tokens.

    Args:
        requests: in the batch. errors: those refused or failed. inputs: of all requests.
        tokens: sum of the items' sizes. computed_tokens: the same with the padding that was computed.
        seconds: from the first request read to the last answer.
    Returns: the measurements, counters first.
    """
    found = counters(
        requests=requests,
        request_errors=errors,
        inputs=inputs,
        tokens=tokens,
        computed_tokens=computed_tokens,
        batches=1,
    )
    found.append(Measurement("marpress_batch_seconds", round(seconds, 6), HISTOGRAM, "s"))
    found.append(Measurement("marpress_batch_size", requests, GAUGE))
    if computed_tokens:
        waste = round(1 - tokens / computed_tokens, 4)
        found.append(Measurement("marpress_padding_waste", waste, GAUGE, "ratio"))
    return found


def queue_measurements(waits: Sequence[float], waiting: int) -> list[Measurement]:
    """How long requests waited for their last run, in seconds, and how many wait now."""
    found = [Measurement("marpress_wait_seconds", round(seconds, 6), HISTOGRAM, "s") for seconds in waits]
    return [*found, Measurement("marpress_waiting", waiting, GAUGE)]
