"""Stored examples: how far two answers of one input lie apart, and when that is too far."""

from __future__ import annotations

import math

import pytest

from handlers.examples import check_examples, largest_share, read_examples
from handlers.inputs.text import Text, TextInput
from handlers.tasks.text.classification import TextClassificationHandler
from handlers.tasks.text.feature_extraction import FeatureExtractionHandler
from handlers.tasks.text.generation import TextGenerationHandler


def test_difference_by_hand():
    assert largest_share({0: 1.0, 1: -4.0}, {0: 1.2, 1: -4.0}) == pytest.approx(0.05)  # 0.2 of the largest, 4
    assert largest_share({}, {}) == 0.0
    assert largest_share({"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 0.5}) == 0.5
    assert math.isinf(largest_share({"a": 1.0}, {"a": 1.0, "b": 2.0}))


def test_vectors_are_compared_by_place():
    compare = FeatureExtractionHandler().compare
    assert compare([1.0, -4.0], [1.2, -4.0]) == pytest.approx(0.05)
    assert math.isinf(compare([1.0], [1.0, 2.0]))
    assert math.isinf(compare([1.0], [{"label": "a", "score": 0.8}]))
    assert math.isinf(compare([1.0], None))


def test_labels_are_compared_by_label_and_not_by_place():
    compare = TextClassificationHandler().compare
    stored = [{"label": "a", "score": 0.8}, {"label": "b", "score": 0.2}]
    assert compare(stored, stored[::-1]) == 0.0
    found = [{"label": "b", "score": 0.6}, {"label": "a", "score": 0.4}]
    assert compare(stored, found) == pytest.approx(0.5)
    assert math.isinf(compare(stored, stored[:1]))
    assert math.isinf(compare(stored, [1.0, 2.0]))


def test_texts_are_equal_or_not():
    compare = TextGenerationHandler().compare
    assert compare([{"generated_text": "a"}], [{"generated_text": "a"}]) == 0.0
    assert math.isinf(compare([{"generated_text": "a"}], [{"generated_text": "b"}]))
    assert math.isinf(compare([{"generated_text": "a"}], []))


def test_stored_inputs(tmp_path):
    for stored, found in (("a", TextInput("a")), ({"text": "a", "text_pair": "b"}, TextInput("a", "b"))):
        assert Drifting.input.from_stored(stored) == found
        assert Drifting.input.to_stored(found) == stored
    (tmp_path / "examples.json").write_bytes(b'[{"input":"\xc3\xa9","answer":[1.0]}]\n')
    assert read_examples(tmp_path) == [{"input": "é", "answer": [1.0]}]


class Drifting:
    """Answers with the length of the text, and `drift` more in a batch than alone."""

    input = Text(None)  # type: ignore[arg-type]  # nothing is tokenized
    full_parameters: dict[str, object] = {}
    compare = FeatureExtractionHandler.compare

    def __init__(self, drift: float) -> None:
        self.drift = drift

    def respond(self, inputs, parameters=None):
        return [[len(item.text) + (self.drift if len(inputs) > 1 else 0.0)] for item in inputs]


def test_alone_and_in_a_batch_are_both_looked_at():
    stored = [{"input": "four", "answer": [4.0]}, {"input": "ten letters", "answer": [10.0]}]
    assert check_examples(Drifting(0.0), stored[:1], 0.01) == []
    assert check_examples(Drifting(0.0), stored, 0.01) == [
        "example 1 alone differs by 0.1, allowed 0.01",
        "example 1 in a batch differs by 0.1, allowed 0.01",
    ]
    assert check_examples(Drifting(0.5), [stored[0], stored[0]], 0.01) == [
        "example 0 in a batch differs by 0.125, allowed 0.01",
        "example 1 in a batch differs by 0.125, allowed 0.01",
    ]
    assert check_examples(Drifting(0.0), [], 0.01) == []
