"""The options of `share: {method: vocabulary}`."""

from __future__ import annotations

from dataclasses import dataclass

from archiver.fields import option


@dataclass(frozen=True)
class Vocabulary:
    """Embedding rows that no text needs are dropped; the tokenizer still handles every string."""

    keep: int | str = option(
        "integer",
        "train",
        choices=("train",),
        minimum=1,
        help="train: every token of data.train; a number: its most frequent ones; single characters and special "
        "tokens are kept beside them",
    )
