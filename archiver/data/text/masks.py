"""Texts with masked words, for a masked language model to find: which words, a fixed seed says."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archiver.data.examples import read_examples
from archiver.errors import DataError
from handlers.requirements import require

SEED = 20_261_125
SHARE = 0.15  # of a text's tokens, as BERT was trained


@dataclass(frozen=True)
class MaskedExample:
    """text: with mask tokens, as a request has them. words: the tokens that stood there, in order, as the vocabulary spells
    them."""

    text: str
    words: tuple[str, ...]


def read_masked(
    source: Path | str,
    column: Mapping[str, str | int] | None,
    tokenizer_json: bytes,
    mask_token: str,
    max_length: int,
    most: int,
) -> list[MaskedExample]:
    """The texts of one source, each with up to `most` of its tokens masked.

    Args:
        source, column: as `read_examples` has them. tokenizer_json, mask_token: the model's.
        max_length: tokens behind that are not looked at.
    Returns: one example a text in which some token can be masked, at least one.
    Raises: DataError that lists every bad row, and where no text can be masked.
    """
    texts = [example.text for example in read_examples(source, column, labels="none")]
    found = mask_words(texts, tokenizer_json, mask_token, max_length, most)
    if not found:
        name = source.name if isinstance(source, Path) else source
        raise DataError(
            f"{name} has no text in which a word can be masked: each needs one token with a letter or digit"
        )
    return found


def mask_words(
    texts: Sequence[str], tokenizer_json: bytes, mask_token: str, max_length: int, most: int, seed: int = SEED
) -> list[MaskedExample]:
    """SHARE of each text's tokens masked, at least one, at most `most`; a text in which none can be is left out.

    Only tokens with a letter or digit, and only such as the tokenizer finds again around the mask: then the masked text's
    tokens are the text's own but for the masks.
    """
    tokenizer: Any = require("tokenizers", "tokenizers").Tokenizer.from_buffer(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    chance = random.Random(seed)
    masked = []
    for text in texts:
        if (found := _masked(text, tokenizer, mask_token, most, chance)) is not None:
            masked.append(found)
    return masked


def _masked(text: str, tokenizer: Any, mask_token: str, most: int, chance: random.Random) -> MaskedExample | None:
    encoding, mask_id = tokenizer.encode(text), tokenizer.token_to_id(mask_token)
    spans = {
        place: span
        for place, (span, special) in enumerate(zip(encoding.offsets, encoding.special_tokens_mask, strict=True))
        if not special and any(map(str.isalnum, text[slice(*span)]))
    }
    if mask_id in encoding.ids:  # what stood there, nobody knows
        return None
    wanted = min(most, max(1, round(SHARE * len(spans))))
    chosen: list[int] = []
    for place in chance.sample(sorted(spans), len(spans)):
        if len(chosen) == wanted:
            break
        tried = sorted([*chosen, place])
        ids = [mask_id if i in tried else token for i, token in enumerate(encoding.ids)]
        if tokenizer.encode(_cut(text, [spans[i] for i in tried], mask_token)).ids == ids:
            chosen = tried
    if not chosen:
        return None
    return MaskedExample(
        _cut(text, [spans[i] for i in chosen], mask_token), tuple(encoding.tokens[place] for place in chosen)
    )


def _cut(text: str, spans: Sequence[tuple[int, int]], mask_token: str) -> str:
    """`text` with a mask token in the place of each span, without the white space that some tokenizers count to it."""
    for start, end in reversed(spans):
        start += len(text[start:end]) - len(text[start:end].lstrip())
        text = text[:start] + mask_token + text[end:]
    return text
