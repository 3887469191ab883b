"""Product quantization: codes by hand, save → load equality, stored bytes, training that keeps the codes."""

from __future__ import annotations

import pytest
import torch
from stage_context import calibrated_on

from archiver.compression.quantize.product.codes import cluster, joined, nearest, product_codes
from archiver.compression.quantize.product.options import Product
from archiver.compression.quantize.product.stage import ProductCodes, check, product
from archiver.errors import RecipeError
from archiver.state.constraints import constrained, state_of
from archiver.storage.codec_choice import encode
from archiver.storage.layouts import layouts_of
from archiver.storage.packing import write_packed
from handlers.architecture.outputs.sasrec import SasRecConfig, SasRecForNextItem
from handlers.errors import UnsoundArchive
from handlers.storage.codecs import decode
from handlers.storage.packed import load_packed, read_description

TABLE = torch.tensor([[0.0, 0.0, 5.0], [0.0, 2.0, 5.0], [8.0, 8.0, 1.0], [8.0, 10.0, 1.0]])


def model(items: int = 400, width: int = 16) -> SasRecForNextItem:
    torch.manual_seed(0)
    config = SasRecConfig(num_items=items, hidden_size=width, num_hidden_layers=1, intermediate_size=32)
    return SasRecForNextItem(config).eval()


def test_by_hand():
    """Two places of one and two numbers: the first has the pieces 0 and 8, the second (1, 5) and (9, 1)."""
    codes, pieces = product_codes(TABLE[:, [0, 2, 1, 2]], 2, 2)
    assert sorted(map(tuple, pieces[0].tolist())) == [(0.0, 5.0), (8.0, 1.0)]
    assert sorted(map(tuple, pieces[1].tolist())) == [(1.0, 5.0), (9.0, 1.0)]
    expected = torch.tensor([[0.0, 5.0, 1.0, 5.0]] * 2 + [[8.0, 1.0, 9.0, 1.0]] * 2)
    assert torch.equal(joined(codes, pieces), expected)
    assert codes[0].tolist() == codes[1].tolist() != codes[2].tolist() == codes[3].tolist()


def test_clusters_are_the_points_where_they_are_few_and_never_empty():
    points = torch.tensor([[1.0], [1.0], [4.0]])
    assert cluster(points, 4).tolist() == [[1.0], [4.0], [4.0], [4.0]]
    generator = torch.Generator().manual_seed(1)
    many = torch.cat([torch.randn(200, 2, generator=generator), 50 + torch.randn(3, 2, generator=generator)])
    codes, distances = nearest(many, cluster(many, 16, seed=3))
    assert len(codes.unique()) == 16
    assert float(distances.max()) < 25  # the three far ones have a centroid of their own


def test_the_stage_stores_what_it_computes_in_an_eighth_and_less(tmp_path):
    made = model()
    before = made.head.weight.detach().clone()
    report = product(made, Product(splits=8, bits=6), calibrated_on([]))
    after = made.head.weight.detach()
    assert made.model.item_embeddings.weight is made.head.weight and not torch.equal(before, after)
    assert "8 codes of 6 bits a row" in report.notes[0] and "makes nothing faster" in report.notes[-1]
    layout = layouts_of(made)["model.item_embeddings.weight"]
    stored = encode(after.numpy(), layout)
    # 400 · 8 codes of 6 bits; 8 places · 64 pieces of two numbers of two bytes
    assert (stored.entry["codec"], stored.nbytes) == ("product", 400 * 8 * 6 // 8 + 8 * 64 * 2 * 2)
    write_packed(tmp_path / "t.safetensors", {"table": after.numpy()}, {"table": layout})
    assert torch.equal(torch.from_numpy(load_packed(tmp_path / "t.safetensors")["table"]), after)
    assert read_description(tmp_path / "t.safetensors")["tensors"]["table"]["codec"] == "product"
    noise = float((after - before).square().sum())
    assert 10 * torch.log10(before.square().sum() / noise) > 9  # dB; random rows are the hardest there are


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"splits": 5}, "16 columns in 5 pieces of 6 bits do not go with 1024 numbers"),
        ({"splits": 0}, "splits is 0; allowed: 1 to 16"),
        ({"bits": 5}, "do not go with 1024 numbers"),
        ({"bits": 7}, "its codes are 2400 of uint8, 2800 of uint8 are expected"),
        ({"shape": [300, 16]}, "its codes are 2400 of uint8, 1800 of uint8 are expected"),
        ({"shape": [6400]}, "allowed: a float32 matrix"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(changed, said):
    made = model()
    product(made, Product(splits=8, bits=6), calibrated_on([]))
    stored = encode(made.head.weight.detach().numpy(), layouts_of(made)["head.weight"])
    arrays = {f"t{path}": array for path, array in stored.arrays.items()}
    with pytest.raises(UnsoundArchive, match=said):
        decode({**stored.entry, **changed}, "t", arrays.__getitem__)
    assert decode(stored.entry, "t", arrays.__getitem__).shape == (400, 16)


def test_training_moves_pieces_and_keeps_codes():
    made = model()
    product(made, Product(splits=4, bits=3), calibrated_on([]))
    (constraint,) = state_of(made).constraints["head"]
    assert isinstance(constraint, ProductCodes) and state_of(made).constraints["model.item_embeddings"][0] is constraint
    codes, before = constraint.codes.clone(), constraint.pieces.detach().clone()
    with constrained(made):
        parameters = [value for name, value in made.named_parameters() if name.endswith("pieces")]
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        made.model.item_embeddings.weight.square().sum().backward()
        optimizer.step()
    assert torch.equal(constraint.codes, codes) and not torch.equal(constraint.pieces, before)
    assert torch.equal(made.head.weight, joined(codes, constraint.pieces.detach().half().float()))
    assert made.head.weight is made.model.item_embeddings.weight
    layout = layouts_of(made)["head.weight"]
    assert encode(made.head.weight.detach().numpy(), layout).entry["codec"] == "product"


def test_what_does_not_fit_is_said_before_any_work():
    with torch.device("meta"):
        made = SasRecForNextItem(SasRecConfig(num_items=50, hidden_size=24, num_hidden_layers=1))
    assert check(made, Product(splits=8)) == []
    assert check(made, Product(splits=7)) == [
        "splits 7 does not divide the width of model.item_embeddings, 24: choose a divisor of it"
    ]
    assert "matches no module" in check(made, Product(targets=("tables",)))[1]
    real = model()
    product(real, Product(splits=8, bits=4), calibrated_on([]))
    with pytest.raises(RecipeError, match="quantize/product does not fit this model"):
        product(real, Product(splits=8, bits=4), calibrated_on([]))
