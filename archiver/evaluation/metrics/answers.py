"""Exact match and F1 of answers to questions, as SQuAD's official script counts them.

Source: evaluate-v1.1.py and evaluate-v2.0.py of rajpurkar/SQuAD-explorer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)


def answer_metrics(right: Sequence[Sequence[str]], found: Sequence[str]) -> dict[str, float]:
    """exact_match and f1, each the mean over questions of the best over a question's true answers.

    Args:
        right: [n] questions' true answers; none where the context does not hold one, which "" answers.
        found: [n] answers.
    """
    exact = f1 = 0.0
    for golds, answer in zip(right, found, strict=True):
        wanted = [plain for gold in golds if (plain := normalized(gold))] or [""]
        said = normalized(answer)
        exact += max(float(gold == said) for gold in wanted)
        f1 += max(overlap(gold, said) for gold in wanted)
    return {"exact_match": exact / len(found), "f1": f1 / len(found)}


def normalized(text: str) -> str:
    """A text in lower case without punctuation and articles, its words one space apart."""
    bare = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def overlap(gold: str, said: str) -> float:
    """F1 of the words of two normalized texts; where one has none, whether both have none."""
    wanted, words = gold.split(), said.split()
    if not wanted or not words:
        return float(wanted == words)
    same = sum((Counter(wanted) & Counter(words)).values())
    return 2 * same / (len(wanted) + len(words))
