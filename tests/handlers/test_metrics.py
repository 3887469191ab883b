"""What compression cost: every metric by hand, and against scikit-learn, SciPy or brute force on random data."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from archiver.data.examples import Example
from archiver.errors import DataError
from archiver.evaluation.metrics.classification import classification_metrics
from archiver.evaluation.metrics.embedding import embedding_metrics, neighbour_recall, unique_texts
from archiver.tasks import TASKS
from archiver.tasks.forward import Measured
from archiver.tasks.workload import require_finite
from handlers.base import Found
from handlers.inputs.text import TextInput
from handlers.tasks.text.classification import sigmoid, softmax


def test_single_label_by_hand():
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 4.0]], np.float32)
    original = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], np.float32)
    found = classification_metrics(logits, original, [0, 1, 1, 1], multi_label=False)
    # Predicted 0, 1, 0, 1: three of four right, three as before. F1 of label 0: 2·1/(2+1); of label 1: 2·2/(2+3).
    assert found["accuracy"] == 0.75
    assert found["agreement"] == 0.75
    assert found["f1"] == pytest.approx((2 / 3 + 4 / 5) / 2, abs=1e-6)
    losses = [np.log1p(np.exp(-2)), np.log1p(np.exp(-1)), np.log1p(np.exp(3)), np.log1p(np.exp(-4))]
    assert found["cross_entropy"] == pytest.approx(np.mean(losses), abs=1e-6)


def test_multi_label_by_hand():
    logits = np.array([[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]], np.float32)
    original = np.array([[1.0, -1.0], [1.0, -1.0], [-1.0, -1.0]], np.float32)
    found = classification_metrics(logits, original, [(0,), (0,), ()], multi_label=True)
    # The second has a label too many; the empty set is right. F1 of label 0: 1; of label 1: 0 of one call.
    assert found["accuracy"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["agreement"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["f1"] == 0.5
    good, bad = np.log1p(np.exp(-1)), np.log1p(np.exp(1))
    assert found["cross_entropy"] == pytest.approx((5 * good + bad) / 6, abs=1e-6)


def test_without_labels_only_agreement():
    logits = np.eye(3, dtype=np.float32)
    assert classification_metrics(logits, logits, [0, 1, None], multi_label=False) == {"agreement": 1.0}


@pytest.mark.parametrize("seed", range(3))
def test_single_label_against_scikit_learn(seed):
    sklearn = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(seed)
    logits = random.normal(size=(300, 5)).astype(np.float32) * 3
    truth = random.integers(0, 4, 300)  # label 4 never occurs, but may be predicted
    found = classification_metrics(logits, logits, truth.tolist(), multi_label=False)
    predicted = logits.argmax(1)
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(truth, predicted), abs=1e-6)
    assert found["f1"] == pytest.approx(sklearn.f1_score(truth, predicted, average="macro"), abs=1e-6)
    loss = sklearn.log_loss(truth, softmax(logits.astype(np.float64)), labels=range(5))
    assert found["cross_entropy"] == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_multi_label_against_scikit_learn(seed):
    sklearn = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(seed)
    logits = random.normal(size=(200, 4)).astype(np.float32)
    truth = random.random((200, 4)) < 0.4
    labels = [tuple(np.flatnonzero(row).tolist()) for row in truth]
    found = classification_metrics(logits, logits, labels, multi_label=True)
    predicted = logits > 0
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(truth, predicted), abs=1e-6)
    assert found["f1"] == pytest.approx(sklearn.f1_score(truth, predicted, average="macro"), abs=1e-6)
    p = sigmoid(logits.astype(np.float64))
    losses = [sklearn.log_loss(truth[:, i], p[:, i]) for i in range(4)]
    assert found["cross_entropy"] == pytest.approx(np.mean(losses), abs=1e-5)


def test_recall_by_hand():
    angles = np.radians([0, 10, 30, 90])
    original = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    moved = original[[0, 3, 2, 1]]  # the second and the fourth change places
    # Nearest of each before: 1, 0, 1, 2; with places changed: 3, 2, 3, 0 … none stays but what is found by looking.
    before, after = [1, 0, 1, 2], [3, 2, 3, 0]
    assert neighbour_recall(moved, original, k=1) == np.mean([a == b for a, b in zip(before, after, strict=True)])
    assert neighbour_recall(original, original, k=1) == 1.0
    assert neighbour_recall(moved, original, k=3) == 1.0  # three neighbours are all the others


@pytest.mark.parametrize("seed", range(3))
def test_recall_against_brute_force(seed):
    random = np.random.default_rng(seed)
    original = random.normal(size=(60, 8))
    vectors = original + random.normal(size=(60, 8)) * 0.3
    shares = []
    for i in range(60):
        nearest = []
        for matrix in (original, vectors):
            cosine = [-(matrix[i] @ m) / np.linalg.norm(matrix[i]) / np.linalg.norm(m) for m in matrix]
            nearest.append(
                {j for j in np.argsort(cosine) if j != i and sorted(cosine[:i] + cosine[i + 1 :])[9] >= cosine[j]}
            )
        shares.append(len(nearest[0] & nearest[1]) / 10)
    texts = [TextInput(str(i)) for i in range(60)]
    found = embedding_metrics(vectors, original, texts, [Example(text.text) for text in texts])
    assert found["recall@10"] == pytest.approx(np.mean(shares), abs=1e-6)
    assert found.keys() == {"cosine", "recall@10"}
    cosines = (vectors * original).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(original, axis=1)
    assert found["cosine"] == pytest.approx(cosines.mean(), abs=1e-6)


def test_spearman_against_ranks_by_hand():
    # Cosines of the pairs: cos 0°, cos 60°, cos 90°, cos 30°: ranks 4, 2, 1, 3; the scores' ranks 4, 1, 2, 3.
    degrees = {"a": 0, "b": 0, "c": 0, "d": 60, "e": 0, "f": 90, "g": 0, "h": 30}
    vectors = np.array([[np.cos(np.radians(v)), np.sin(np.radians(v))] for v in degrees.values()])
    examples = [Example("a", "b", 5.0), Example("c", "d", 0.5), Example("e", "f", 1.0), Example("g", "h", 4.0)]
    texts = unique_texts(examples)
    assert [text.text for text in texts] == list(degrees)
    found = embedding_metrics(vectors, vectors, texts, examples)
    assert found["spearman"] == pytest.approx(1 - 6 * (0 + 1 + 1 + 0) / (4 * 15), abs=1e-6)
    assert found["cosine"] == 1.0
    assert "recall@10" not in found  # eight texts have no ten neighbours each


def test_spearman_that_does_not_exist_is_left_out():
    vectors = np.eye(6)
    examples = [Example(str(i), str(i + 1), 1.0) for i in range(0, 6, 2)]
    assert "spearman" not in embedding_metrics(vectors, vectors, unique_texts(examples), examples)


def test_texts_once_in_order():
    examples = [Example("b", "a"), Example("a", "c"), Example("b")]
    assert unique_texts(examples) == [TextInput("b"), TextInput("a"), TextInput("c")]


def test_what_is_no_number_is_refused_and_regression_left_out():
    good = np.zeros((2, 2), np.float32)
    metrics_of = TASKS["text-classification"].metrics_of

    def measured(outputs: np.ndarray, labels: list[Any]) -> Any:
        examples = [Example(f"text {i}", None, label) for i, label in enumerate(labels)]
        found = [Found(TextInput(one.text), [None], [row]) for one, row in zip(examples, outputs, strict=True)]
        return Measured(found, found, examples, SimpleNamespace(multi_label=False), None, None)  # type: ignore[arg-type]

    with pytest.raises(DataError, match="not finite on a validation text"):
        require_finite(np.array([[np.nan, 0], [0, 0]], np.float32))
    assert metrics_of(measured(good[:, :1], [0.5, 1.5])) == {}
    found = metrics_of(measured(good, [0, 1]))
    assert found.keys() == {"agreement", "accuracy", "f1", "cross_entropy"}


def test_activations():
    logits = np.array([[1000.0, 0.0], [-1000.0, 0.0], [0.0, 0.0]], np.float32)
    assert softmax(logits).tolist() == [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
    assert sigmoid(logits)[:, 0].tolist() == [1.0, 0.0, 0.5]
