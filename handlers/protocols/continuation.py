"""What a request for text asks for and what its answer tells, apart from the form: runtimes and tasks see nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from handlers.protocols.grammar import Grammar

# Why a text ended.
STOP = "stop"  # one of the model's end tokens came
STOP_STRING = "stop_string"  # one of the request's stop strings came
LENGTH = "length"  # max_new_tokens are there
TIME = "time"  # its deadline passed
FAILED = "failed"  # the runtime gave up on this one

MIN_TEMPERATURE = 1e-5  # below it the likeliest token is the answer: do_sample false


class Matcher(Protocol):
    """What follows one text that has to match a grammar; see `handlers.generation.grammar.Matcher`."""

    @property
    def complete(self) -> bool:
        """Whether the text matches and nothing can follow."""
        ...

    @property
    def error(self) -> str | None:
        """Why the grammar cannot be followed any further, None where it can."""
        ...

    def choose(
        self,
        logits: np.ndarray,
        likeliest: int,
        prompt: Sequence[int],
        found: Sequence[int],
        sampling: "Sampling",
        generator: np.random.Generator,
    ) -> tuple[int, float]:
        """The next token, of those that may come, and its log-probability."""
        ...


class Constraint(Protocol):
    """A grammar that texts have to match."""

    def begin(self) -> Matcher:
        """For a text of which nothing is written."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and how many are wanted.

    Without do_sample always the likeliest one. top_k 0: all. seed: of this prompt alone, whatever runs beside it.
    logprobs: whether the tokens' log-probabilities are asked for. top_logprobs: so many of the likeliest tokens' at each
    place. bias: (token, what is added to its logit). constraint: what the text has to match, None for free.
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
    top_logprobs: int = 0
    bias: tuple[tuple[int, float], ...] = ()
    constraint: Constraint | None = None


@dataclass(frozen=True)
class GenerationRequest:
    """Texts to continue.

    prompts: texts, or token ids. places: what each is called in a message. special_tokens: whether the tokenizer adds its
    own around a prompt; a rendered chat has them. sampling: with max_new_tokens 0 where the request does not say, and then
    default_new_tokens are written; None: as many as there is room for. stops: strings before which a text ends.
    stream: whether texts are sent while they are written. max_time: seconds, None: the archive's own limit.
    grammar: what each text has to match, None for free. keep_special: whether special tokens stand in the texts.
    adapter: the number of the LoRA adapter that writes, 0 for the model itself.
    """

    prompts: tuple[str | tuple[int, ...], ...]
    places: tuple[str, ...]
    sampling: Sampling
    default_new_tokens: int | None = None
    special_tokens: bool = True
    stops: tuple[str, ...] = ()
    stream: bool = False
    max_time: float | None = None
    grammar: Grammar | None = None
    keep_special: bool = False
    adapter: int = 0


Top = Sequence[tuple[int, float]]  # the likeliest tokens at one place and their log-probabilities, the likeliest first


class Continuation(Protocol):
    """One prompt's text, as far as it is written.

    logprobs, tops: one for each token, where they are asked for. finish: None while it is written, then one of the words
    above.
    """

    prompt: Sequence[int]
    sampling: Sampling
    ids: list[int]
    logprobs: list[float]
    tops: list[Top]
    text: str
    finish: str | None


class Renderer(Protocol):
    """One request's answer in the form that it was asked in."""

    def whole(self, found: Sequence[Continuation]) -> Any:
        """The JSON value to answer when all prompts' texts are there."""
        ...

    def piece(self, found: Continuation, text: str, index: int = 0) -> bytes:
        """The events of a step that moved text `index` on by `text`; empty where there is nothing to tell yet."""
        ...

    def ending(self, found: Continuation, text: str, index: int = 0) -> bytes:
        """The last events of text `index`, with what came last of it."""
        ...

    def closing(self, found: Sequence[Continuation]) -> bytes:
        """The events behind the end of the last text."""
        ...
