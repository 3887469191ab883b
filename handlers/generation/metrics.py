"""What a worker measures about one request for text."""

from collections.abc import Sequence

from handlers.generation.backend import Load
from handlers.generation.engine import Job
from handlers.metrics import Measurement, counters, measured


def request_measurements(jobs: Sequence[Job], load: Load, *, failed: bool, seconds: float) -> list[Measurement]:
    """Tokens in and out, TTFT (to the first token), TPOT (between later ones), and how full the worker is.

    Args:
        jobs: the request's prompts, as they ended; none where it was refused before.
        load: the engine's. failed: whether it was answered with an error. seconds: the whole request took.
    Returns: the measurements, counters first.
    """
    found = counters(
        requests=1,
        request_errors=int(failed),
        inputs=len(jobs),
        prompt_tokens=sum(len(job.prompt) for job in jobs),
        generated_tokens=sum(len(job.ids) for job in jobs),
    )
    to_first = [job.first - job.submitted for job in jobs if job.first]
    between = [(job.last - job.first) / (len(job.ids) - 1) for job in jobs if len(job.ids) > 1]
    for name, values in (("request", [seconds]), ("ttft", to_first), ("tpot", between)):
        found += [measured(f"marpress_{name}_seconds", value, 6) for value in values]
    found.append(measured("marpress_running", load.running))
    found.append(measured("marpress_waiting", load.waiting))
    found.append(measured("marpress_cache_use", load.cache_use, 4))
    written = [len(job.ids) / (job.last - job.submitted) for job in jobs if job.last > job.submitted]
    if written:
        found.append(measured("marpress_tokens_per_second", sum(written), 2))
    return found
