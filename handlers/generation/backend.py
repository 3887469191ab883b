"""What the runtimes that write text have in common: prompts join a running batch between two steps, and leave it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

STOP = "stop"  # one of the model's end tokens came
LENGTH = "length"  # max_new_tokens are there
FAILED = "failed"  # the runtime gave up on this one

# A longer prompt is read in pieces of so many tokens, between which the running ones go on.
PROMPT_TOKENS_A_STEP = 256

MIN_TEMPERATURE = 1e-5  # below it the likeliest token is the answer: do_sample false


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and how many are wanted.

    Without do_sample always the likeliest one. top_k 0: all. seed: of this prompt alone, whatever runs beside it.
    logprobs: whether Step.logprobs is asked for
    """

    max_new_tokens: int
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0
    logprobs: bool = False


@dataclass(frozen=True)
class Step:
    """What one prompt got in one step.

    ids: its new tokens, without an end token; several with speculative decoding. logprobs: one a token, natural, or none
    finish: STOP, LENGTH or FAILED with its last tokens, else None
    """

    key: int
    ids: Sequence[int]
    logprobs: Sequence[float] = ()
    finish: str | None = None


@dataclass(frozen=True)
class Load:
    """running: prompts in the batch. waiting: given to the backend and not yet in it. cache_use: share of the KV cache."""

    running: int
    waiting: int
    cache_use: float = 0.0


class Backend(Protocol):
    """A model with a batch that prompts join and leave. Not thread-safe: one thread calls it."""

    name: str

    def add(self, key: int, ids: Sequence[int], sampling: Sampling) -> None:
        """Let a prompt (token ids) join at the next step. ValueError with a sentence for what this runtime cannot do."""
        ...

    def step(self) -> list[Step]:
        """Run the model once over whatever is in the batch; one Step for each prompt that got something."""
        ...

    def cancel(self, key: int) -> None:
        """Take a prompt out; its place is free at the next step, and no Step of it follows. Unknown keys are ignored."""
        ...

    def load(self) -> Load:
        """How full it is now."""
        ...
