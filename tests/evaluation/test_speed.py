"""Timing in turns: which batches are timed, in which order, and how rounds become one number."""

from __future__ import annotations

import numpy as np
import pytest

from archiver.evaluation import speed
from archiver.evaluation.speed import Speed, compare_speed, sorted_batches
from handlers.inputs.text import Encoder, Text, TextInput


def test_batches_of_16_of_like_length(tiny_model):
    encoder = Encoder(tiny_model() / "tokenizer.json", max_length=64, pad_id=0)
    inputs = [TextInput("good " * (1 + (i * 7) % 40)) for i in range(40)]
    batches = sorted_batches(Text(encoder), encoder.encode(inputs))
    assert [batch["input_ids"].shape[0] for batch in batches] == [16, 16, 8]
    lengths = np.concatenate([batch["attention_mask"].sum(axis=1) for batch in batches])
    assert lengths.tolist() == sorted(3 + (i * 7) % 40 for i in range(40))
    assert all(batch["attention_mask"][-1].all() for batch in batches)  # padded to the longest and no further


def test_of_many_texts_every_kth_by_length(tiny_model):
    encoder = Encoder(tiny_model() / "tokenizer.json", max_length=64, pad_id=0)
    inputs = [TextInput("good " * (1 + i)) for i in range(40)]
    batches = sorted_batches(Text(encoder), encoder.encode(inputs), limit=10)
    assert [batch["attention_mask"].sum(axis=1).tolist() for batch in batches] == [[3 + 4 * i for i in range(10)]]


def test_turns_and_medians(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock[0])
    calls: list[str] = []
    costs = {"original": iter([50.0, 2.0, 9.0, 3.0]), "compressed": iter([70.0, 1.0, 1.5, 30.0])}

    def run(name: str):
        def call(arrays):
            calls.append(name)
            clock[0] += next(costs[name])
            return arrays["input_ids"]

        return call

    batch = {"input_ids": np.zeros((6, 3), np.int64)}
    found = compare_speed(run("original"), run("compressed"), [batch], rounds=3)
    assert calls == ["original", "compressed"] * 4
    # The first turn is not counted; the medians of 2, 9, 3 and of 1, 1.5, 30 are 3 and 1.5 seconds for 6 texts.
    assert found == Speed(2.0, 4.0)
    assert found.speedup == pytest.approx(2.0)
