"""int8 with a scale per row: a tensor by hand, and its error bound."""

from __future__ import annotations

import pytest
import torch

from archiver.storage.int8_rows import quantize_rows


def test_by_hand():
    weight = torch.tensor([[127.0, -127.0, 1.0, 0.4], [0.5, -0.254, 0.0, 0.006], [0.0, 0.0, 0.0, 0.0]])
    q, scale = quantize_rows(weight)
    # Row 2: scale 0.5 / 127 = 0.003937; −0.254 / 0.003937 = −64.5, and 0.006 / 0.003937 = 1.52.
    assert scale.flatten().tolist() == pytest.approx([1.0, 0.5 / 127, 1.0])
    assert q[0].tolist() == [127, -127, 1, 0]
    assert q[1].tolist()[0] == 127
    assert q[1].tolist()[2:] == [0, 2]
    assert q[2].tolist() == [0, 0, 0, 0]
    assert q.dtype == torch.int8
    assert torch.equal((q * scale)[2], torch.zeros(4))


def test_the_error_is_at_most_half_a_step():
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 4, 64)[:, None]
    q, scale = quantize_rows(weight)
    assert int(q.min()) >= -127
    assert ((q * scale - weight).abs() <= scale / 2 * (1 + 1e-5)).all()


def test_sqnr_floor():
    weight = torch.randn(256, 384, generator=torch.Generator().manual_seed(1)).double()
    q, scale = quantize_rows(weight)
    noise = q * scale.double() - weight
    sqnr = 10 * torch.log10(weight.square().sum() / noise.square().sum())
    assert float(sqnr) > 40  # Gaussian rows of 384: peak ≈ 3 σ, so a step of σ · 3/127 and 10·log10(12/0.0236²) ≈ 43 dB


def test_blocks_change_nothing(monkeypatch):
    weight = torch.randn(37, 10, generator=torch.Generator().manual_seed(0)).t()
    whole = quantize_rows(weight)
    monkeypatch.setattr("archiver.storage.int8_rows._BLOCK", 3 * 37)
    assert all(map(torch.equal, quantize_rows(weight), whole))
