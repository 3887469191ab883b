"""Stored examples: how far two answers of one input lie apart, and when that is too far."""

from __future__ import annotations

import math

import pytest

from handlers.examples import answer_difference, as_input, check_examples, read_examples
from handlers.inputs.text import TextInput


def test_difference_by_hand():
    assert answer_difference([1.0, -4.0], [1.2, -4.0]) == pytest.approx(0.05)  # 0.2 of the largest, 4
    assert answer_difference([], []) == 0.0
    assert answer_difference([0.0, 0.0], [0.0, 0.5]) == 0.5
    assert math.isinf(answer_difference([1.0], [1.0, 2.0]))


def test_difference_of_labels_goes_by_label_and_not_by_place():
    stored = [{"label": "a", "score": 0.8}, {"label": "b", "score": 0.2}]
    assert answer_difference(stored, stored[::-1]) == 0.0
    found = [{"label": "b", "score": 0.6}, {"label": "a", "score": 0.4}]
    assert answer_difference(stored, found) == pytest.approx(0.5)
    assert math.isinf(answer_difference(stored, stored[:1]))
    assert math.isinf(answer_difference(stored, [1.0, 2.0]))


def test_stored_inputs(tmp_path):
    assert as_input("a") == TextInput("a")
    assert as_input({"text": "a", "text_pair": "b"}) == TextInput("a", "b")
    (tmp_path / "examples.json").write_bytes(b'[{"input":"\xc3\xa9","answer":[1.0]}]\n')
    assert read_examples(tmp_path) == [{"input": "é", "answer": [1.0]}]


class Drifting:
    """Answers with the length of the text, and `drift` more in a batch than alone."""

    parameters: dict[str, object] = {}

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
