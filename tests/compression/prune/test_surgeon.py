"""The importance `surgeon`: costs by hand, against what least squares leaves, and as an option of structured pruning."""

from __future__ import annotations

import copy
from itertools import combinations

import pytest
import torch
from cut_models import examples, run, tiny

from archiver.architecture import cuts_of
from archiver.compression.prune.compensation import refitted
from archiver.compression.prune.structured import choose, structured
from archiver.compression.prune.structured_options import Structured
from archiver.compression.prune.surgeon import output_gradients, removal_costs, surgeon_scores

EYE = torch.eye(2, dtype=torch.float64)


def test_by_hand():
    """G = [[1, ½], [½, 1]]: G⁻¹ has 4/3 on its diagonal.

    w = (1, 2), F = 3: they cost 3·1/(4/3) = 2.25 and 3·4/(4/3) = 9. Without the first the second becomes 2 + 1·½ = 2.5, and
    G⁻¹ is 1 there: it costs 3·6.25.
    """
    gram = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    costs = removal_costs(torch.tensor([[1.0, 2.0]]), gram, torch.tensor([[3.0]]), torch.tensor([0, 1]))
    assert costs.tolist() == [pytest.approx(2.25, rel=0.02), pytest.approx(18.75, rel=0.02)]


def test_costs_do_not_fall():
    """w = (1, −1), G as above: the first to go costs ¾, and then the other one has −½ left, which costs ¼: it counts ¾."""
    gram = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    costs = removal_costs(torch.tensor([[1.0, -1.0]]), gram, torch.tensor([[1.0]]), torch.tensor([0, 1]))
    assert costs.tolist() == [pytest.approx(0.75, rel=0.02)] * 2


def test_a_block_costs_what_least_squares_leaves():
    """The first of two blocks to go costs the whole error of the refitted weight under F."""
    torch.manual_seed(0)
    x = torch.randn(6, 200, dtype=torch.float64)
    x[2] += x[4]
    weight, root = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    gram, gradients, columns = x @ x.T, root @ root.T, torch.tensor([0, 1, 2, 0, 1, 2])
    costs = removal_costs(weight, gram, gradients, columns)
    left = {}
    for block in range(3):
        change = refitted(weight, gram, columns != block, damping=0.0) - weight
        left[block] = float(torch.trace(change.T @ gradients @ change @ gram))
    cheapest = min(left, key=left.__getitem__)
    assert int(costs.argmin()) == cheapest
    assert float(costs[cheapest]) == pytest.approx(left[cheapest], rel=0.05)


def test_one_after_another_is_the_best_pair_here():
    torch.manual_seed(3)
    x = torch.randn(5, 100, dtype=torch.float64)
    x[1] = x[0] + 0.1 * x[1]
    weight = torch.randn(2, 5, dtype=torch.float64)
    gram = x @ x.T
    order = removal_costs(weight, gram, EYE, torch.arange(5)).argsort()

    def error(gone: tuple[int, ...]) -> float:
        stays = ~torch.isin(torch.arange(5), torch.tensor(gone))
        change = refitted(weight, gram, stays, damping=0.0) - weight
        return float(torch.trace(change @ gram @ change.T))

    assert set(order[:2].tolist()) == set(min(combinations(range(5), 2), key=error))


def test_gradients_by_hand():
    """Of the lowest consumer: against numbers from a second pass with the gradient taken by autograd."""
    model = tiny("bert")
    context = examples(model, "bert")
    name = cuts_of(model, "neurons")[0].consumer
    found = output_gradients(model, [name], context, 3)[name]
    kept = []
    hook = model.get_submodule(name).register_forward_hook(lambda *a: kept.append(a[2]))
    batch = context.train(16, 0)[0]
    outputs = context.module(batch["input_ids"], batch["attention_mask"])
    loss = context.objective.loss(outputs, batch["labels"]) * len(outputs)
    hook.remove()
    (gradient,) = torch.autograd.grad(loss, kept[0])
    rows = gradient.reshape(-1, gradient.shape[-1])
    assert torch.allclose(found, rows.T @ rows, rtol=1e-4, atol=1e-9)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_as_an_option(kind):
    model = tiny(kind)
    whole = run(copy.deepcopy(model))
    options = Structured(heads=0.5, neurons=0.4, importance="surgeon", compensate=True, samples=3)
    report = structured(model, options, examples(model, kind))
    assert len(report.notes) == 2
    assert run(model).shape == whole.shape


def test_what_gives_nothing_goes_first():
    model = tiny("llama")
    cuts = cuts_of(model, "neurons")
    with torch.no_grad():
        for cut in cuts:
            model.get_submodule(cut.consumer).get_parameter("weight")[:, 8:] *= 1e-4
    for scores in surgeon_scores(model, cuts, examples(model, "llama"), 3):
        assert set(scores.topk(8).indices.tolist()) == set(range(8))


def test_costs_of_layers_are_compared_as_they_are():
    scores = [torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([10.0, 20.0, 30.0, 40.0])]
    assert [kept.tolist() for kept in choose(scores, 0.5, "heads", "global", comparable=True)] == [[3], [0, 1, 2, 3]]
    assert [kept.tolist() for kept in choose(scores, 0.5, "heads", "global")] == [[2, 3], [2, 3]]


def test_layers_are_not_scored():
    assert "heads and neurons" in Structured(layers=0.5, importance="surgeon").mistakes(False)[0]
    assert not Structured(layers=(0, 1), neurons=0.5, importance="surgeon").mistakes(False)
