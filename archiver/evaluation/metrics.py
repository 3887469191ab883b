"""What compression cost: metrics of the compressed model beside those of the fp32 original, on the same examples.

Every function takes raw outputs [n, width] float32 (logits, or pooled vectors) in the order of the examples.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from archiver.data.examples import Example
from archiver.errors import DataError
from handlers.inputs.text import TextInput
from handlers.tasks.text.classification import sigmoid, softmax

DECIMALS = 6
NEIGHBOURS = 10
MAX_NEIGHBOUR_TEXTS = 4096  # the similarity matrix of more would take the memory, and the mean changes no more


def classification_metrics(
    logits: np.ndarray, original: np.ndarray, examples: Sequence[Example], *, multi_label: bool
) -> dict[str, float]:
    """agreement (share of inputs with the original's labels) and, where there are labels, accuracy, f1, cross_entropy.

    Multi-label: accuracy is the share of inputs whose whole set is right at 0.5, f1 the mean over labels, cross_entropy
    the mean binary one. f1 is macro: labels that neither occur nor are predicted count for nothing.
    """
    predicted, before = _decide(logits, multi_label), _decide(original, multi_label)
    metrics = {"agreement": float((predicted == before).all(axis=1).mean())}
    if any(example.label is None for example in examples):
        return _rounded(metrics)
    truth = np.zeros(logits.shape, bool)
    for row, example in enumerate(examples):
        ids = example.label if isinstance(example.label, tuple) else (int(example.label or 0),)
        truth[row, list(ids)] = True
    metrics["accuracy"] = float((predicted == truth).all(axis=1).mean())
    hits, calls, wanted = (predicted & truth).sum(0), predicted.sum(0), truth.sum(0)
    seen = (calls + wanted) > 0
    metrics["f1"] = float(np.mean(2 * hits[seen] / (calls + wanted)[seen]))
    if multi_label:
        p = np.clip(sigmoid(logits.astype(np.float64)), 1e-12, 1 - 1e-12)
        metrics["cross_entropy"] = float(-np.where(truth, np.log(p), np.log(1 - p)).mean())
    else:
        p = softmax(logits.astype(np.float64))
        metrics["cross_entropy"] = float(-np.log(np.maximum(p[truth], 1e-12)).mean())
    return _rounded(metrics)


def _decide(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """[n, labels] bool: the labels the model gives each input."""
    if multi_label:
        return logits > 0
    return np.arange(logits.shape[1]) == logits.argmax(axis=1)[:, None]


def embedding_metrics(
    vectors: np.ndarray, original: np.ndarray, texts: Sequence[TextInput], examples: Sequence[Example]
) -> dict[str, float]:
    """cosine (mean, to the original's vector), recall@10 of the original's nearest neighbours, spearman on scored pairs.

    vectors, original: [len(texts), width] for `texts`; the examples' texts are among them. recall@10 needs more than
    ten texts, spearman pairs with scores; what cannot be measured is left out.
    """
    ours, theirs = _unit(vectors), _unit(original)
    metrics = {"cosine": float((ours * theirs).sum(axis=1).mean())}
    if len(texts) > NEIGHBOURS:
        metrics[f"recall@{NEIGHBOURS}"] = neighbour_recall(ours[:MAX_NEIGHBOUR_TEXTS], theirs[:MAX_NEIGHBOUR_TEXTS])
    pairs = [(e.text, e.text_pair, e.label) for e in examples if e.text_pair is not None and e.label is not None]
    if len({label for _, _, label in pairs}) > 1:  # among equal scores there is no order to keep
        place = {text.text: index for index, text in enumerate(texts)}
        left = ours[[place[text] for text, _, _ in pairs]]
        right = ours[[place[text] for _, text, _ in pairs]]
        rho = spearmanr((left * right).sum(axis=1), [label for _, _, label in pairs]).statistic
        if np.isfinite(rho):
            metrics["spearman"] = float(rho)
    return _rounded(metrics)


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


def measure(
    outputs: np.ndarray,
    original: np.ndarray,
    inputs: Sequence[TextInput],
    examples: Sequence[Example],
    *,
    task: str,
    multi_label: bool,
) -> dict[str, float]:
    """The task's metrics of `outputs` against the labels and against the original's outputs."""
    if not np.isfinite(outputs).all():
        raise DataError("the model gave an answer that is not finite on a validation text: nothing can be measured")
    if task == "feature-extraction":
        return embedding_metrics(outputs, original, inputs, examples)
    if outputs.shape[1] == 1 and not multi_label:
        return {}
    return classification_metrics(outputs, original, examples, multi_label=multi_label)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {name: round(value, DECIMALS) for name, value in metrics.items()}
