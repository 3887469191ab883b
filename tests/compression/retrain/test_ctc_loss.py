"""The loss of a transcript over all its alignments: by hand, and transformers' own."""

from __future__ import annotations

import math

import pytest
import torch
from audio_models import sounds, tiny_audio_model

from archiver.compression.retrain.objectives import ctc_loss


def test_by_hand():
    # Two frames, blank 0 and one token: "1" is said by (1, 1), (0, 1) and (1, 0).
    shares = torch.tensor([[0.6, 0.4], [0.3, 0.7]])
    said = 0.4 * 0.7 + 0.6 * 0.7 + 0.4 * 0.3
    labels = torch.tensor([[2, 0, 1]])
    assert float(ctc_loss(shares.log()[None], labels)) == pytest.approx(-math.log(said), rel=1e-5)
    # The second row has one real frame, and its padding does not count; a row without tokens counts 0.
    rows = torch.stack([shares.log(), shares.log(), shares.log()])
    several = torch.tensor([[2, 0, 1], [1, 0, 1], [2, 0, -100]])
    assert float(ctc_loss(rows, several)) == pytest.approx((-math.log(said) - math.log(0.4)) / 3, rel=1e-5)


def test_too_few_frames_count_nothing():
    labels = torch.tensor([[2, 0, 1, 1]])  # a repeat needs a blank between: three frames
    outputs = torch.zeros(1, 2, 2, requires_grad=True)
    loss = ctc_loss(outputs, labels)
    loss.backward()
    assert loss.item() == 0
    assert outputs.grad is not None and torch.isfinite(outputs.grad).all()


def test_equals_transformers():
    model = tiny_audio_model(ctc_loss_reduction="mean", ctc_zero_infinity=True)
    values = torch.from_numpy(sounds(3000)[0])[None]
    tokens = torch.tensor([[4, 5, 2, 6]])
    with torch.no_grad():
        expected = model(values, labels=tokens)
        frames = expected.logits.shape[1]
        found = ctc_loss(expected.logits, torch.cat([torch.tensor([[frames, 0]]), tokens], dim=1))
    torch.testing.assert_close(found, expected.loss)
