"""From one prompt's logits to its next token: penalties, temperature, top-k, top-p, and one draw.

Each function takes float32 logits or probabilities [vocabulary] and gives new ones; -inf stands for «not this one».
"""

import torch
from torch import Tensor

from handlers.protocols.continuation import MIN_TEMPERATURE, Sampling

MAX_SEED = 2**63 - 1


def check(sampling: Sampling) -> None:
    """ValueError naming the first value out of range, and what is allowed."""
    rules: list[tuple[str, bool, str]] = [
        ("max_new_tokens", sampling.max_new_tokens >= 1, "a whole number from 1"),
        (
            "temperature",
            not sampling.do_sample or MIN_TEMPERATURE <= sampling.temperature < float("inf"),
            f"a number from {MIN_TEMPERATURE}",
        ),
        ("top_p", 0 < sampling.top_p <= 1, "a number above 0 and up to 1"),
        ("top_k", sampling.top_k >= 0, "a whole number from 0 (0: all)"),
        ("repetition_penalty", 0 < sampling.repetition_penalty < float("inf"), "a number above 0"),
        ("frequency_penalty", abs(sampling.frequency_penalty) < float("inf"), "a finite number"),
        ("presence_penalty", abs(sampling.presence_penalty) < float("inf"), "a finite number"),
        ("seed", 0 <= sampling.seed <= MAX_SEED, f"a whole number from 0 to {MAX_SEED}"),
    ]
    for name, right, allowed in rules:
        if not right:
            raise ValueError(f"{name} is {getattr(sampling, name)!r}; allowed: {allowed}")


def is_plain(sampling: Sampling) -> bool:
    """Whether the likeliest token is the answer and nothing else is asked for."""
    penalties = (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty)
    return not sampling.do_sample and not sampling.logprobs and penalties == (1.0, 0.0, 0.0)


def choose(
    logits: Tensor, prompt: list[int], found: list[int], sampling: Sampling, generator: torch.Generator
) -> tuple[int, float]:
    """The token behind `prompt` and `found`, and its natural log-probability by the untouched logits.

    generator: on the CPU, of this prompt alone; one number is drawn from it for a token, whatever the settings
    raises ArithmeticError where the penalties drive every score beyond float32
    """
    scores = logits
    if sampling.repetition_penalty != 1.0:
        scores = penalize_repetition(scores, _ids([*prompt, *found], logits), sampling.repetition_penalty)
    if found and (sampling.frequency_penalty or sampling.presence_penalty):
        scores = penalize_use(scores, _ids(found, logits), sampling.frequency_penalty, sampling.presence_penalty)
    if sampling.do_sample:
        highest = scores.max()
        if not bool(highest.isfinite()):
            raise ArithmeticError("the penalties leave no finite score")
        scores = (scores - highest) / sampling.temperature
        if sampling.top_k:
            scores = keep_top_k(scores, sampling.top_k)
        if sampling.top_p < 1.0:
            scores = keep_top_p(scores, sampling.top_p)
        share = float(torch.rand((), dtype=torch.float64, generator=generator))
        token = at_share(scores.softmax(-1), share)
    else:
        token = int(scores.argmax())
    return token, float(logits.log_softmax(-1)[token]) if sampling.logprobs else 0.0


def penalize_repetition(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Logits of `ids` ([any] int64, repeats allowed) divided by `penalty` where positive, else multiplied by it.

    Source: Keskar et al. 2019, CTRL, arXiv:1909.05858, section 4.1; for negative logits as transformers does it
    """
    some = logits[ids]
    return logits.scatter(0, ids, torch.where(some < 0, some * penalty, some / penalty))


def penalize_use(logits: Tensor, ids: Tensor, frequency: float, presence: float) -> Tensor:
    """logit[j] − count[j]·frequency − (count[j] > 0)·presence, count[j]: how often j is among `ids` ([any] int64).

    Source: OpenAI's API reference, «frequency and presence penalties»
    """
    counts = torch.bincount(ids, minlength=logits.shape[0])
    return logits - counts * frequency - (counts > 0) * presence


def keep_top_k(logits: Tensor, count: int) -> Tensor:
    """-inf below the `count`-th greatest; what equals it stays. Source: Fan et al. 2018, arXiv:1805.04833."""
    least = logits.topk(min(count, logits.shape[0])).values[-1]
    return logits.masked_fill(logits < least, -torch.inf)


def keep_top_p(logits: Tensor, share: float) -> Tensor:
    """-inf outside the nucleus: the fewest likeliest tokens whose probabilities sum to at least `share`; one at least.

    Source: Holtzman et al. 2020, arXiv:1904.09751, section 3.1
    """
    ordered, order = logits.sort(descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    inside = probabilities.cumsum(-1) - probabilities < share
    inside[0] = True
    return logits.masked_fill(~torch.zeros_like(inside).scatter(0, order, inside), -torch.inf)


def at_share(probabilities: Tensor, share: float) -> int:
    """The first place at which the running sum exceeds `share` (0 ≤ share < 1) of the whole: never one of probability 0."""
    sums = probabilities.double().cumsum(0)
    return int(torch.searchsorted(sums, sums[-1:] * share, right=True))


def _ids(ids: list[int], logits: Tensor) -> Tensor:
    return torch.tensor(ids, device=logits.device)
