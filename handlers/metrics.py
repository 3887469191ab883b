"""What a worker tells Prometheus about each batch, beside TorchServe's own numbers.

TorchServe's histogram buckets are made for seconds, so times are in seconds. The server needs
`model_metrics_auto_detect=true` or these names in its metrics.yaml.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from handlers.generation.backend import Load
    from handlers.generation.engine import Job


def emit(
    cache: Any, *, requests: int, errors: int, inputs: int, tokens: int, computed_tokens: int, seconds: float
) -> None:
    """One batch: how many requests and inputs, tokens asked for and tokens computed (padding included), and the time.

    padding waste over any span = 1 − marpress_tokens / marpress_computed_tokens. cache: TorchServe's `context.metrics`.
    """
    if cache is None:
        return
    from ts.metrics.metric_type_enum import MetricTypes

    counters = {
        "marpress_requests": requests,
        "marpress_request_errors": errors,
        "marpress_inputs": inputs,
        "marpress_tokens": tokens,
        "marpress_computed_tokens": computed_tokens,
        "marpress_batches": 1,
    }
    for name, value in counters.items():
        if value:
            cache.add_counter(name, value)
    cache.add_metric("marpress_batch_seconds", round(seconds, 6), "s", metric_type=MetricTypes.HISTOGRAM)
    cache.add_metric("marpress_batch_size", requests, "count", metric_type=MetricTypes.GAUGE)
    if computed_tokens:
        waste = round(1 - tokens / computed_tokens, 4)
        cache.add_metric("marpress_padding_waste", waste, "ratio", metric_type=MetricTypes.GAUGE)


def emit_generation(cache: Any, jobs: Sequence["Job"], load: "Load", *, failed: bool, seconds: float) -> None:
    """One request for text: tokens in and out, TTFT (to the first token), TPOT (between later ones), how full it is."""
    if cache is None:
        return
    from ts.metrics.metric_type_enum import MetricTypes

    counters = {
        "marpress_requests": 1,
        "marpress_request_errors": int(failed),
        "marpress_inputs": len(jobs),
        "marpress_prompt_tokens": sum(len(job.prompt) for job in jobs),
        "marpress_generated_tokens": sum(len(job.ids) for job in jobs),
    }
    for name, value in counters.items():
        if value:
            cache.add_counter(name, value)
    times: dict[str, list[float]] = {
        "marpress_request_seconds": [seconds],
        "marpress_ttft_seconds": [],
        "marpress_tpot_seconds": [],
    }
    for job in jobs:
        if job.first:
            times["marpress_ttft_seconds"].append(job.first - job.submitted)
        if len(job.ids) > 1:
            times["marpress_tpot_seconds"].append((job.last - job.first) / (len(job.ids) - 1))
    for name, values in times.items():
        for found in values:
            cache.add_metric(name, round(found, 6), "s", metric_type=MetricTypes.HISTOGRAM)
    gauges: dict[str, tuple[float, str]] = {
        "marpress_running": (load.running, "count"),
        "marpress_waiting": (load.waiting, "count"),
        "marpress_cache_use": (round(load.cache_use, 4), "ratio"),
    }
    for name, (level, unit) in gauges.items():
        cache.add_metric(name, level, unit, metric_type=MetricTypes.GAUGE)
    written = [len(job.ids) / (job.last - job.submitted) for job in jobs if job.last > job.submitted]
    if written:
        cache.add_metric("marpress_tokens_per_second", round(sum(written), 2), "per_s", metric_type=MetricTypes.GAUGE)
