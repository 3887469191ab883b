"""The losses over a vocabulary, made some rows at a time, against torch's own chain of operations and by hand."""

import math

import pytest
import torch
from torch.nn import functional

from archiver.compression.retrain import objectives
from archiver.compression.retrain.objectives import IGNORED, cross_entropy, softened_divergence

CLASSES = 11


@pytest.fixture(params=["in one block", "a row at a time", "in blocks that do not divide the rows"])
def blocks(request, monkeypatch):
    sizes = {"in one block": 2**18, "a row at a time": 1, "in blocks that do not divide the rows": 4 * CLASSES}
    monkeypatch.setattr(objectives, "_AT_ONCE", sizes[request.param])


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return torch.randn(2, 3, CLASSES) * 3, torch.randn(2, 3, CLASSES) * 3


def gradient_of(values, loss):
    leaf = values.clone().requires_grad_(True)
    found = loss(leaf)
    found.backward()
    return found.detach(), leaf.grad


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_and_its_gradient_are_those_of_torch(logits, temperature, blocks):
    ours, theirs = logits
    weight = torch.arange(6.0).view(2, 3)  # rows count differently, one not at all

    def reference(values):
        student = functional.log_softmax(values / temperature, dim=-1)
        target = functional.log_softmax(theirs / temperature, dim=-1)
        each = functional.kl_div(student, target, log_target=True, reduction="none").sum(-1)
        return (temperature**2 * each * weight).sum()

    found = gradient_of(ours, lambda values: (softened_divergence(values, theirs, temperature) * weight).sum())
    torch.testing.assert_close(found, gradient_of(ours, reference))


def test_cross_entropy_and_its_gradient_are_those_of_torch(logits, blocks):
    labels = torch.tensor([[0, IGNORED, 10], [3, 3, IGNORED]])
    found = gradient_of(logits[0], lambda values: 3 * cross_entropy(values, labels))
    wanted = gradient_of(logits[0], lambda values: 3 * functional.cross_entropy(values.flatten(0, 1), labels.flatten()))
    torch.testing.assert_close(found, wanted)


def test_gradients_hold_against_differences(logits, blocks):
    ours, theirs = (values.double() for values in logits)
    labels = torch.tensor([[0, IGNORED, 10], [3, 3, IGNORED]])
    leaf = ours.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda values: softened_divergence(values, theirs, 2.0), leaf)
    assert torch.autograd.gradcheck(lambda values: cross_entropy(values, labels), leaf)


def test_by_hand():
    # softmax(0, ln 3) = (¼, ¾): −ln ¾, and a gradient of (¼, ¾ − 1)
    found, slopes = gradient_of(torch.tensor([[0.0, math.log(3)]]), lambda v: cross_entropy(v, torch.tensor([1])))
    assert found.item() == pytest.approx(-math.log(0.75))
    assert slopes.tolist() == [[pytest.approx(0.25), pytest.approx(-0.25)]]


def test_one_row_alone(logits):
    ours, theirs = (values[0, 0] for values in logits)
    together = softened_divergence(logits[0], logits[1], 1.0)
    assert softened_divergence(ours, theirs, 1.0).item() == pytest.approx(together[0, 0].item())
    found, slopes = gradient_of(ours, lambda values: cross_entropy(values, torch.tensor(3)))
    assert found.item() == pytest.approx(-ours.log_softmax(-1)[3].item())
    assert slopes.shape == ours.shape


def test_no_label_at_all_is_a_loss_of_nothing(logits):
    found, slopes = gradient_of(logits[0], lambda values: cross_entropy(values, torch.full((2, 3), IGNORED)))
    assert found.item() == 0
    assert not slopes.any()


def test_halves_are_widened_before_anything_is_computed_of_them(logits):
    """The value is that of the bf16 logits in float32; the gradient comes back in bf16, as the products take it."""
    ours, theirs = (values.bfloat16() for values in logits)
    labels = torch.tensor([[0, 1, 10], [3, 3, 5]])
    losses = {
        "divergence": lambda values: softened_divergence(values, theirs.to(values.dtype), 1.0).mean(),
        "cross-entropy": lambda values: cross_entropy(values, labels),
    }
    for loss in losses.values():
        found, slopes = gradient_of(ours, loss)
        value, exact = gradient_of(ours.float(), loss)
        assert found.dtype == torch.float32
        assert found == value
        assert slopes.dtype == torch.bfloat16
        torch.testing.assert_close(slopes.float(), exact, rtol=2**-7, atol=1e-6)


def test_nothing_is_kept_for_a_gradient_that_nobody_asks_for(logits):
    ours, theirs = logits
    assert softened_divergence(ours, theirs, 1.0).grad_fn is None
    assert cross_entropy(ours, torch.zeros(2, 3, dtype=torch.int64)).grad_fn is None
