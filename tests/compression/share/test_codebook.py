"""Codebooks: k-means by hand, zeros that stay, centroids that learn."""

from __future__ import annotations

import pytest
import torch
from stage_context import calibrated_on

from archiver.compression.quantize.options import Codebook
from archiver.compression.quantize.targets import check_codebook
from archiver.compression.share.codebook import CodebookConstraint, build_codebook, codebook, kmeans
from archiver.state.constraints import Mask, constrain, constrained, state_of


def test_kmeans_by_hand():
    # Linear start at 0 and 10, border 5: means of {0, 1, 2} and {8, 9, 10}; nothing moves after that.
    centroids, indices = kmeans(torch.tensor([9.0, 0.0, 10.0, 1.0, 2.0, 8.0]), 2)
    assert centroids.tolist() == [1.0, 9.0]
    assert indices.tolist() == [1, 0, 1, 0, 0, 1]
    assert indices.dtype == torch.int32


def test_one_round_by_hand():
    # Start at 0, 6, 12 with borders 3 and 9: {0, 1}, {4}, {12}. The next border is (0.5 + 4)/2 = 2.25: it stays.
    centroids, indices = kmeans(torch.tensor([0.0, 1.0, 4.0, 12.0]), 3, iterations=1)
    assert centroids.tolist() == [0.5, 4.0, 12.0]
    assert indices.tolist() == [0, 0, 1, 2]


def test_an_empty_cluster_keeps_its_place_and_a_tie_goes_down():
    centroids, indices = kmeans(torch.tensor([0.0, 0.1, 0.2, 0.3, 9.9, 10.0]), 5)
    assert centroids.tolist()[1:4] == pytest.approx([2.5, 5.0, 7.5])
    assert indices.tolist() == [0, 0, 0, 0, 4, 4]
    _, indices = kmeans(torch.tensor([0.0, 0.0, 1.0, 1.0, 0.5, 0.5, 0.1, 0.9]), 2, iterations=1)
    assert indices[4].item() == 0


def test_few_values_are_kept_exactly():
    values = torch.tensor([0.3, -0.1, 0.3, 7.7])
    centroids, indices = kmeans(values, 8)
    assert torch.equal(centroids[indices.long()], values)
    assert len(centroids) == 8


@pytest.mark.parametrize("init", ["linear", "density", "random"])
def test_every_start_ends_where_each_value_has_its_nearest(init):
    values = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    centroids, indices = kmeans(values, 16, init=init, iterations=1000, seed=1)
    assert torch.equal(centroids, centroids.sort().values)
    distance = (values[:, None] - centroids).abs()
    assert torch.equal(distance.argmin(1).int(), indices)
    # Lloyd's fixed point: each centroid is the mean of its values.
    for cluster in range(16):
        assert values[indices == cluster].mean().item() == pytest.approx(centroids[cluster].item(), abs=1e-5)
    again = kmeans(values, 16, init=init, iterations=1000, seed=1)
    assert torch.equal(again[0], centroids)
    # 16 levels of a normal: 20.2 dB at best (Max 1960).
    noise = (centroids[indices.long()] - values).square().mean() / values.square().mean()
    assert 10 * torch.log10(1 / noise) > 19


def test_codebooks_of_rows():
    weight = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0], [5.0, 5.0, 7.0, 5.0], [7.0, 7.0, 7.0, 5.0]])
    made = build_codebook(weight, Codebook(bits=1, granularity="group", group_size=2), pruned=False)
    assert made.centroids.tolist() == [[0.0, 1.0], [5.0, 7.0]]
    assert torch.equal(made(weight), weight)


def test_gradients_are_sums_over_the_weights_of_a_centroid():
    indices = torch.tensor([[0, 1, 1], [1, 1, 0]], dtype=torch.int32)
    shared = CodebookConstraint(torch.tensor([[1.0, 2.0]]), indices, zero_first=False)
    gradient = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    shared(torch.zeros(2, 3)).backward(gradient)
    assert shared.centroids.grad.tolist() == [[33.0, 30.0]]
    rows = CodebookConstraint(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), indices, zero_first=True)
    found = rows(torch.zeros(2, 3))
    assert found.tolist() == [[0.0, 2.0, 2.0], [4.0, 4.0, 0.0]]
    found.backward(gradient)
    assert rows.centroids.grad.tolist() == [[0.0, 6.0], [0.0, 24.0]]


class Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(16, 12), torch.nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu())


def test_pruned_weights_stay_zero_and_others_do_not_become_it():
    model = Two()
    mask = torch.rand(12, 16, generator=torch.Generator().manual_seed(0)) > 0.5
    constrain(model, "first", Mask(mask))
    report = codebook(model, Codebook(bits=3), calibrated_on([]))
    assert report.method == "share/codebook"
    assert report.notes[0].startswith("2 modules, 240 weights: 2 codebooks of 8 values; SQNR ")
    assert torch.equal(model.first.weight != 0, mask)
    assert len(model.first.weight.unique()) == 8
    assert len(model.second.weight.unique()) == 8
    train_a_little(model)
    assert torch.equal(model.first.weight != 0, mask)
    assert len(model.first.weight.unique()) == 8


def train_a_little(model: torch.nn.Module) -> None:
    with constrained(model):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 16)).square().mean().backward()
            optimizer.step()


def test_training_moves_centroids_and_no_index():
    model = Two()
    codebook(model, Codebook(bits=2, granularity="group", group_size=4), calibrated_on([]))
    constraint = state_of(model).constraints["first"][0]
    before, indices = model.first.weight.detach().clone(), constraint.indices.clone()
    train_a_little(model)
    after = model.first.weight.detach()
    assert not torch.equal(after, before)
    assert torch.equal(constraint.indices, indices)
    with torch.no_grad():
        assert torch.equal(constraint(after), after)
    for rows in range(0, 12, 4):
        assert len(after[rows : rows + 4].unique()) == 4


def test_checks():
    with torch.device("meta"):
        model = Two()
    bad = Codebook(granularity="group", group_size=8)
    assert check_codebook(model, bad) == [
        "group_size 8 does not divide the out_features of first (out_features 12), second (out_features 4): "
        "set a divisor of 4, or row, or add them to `ignore`"
    ]
    assert Codebook(group_size=8).mistakes(False) == [
        "group_size is of granularity: group; add that, or remove group_size"
    ]
    assert Codebook().rows_per_codebook is None
    assert Codebook(granularity="group").rows_per_codebook == 64
