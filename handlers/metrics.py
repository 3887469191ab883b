"""What a worker tells Prometheus about each batch, beside TorchServe's own numbers.

TorchServe's histogram buckets are made for seconds, so times are in seconds. The server needs
`model_metrics_auto_detect=true` or these names in its metrics.yaml.
"""

from typing import Any


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
