"""Metrics of an embedding model: its vectors against the original's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from archiver.data.examples import Example
from archiver.evaluation.rounding import rounded
from handlers.inputs.text import TextInput

NEIGHBOURS = 10
MAX_NEIGHBOUR_TEXTS = 4096  # the similarity matrix of more would take the memory, and the mean changes no more


def embedding_metrics(
    vectors: np.ndarray, original: np.ndarray, texts: Sequence[TextInput], examples: Sequence[Example]
) -> dict[str, float]:
    """cosine (mean, to the original's vector), recall@10 of the original's nearest neighbours, spearman on scored pairs.

    vectors, original: [len(texts), width] for `texts`; the examples' texts are among them. recall@10 needs more than
    ten texts, spearman pairs with scores; what cannot be measured is left out.
    """
    metrics, ours = vector_metrics(vectors, original), _unit(vectors)
    pairs = [(e.text, e.text_pair, e.label) for e in examples if e.text_pair is not None and e.label is not None]
    if len({label for _, _, label in pairs}) > 1:  # among equal scores there is no order to keep
        from scipy.stats import spearmanr

        place = {text.text: index for index, text in enumerate(texts)}
        left = ours[[place[text] for text, _, _ in pairs]]
        right = ours[[place[text] for _, text, _ in pairs]]
        rho = spearmanr((left * right).sum(axis=1), [label for _, _, label in pairs]).statistic
        if np.isfinite(rho):
            metrics["spearman"] = float(rho)
    return rounded(metrics)


def vector_metrics(vectors: np.ndarray, original: np.ndarray) -> dict[str, float]:
    """cosine (mean, to the original's vector) and, of more than ten inputs, recall@10 of the original's neighbours.

    Args:
        vectors, original: [n, width], of the same inputs.
    """
    ours, theirs = _unit(vectors), _unit(original)
    metrics = {"cosine": float((ours * theirs).sum(axis=1).mean())}
    if len(ours) > NEIGHBOURS:
        metrics[f"recall@{NEIGHBOURS}"] = neighbour_recall(ours[:MAX_NEIGHBOUR_TEXTS], theirs[:MAX_NEIGHBOUR_TEXTS])
    return rounded(metrics)


def neighbour_recall(vectors: np.ndarray, original: np.ndarray, k: int = NEIGHBOURS) -> float:
    """Mean share of each row's k nearest neighbours (cosine; unit rows, itself left out) that stay among the k nearest."""
    found = []
    for matrix in (vectors, original):
        similarity = matrix @ matrix.T
        np.fill_diagonal(similarity, -np.inf)
        found.append(np.argpartition(-similarity, k - 1, axis=1)[:, :k])
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(*found, strict=True)]))


def unique_texts(examples: Sequence[Example]) -> list[TextInput]:
    """Each single text of the examples once, in order of first appearance: what an embedding model is measured on."""
    texts: dict[str, None] = {}
    for example in examples:
        texts.setdefault(example.text)
        if example.text_pair is not None:
            texts.setdefault(example.text_pair)
    return [TextInput(text) for text in texts]


def _unit(vectors: np.ndarray) -> np.ndarray:
    unit: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit
