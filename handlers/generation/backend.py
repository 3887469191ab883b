"""What the runtimes that write text have in common: prompts join a running batch between two steps, and leave it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from handlers.protocols.continuation import FAILED, LENGTH, STOP, Sampling, Top

# A longer prompt is read in pieces of so many tokens, between which the running ones go on.
PROMPT_TOKENS_A_STEP = 256


@dataclass(frozen=True)
class Step:
    """What one prompt got in one step.

    ids: its new tokens, without an end token; several with speculative decoding. logprobs: one a token, natural, or none
    tops: of the likeliest tokens, one a token, or none
    finish: STOP, LENGTH or FAILED with its last tokens, else None. error: why it failed, where that is known
    """

    key: int
    ids: Sequence[int]
    logprobs: Sequence[float] = ()
    finish: str | None = None
    tops: Sequence[Top] = ()
    error: str | None = None


@dataclass(frozen=True)
class Load:
    """running: prompts in the batch. waiting: given to the backend and not yet in it. cache_use: share of the KV cache."""

    running: int
    waiting: int
    cache_use: float = 0.0


class Stepping(Protocol):
    """A model with a batch that texts leave one by one. Not thread-safe: one thread calls it."""

    name: str

    def step(self) -> list[Step]:
        """Run the model once over whatever is in the batch; one Step for each text that got something."""
        ...

    def cancel(self, key: int) -> None:
        """Take a text out; its place is free at the next step, and no Step of it follows. Unknown keys are ignored."""
        ...

    def load(self) -> Load:
        """How full it is now."""
        ...


class Backend(Stepping, Protocol):
    """A model that goes on from prompts, which join its batch between two steps.

    constrains: whether its texts can be held to a grammar, Sampling.constraint.
    """

    constrains: bool

    def __init__(self, folder: Path, spec: Mapping[str, Any], threads: int, end_ids: Collection[int]) -> None:
        """Open the model of an extracted archive.

        Args:
            folder: the archive. spec: serving.json's `session`. threads: for one step. end_ids: tokens that end a text.
        Raises: UnsoundArchive saying which package or device is missing, or what is wrong with the files.
        """
        ...

    def add(self, key: int, ids: Sequence[int], sampling: Sampling, adapter: int = 0) -> None:
        """Let a prompt (token ids) join at the next step. ValueError with a sentence for what this runtime cannot do.

        Args:
            adapter: the number of one of the archive's LoRA adapters, 0 for none.
        """
        ...


__all__ = ["FAILED", "LENGTH", "PROMPT_TOKENS_A_STEP", "STOP", "Backend", "Load", "Sampling", "Step", "Stepping", "Top"]
