"""What a worker measures about its batches, apart from the server that collects it: `handlers.torchserve.metrics` sends it.

Times are in seconds. The server needs `model_metrics_auto_detect=true` or these names in its metrics.yaml.
"""

from collections.abc import Sequence
from dataclasses import dataclass

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
COUNT, SECONDS, RATIO, PER_SECOND = "count", "s", "ratio", "per_s"  # units


@dataclass(frozen=True)
class Metric:
    """kind: COUNTER, GAUGE or HISTOGRAM. says: what it is, in words."""

    kind: str
    unit: str
    says: str


METRICS: dict[str, Metric] = {
    "marpress_requests": Metric(COUNTER, COUNT, "Requests that were answered"),
    "marpress_request_errors": Metric(COUNTER, COUNT, "Requests that were refused or failed"),
    "marpress_inputs": Metric(COUNTER, COUNT, "Inputs"),
    "marpress_tokens": Metric(COUNTER, COUNT, "Tokens (pixels, samples) of inputs that were run"),
    "marpress_computed_tokens": Metric(COUNTER, COUNT, "Tokens that were computed, padding included"),
    "marpress_batches": Metric(COUNTER, COUNT, "Runs of the model"),
    "marpress_batch_seconds": Metric(HISTOGRAM, SECONDS, "A run with its answers"),
    "marpress_batch_size": Metric(GAUGE, COUNT, "Requests that the last run completed"),
    "marpress_padding_waste": Metric(GAUGE, RATIO, "Padding waste of the last run"),
    "marpress_wait_seconds": Metric(HISTOGRAM, SECONDS, "From a request's arrival to its last run"),
    "marpress_waiting": Metric(GAUGE, COUNT, "Requests that wait"),
    "marpress_prompt_tokens": Metric(COUNTER, COUNT, "Tokens of prompts"),
    "marpress_generated_tokens": Metric(COUNTER, COUNT, "Tokens written"),
    "marpress_request_seconds": Metric(HISTOGRAM, SECONDS, "A request for text, from its arrival to its answer"),
    "marpress_ttft_seconds": Metric(HISTOGRAM, SECONDS, "Time to a text's first token (TTFT)"),
    "marpress_tpot_seconds": Metric(HISTOGRAM, SECONDS, "Time for each later token of a text (TPOT)"),
    "marpress_tokens_per_second": Metric(GAUGE, PER_SECOND, "Tokens a second of the last request's texts"),
    "marpress_running": Metric(GAUGE, COUNT, "Texts in the batch"),
    "marpress_cache_use": Metric(GAUGE, RATIO, "Share of the cache of keys and values that is in use"),
}


@dataclass(frozen=True)
class Measurement:
    """One number for Prometheus; kind: COUNTER, GAUGE or HISTOGRAM."""

    name: str
    value: float
    kind: str
    unit: str = COUNT


def measured(name: str, value: float, digits: int | None = None) -> Measurement:
    """A value of one of METRICS. digits: behind the point."""
    metric = METRICS[name]
    return Measurement(name, value if digits is None else round(value, digits), metric.kind, metric.unit)


def counters(**values: int) -> list[Measurement]:
    """Counters `marpress_NAME` for those of `values` that are not 0."""
    return [measured(f"marpress_{name}", value) for name, value in values.items() if value]


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
    found.append(measured("marpress_batch_seconds", seconds, 6))
    found.append(measured("marpress_batch_size", requests))
    if computed_tokens:
        found.append(measured("marpress_padding_waste", 1 - tokens / computed_tokens, 4))
    return found


def queue_measurements(waits: Sequence[float], waiting: int) -> list[Measurement]:
    """How long requests waited for their last run, in seconds, and how many wait now."""
    found = [measured("marpress_wait_seconds", seconds, 6) for seconds in waits]
    return [*found, measured("marpress_waiting", waiting)]
