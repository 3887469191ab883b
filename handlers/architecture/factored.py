"""Layers whose weight is a product of two thin matrices, and how they take a dense layer's place.

A factored layer is made of ordinary layers, so that exporters, quantizers and training see what they know. Its place in the
model keeps its name; `v` and `u` (of a table `rows` and `projection`) stand below it.
"""

from collections.abc import Mapping

import torch


class FactoredLinear(torch.nn.Module):
    """y = u(v(x)): W ≈ U·Vᵀ of rank r. x [..., in_features] → y [..., out_features].

    v: torch.nn.Linear, weight Vᵀ [rank, in_features], no bias. u: torch.nn.Linear, weight U [out_features, rank], the bias.
    rank·(in + out) multiplications a token instead of in·out.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = True) -> None:
        super().__init__()
        self.v = torch.nn.Linear(in_features, rank, bias=False)
        self.u = torch.nn.Linear(rank, out_features, bias=bias)

    @property
    def in_features(self) -> int:
        return self.v.in_features

    @property
    def out_features(self) -> int:
        return self.u.out_features

    @property
    def rank(self) -> int:
        return self.v.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.u(self.v(x))
        return outputs


class FactoredEmbedding(torch.nn.Module):
    """projection(rows(ids)): a table of rank r. ids [...] int64 → [..., embedding_dim].

    rows: torch.nn.Embedding [num_embeddings, rank]. projection: torch.nn.Linear, weight [embedding_dim, rank], no bias.
    rank·embedding_dim multiplications a token, where a dense table needs none.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, rank: int, padding_idx: int | None = None) -> None:
        super().__init__()
        self.rows = torch.nn.Embedding(num_embeddings, rank, padding_idx=padding_idx)
        self.projection = torch.nn.Linear(rank, embedding_dim, bias=False)

    @property
    def num_embeddings(self) -> int:
        return self.rows.num_embeddings

    @property
    def embedding_dim(self) -> int:
        return self.projection.out_features

    @property
    def padding_idx(self) -> int | None:
        return self.rows.padding_idx

    @property
    def rank(self) -> int:
        return self.rows.embedding_dim

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.projection(self.rows(input_ids))
        return projected


def factored_ranks(model: torch.nn.Module) -> dict[str, int]:
    """{name of each factored layer or table: its rank}; with `install` it rebuilds the same shapes."""
    kinds = (FactoredLinear, FactoredEmbedding)
    return {
        name: module.rank for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, kinds)
    }


def install(model: torch.nn.Module, ranks: Mapping[str, int]) -> None:
    """Put a factored layer with that rank, weights not yet filled, in the place of each dense layer or table named.

    ValueError for a module that is neither a linear layer nor a table.
    """
    for name, rank in ranks.items():
        put(model, name, factored_like(model.get_submodule(name), rank, name))


def factored_like(dense: torch.nn.Module, rank: int, name: str = "") -> torch.nn.Module:
    """A factored layer or table of the dense one's sizes, device and mode; its bias is the dense one's Parameter."""
    made: torch.nn.Module
    if isinstance(dense, torch.nn.Linear):
        with torch.device(dense.weight.device):
            linear = FactoredLinear(dense.in_features, dense.out_features, rank, bias=dense.bias is not None)
        if dense.bias is not None:
            linear.u.bias = dense.bias
        made = linear
    elif isinstance(dense, torch.nn.Embedding):
        with torch.device(dense.weight.device):
            made = FactoredEmbedding(dense.num_embeddings, dense.embedding_dim, rank, dense.padding_idx)
    else:
        raise ValueError(f"{name}: a {type(dense).__name__} cannot be factored; linear layers and tables can")
    return made.train(dense.training)


def put(model: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    """Let `module` take the place `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
