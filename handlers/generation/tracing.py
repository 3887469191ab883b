"""What a request's trace says of the texts that were written for it, by OpenTelemetry's names for generative AI."""

from collections.abc import Sequence
from typing import Any

from handlers.generation.engine import Job
from handlers.tracing import Trace


def trace_jobs(trace: Trace, jobs: Sequence[Job], arrived: float) -> None:
    """The parts of a request whose answer was written token by token, until now, and its numbers.

    Args:
        jobs: that the engine took in; none where the request was refused before. arrived: time.monotonic().
    """
    trace.part("encode", min((job.submitted for job in jobs), default=None))
    if not jobs:
        return
    started = [job for job in jobs if job.started]
    trace.part("queue", min((job.started for job in started), default=None))
    if started:
        run = {"marpress.batch.size": max(job.beside for job in started)}
        trace.part("run", max((job.ended for job in started if job.done), default=None), run)
    trace.part("answer")
    trace.note(_numbers(jobs, arrived))


def _numbers(jobs: Sequence[Job], arrived: float) -> dict[str, Any]:
    """Tokens in and out; seconds to the first token since the request came, and between later ones of a text (mean)."""
    found: dict[str, Any] = {
        "marpress.inputs": len(jobs),
        "gen_ai.usage.input_tokens": sum(len(job.prompt) for job in jobs),
        "gen_ai.usage.output_tokens": sum(len(job.ids) for job in jobs),
        "gen_ai.response.finish_reasons": [str(job.finish) for job in jobs],
    }
    first = [job.first for job in jobs if job.first]
    if first:
        found["gen_ai.server.time_to_first_token"] = round(min(first) - arrived, 6)
    several = [job for job in jobs if len(job.ids) > 1]
    if several:
        seconds, tokens = sum(job.last - job.first for job in several), sum(len(job.ids) - 1 for job in several)
        found["gen_ai.server.time_per_output_token"] = round(seconds / tokens, 6)
    return found
