"""The parameters of a request for text that say how the next token is chosen and where a text ends, in every form."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from handlers.inputs.checks import Parameter, is_bool, is_positive_int
from handlers.protocols.continuation import MIN_TEMPERATURE, Sampling

MAX_STOPS = 16
SEEDS = 2**63


def number(least: float, most: float, open_end: bool = False) -> Callable[[Any], bool]:
    """A check for numbers from `least` (above it: open_end) to `most`."""

    def check(value: Any) -> bool:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        return fits and (least < value <= most if open_end else least <= value <= most)

    return check


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < SEEDS


def _is_top_k(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _is_stop(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, list) and len(texts) <= MAX_STOPS and all(isinstance(t, str) and t for t in texts)


BOOL = Parameter(is_bool, "true or false")
TOKENS = Parameter(is_positive_int, "a whole number from 1")
_PENALTY = Parameter(number(-2, 2), "a number from -2 to 2")

SAMPLING_PARAMETERS: dict[str, Parameter] = {
    "temperature": Parameter(number(0, 100), "a number from 0 (always the likeliest token) to 100"),
    "top_p": Parameter(number(0, 1, open_end=True), "a number above 0, up to 1"),
    "top_k": Parameter(_is_top_k, "a whole number from 0 (all)"),
    "repetition_penalty": Parameter(number(0, 100, open_end=True), "a number above 0, up to 100; 1 changes nothing"),
    "frequency_penalty": _PENALTY,
    "presence_penalty": _PENALTY,
    "stop": Parameter(_is_stop, f"a text, or a list of up to {MAX_STOPS} texts, none empty"),
    "seed": Parameter(_is_seed, "a whole number from 0 to 2^63 - 1"),
}


def read_sampling(
    given: Mapping[str, Any], *, tokens: int | None, sample: bool, logprobs: bool, random_seed: Callable[[], int]
) -> Sampling:
    """How tokens are chosen.

    Args:
        given: checked parameters by the names above. tokens: how many are asked for, None where the request does not say.
        sample: whether to draw; below MIN_TEMPERATURE the likeliest token is taken. logprobs: whether they are asked for.
        random_seed: called for a request that draws and names no seed.
    Returns: the settings, max_new_tokens 0 for None.
    """
    kept = {
        name: given[name]
        for name in ("top_p", "top_k", "repetition_penalty", "frequency_penalty", "presence_penalty")
        if name in given
    }
    temperature = given.get("temperature", 1.0)
    found = Sampling(max_new_tokens=tokens or 0, logprobs=logprobs, **kept)
    if not sample or temperature < MIN_TEMPERATURE:
        return found
    seed = given["seed"] if "seed" in given else random_seed()
    return replace(found, do_sample=True, temperature=float(temperature), seed=seed)


def read_stops(given: Mapping[str, Any]) -> tuple[str, ...]:
    """The stop strings of checked parameters."""
    stop = given.get("stop", [])
    return (stop,) if isinstance(stop, str) else tuple(stop)
