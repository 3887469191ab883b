"""Entities of a text from each token's label scores, as transformers' TokenClassificationPipeline finds them.

Source: transformers 5.5, pipelines/token_classification.py: the same tokens make a word, the same words an entity.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

STRATEGIES = ("none", "simple", "first", "average", "max")


@dataclass(frozen=True)
class Token:
    """One token of a text: its id, its place among the model's tokens, and its characters [start, end) in the text."""

    id: int
    index: int
    start: int
    end: int


@dataclass(frozen=True)
class _Unit:
    """A token or a word, with its best label."""

    label: str
    score: Any
    tokens: Sequence[Token]


class Vocabulary:
    """What a tokenizer says of its tokens.

    Args:
        tokenizer: a tokenizers.Tokenizer. unknown: the token that stands for what is not in the vocabulary, or None.
    """

    def __init__(self, tokenizer: Any, unknown: str | None) -> None:
        self.name: Callable[[int], str] = tokenizer.id_to_token
        self._decoder = tokenizer.decoder
        # With a prefix (WordPiece's ##) a token's own name says whether it goes on with a word.
        self.marks_subwords = bool(getattr(tokenizer.model, "continuing_subword_prefix", None))
        self.unknown_id: int | None = None if unknown is None else tokenizer.token_to_id(unknown)

    def join(self, names: Sequence[str]) -> str:
        """The text of tokens, given by their names."""
        return str(self._decoder.decode(list(names))) if self._decoder is not None else " ".join(names)


def find_entities(
    text: str,
    tokens: Sequence[Token],
    scores: np.ndarray,
    labels: Sequence[str],
    vocabulary: Vocabulary,
    *,
    strategy: str = "none",
    ignored: Collection[str] = ("O",),
) -> list[dict[str, Any]]:
    """The entities of one text.

    Args:
        tokens: [n] of the text, without special tokens, in order.
        scores: [n, labels] float32, each row sums to 1. labels: names by id.
        strategy: "none": each token for itself. "simple": neighbours of one label together; "first", "average", "max": the
            same after each word has one label, that of its first token, of its tokens' mean scores or of its surest token.
        ignored: labels that are left out.
    Returns: for "none" entity, score, index, word, start and end; else entity_group, score, word, start and end. start and
        end are characters of `text`.
    """
    if strategy in ("none", "simple"):
        best = scores.argmax(axis=-1).tolist() if len(tokens) else []
        units = [
            _Unit(labels[label], scores[row, label], [token])
            for row, (token, label) in enumerate(zip(tokens, best, strict=True))
        ]
    else:
        units = _words(text, tokens, scores, labels, vocabulary, strategy)
    if strategy == "none":
        return [
            {
                "entity": unit.label,
                "score": _rounded(unit.score),
                "index": unit.tokens[0].index,
                "word": _name(text, unit.tokens[0], vocabulary),
                "start": unit.tokens[0].start,
                "end": unit.tokens[0].end,
            }
            for unit in units
            if unit.label not in ignored
        ]
    # A name is asked for where it is answered: most of a text is no entity.
    return [
        {
            "entity_group": kind,
            "score": _rounded(np.mean([unit.score for unit in group])),
            "word": _joined(text, group, vocabulary, by_word=strategy != "simple"),
            "start": group[0].tokens[0].start,
            "end": group[-1].tokens[-1].end,
        }
        for group in _groups(units)
        if (kind := group[0].label.split("-", 1)[-1]) not in ignored
    ]


def _name(text: str, token: Token, vocabulary: Vocabulary) -> str:
    return text[token.start : token.end] if token.id == vocabulary.unknown_id else vocabulary.name(token.id)


def _joined(text: str, units: Sequence[_Unit], vocabulary: Vocabulary, *, by_word: bool) -> str:
    """Tokens as text; by word joined twice, as the pipeline does: a decoder may change spaces."""
    if not by_word:
        return vocabulary.join([_name(text, token, vocabulary) for unit in units for token in unit.tokens])
    return vocabulary.join(
        [vocabulary.join([_name(text, token, vocabulary) for token in unit.tokens]) for unit in units]
    )


def _is_subword(text: str, token: Token, vocabulary: Vocabulary) -> bool:
    """Whether a token goes on with the word before it, by the pipeline's own signs."""
    if token.id == vocabulary.unknown_id:
        return False
    if vocabulary.marks_subwords:
        return len(vocabulary.name(token.id)) != token.end - token.start
    return token.start > 0 and " " not in text[token.start - 1 : token.start + 1]


def _words(
    text: str,
    tokens: Sequence[Token],
    scores: np.ndarray,
    labels: Sequence[str],
    vocabulary: Vocabulary,
    strategy: str,
) -> list[_Unit]:
    begins = [row for row, token in enumerate(tokens) if row == 0 or not _is_subword(text, token, vocabulary)]
    units = []
    for begin, end in zip(begins, [*begins[1:], len(tokens)], strict=True):
        rows = scores[begin:end]
        of_word = rows[0]
        if strategy == "max":
            of_word = rows[int(rows.max(axis=-1).argmax())]
        elif strategy == "average":
            of_word = rows.mean(axis=0)
        best = int(of_word.argmax())
        units.append(_Unit(labels[best], of_word[best], tokens[begin:end]))
    return units


def _groups(units: Sequence[_Unit]) -> list[list[_Unit]]:
    """Neighbours of one label, whatever their B- or I-, together; a B- begins anew."""
    groups: list[list[_Unit]] = []
    for unit in units:
        prefix, kind = _tag(unit.label)
        if groups and kind == _tag(groups[-1][-1].label)[1] and prefix != "B":
            groups[-1].append(unit)
        else:
            groups.append([unit])
    return groups


def _tag(label: str) -> tuple[str, str]:
    return (label[0], label[2:]) if label.startswith(("B-", "I-")) else ("I", label)


def _rounded(score: Any) -> float:
    return round(float(score), 6)


def token_differences(stored: Sequence[Mapping[str, float]], found: Sequence[Mapping[str, float]]) -> float:
    """The largest difference of any label's score of any token; inf where there are other tokens or labels."""
    if len(stored) != len(found) or any(a.keys() != b.keys() for a, b in zip(stored, found, strict=True)):
        return float("inf")
    return max((abs(a[name] - b[name]) for a, b in zip(stored, found, strict=True) for name in a), default=0.0)
