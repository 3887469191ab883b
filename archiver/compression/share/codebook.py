"""Weights that share a few values: k-means in one dimension, indices that stay and values that can be trained.

Source: Han, Mao & Dally 2016, Deep Compression, arXiv:1510.00149, § 3.
"""

from __future__ import annotations

from typing import Any

import torch

from archiver.compression.context import StageContext
from archiver.compression.quantize.options import Codebook as Options
from archiver.compression.quantize.targets import chosen_modules
from archiver.compression.quantize.weights import NOT_FASTER, described, train_aware, weights_of
from archiver.compression.report import StageReport, report_stage
from archiver.state.constraints import Constraint, Mask, constrain, state_of

Tensor = torch.Tensor


def kmeans(
    values: Tensor, clusters: int, *, init: str = "linear", iterations: int = 100, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """k-means in one dimension by Lloyd's algorithm.

    On sorted values a cluster is a range, and its mean a difference of prefix sums (float64): an iteration costs one
    search for each border. A cluster that becomes empty keeps its centroid; with fewer distinct values than clusters,
    each has its own. Ties go to the lower centroid.

    Args:
        values: [size] float, at least one.
        clusters: at least 1.
        init: where centroids start: "linear" from the least to the largest value, "density" at equal shares of the
            values, "random" at values drawn by the seed.
        iterations: at most.
        seed: of init "random".
    Returns: (centroids [clusters] rising, index of each value's nearest centroid [size] int32).
    Source: Lloyd 1982, Least squares quantization in PCM.
    """
    ordered = values.detach().flatten().double().sort().values
    distinct = ordered.unique()
    if len(distinct) <= clusters:
        centroids = torch.cat([distinct, distinct[-1:].expand(clusters - len(distinct))])
    else:
        sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
        centroids = _initial(ordered, clusters, init, seed)
        borders = None
        for _ in range(iterations):
            middles = (centroids[1:] + centroids[:-1]) / 2
            inner = torch.searchsorted(ordered, middles, right=True)
            found = torch.cat([inner.new_zeros(1), inner, inner.new_tensor([len(ordered)])])
            if borders is not None and torch.equal(found, borders):
                break
            borders = found
            counts = borders.diff()
            means = sums[borders].diff() / counts.clamp(min=1)
            centroids = torch.where(counts > 0, means, centroids).sort().values
    centroids = centroids.to(values.dtype)
    middles = (centroids[1:].double() + centroids[:-1].double()) / 2
    indices = torch.bucketize(values.detach().flatten().double(), middles).to(torch.int32)
    return centroids, indices


def _initial(ordered: Tensor, clusters: int, init: str, seed: int) -> Tensor:
    if init == "linear":
        return torch.linspace(float(ordered[0]), float(ordered[-1]), clusters, dtype=ordered.dtype)
    if init == "density":
        places = (torch.arange(clusters) + 0.5) / clusters * len(ordered)
        return ordered[places.long()]
    drawn = torch.randperm(len(ordered), generator=torch.Generator().manual_seed(seed))[:clusters]
    return ordered[drawn].sort().values


class CodebookConstraint(Constraint):
    """centroids[codebook of the row, index]: the weight is computed from these alone, and training moves the centroids.

    Args:
        centroids: [codebooks, 2^bits], trained; rows are divided evenly among the codebooks.
        indices: [rows, columns] int32.
        zero_first: the first centroid of each codebook is zero and stays zero: that of pruned weights.
    """

    indices: Tensor

    def __init__(self, centroids: Tensor, indices: Tensor, zero_first: bool) -> None:
        super().__init__()
        self.centroids = torch.nn.Parameter(centroids)
        self.register_buffer("indices", indices)
        self.zero_first = zero_first

    def forward(self, weight: Tensor) -> Tensor:
        centroids: Tensor = self.centroids
        if self.zero_first:
            centroids = torch.cat([torch.zeros_like(centroids[:, :1]), centroids[:, 1:]], dim=1)
        result: Tensor = _Lookup.apply(centroids, self.indices)  # type: ignore[no-untyped-call]
        return result

    def freeze(self) -> None:
        """Nothing: the values may be trained again."""


class _Lookup(torch.autograd.Function):
    """A gather whose backward pass sums by `bincount`: much faster than scattering millions of gradients one by one."""

    @staticmethod
    def forward(ctx: Any, centroids: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.shape = centroids.shape
        books, size = centroids.shape
        return centroids.flatten().index_select(0, _flat(indices, books, size)).view(indices.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        books, size = ctx.shape
        flat = _flat(indices, books, size)
        sums = torch.bincount(flat, weights=gradient.flatten(), minlength=books * size)
        return sums.to(gradient.dtype).view(books, size), None


def _flat(indices: Tensor, books: int, size: int) -> Tensor:
    """Each index's place among all centroids: rows are divided evenly among the codebooks."""
    if books == 1:
        return indices.flatten()
    first = torch.arange(books, dtype=indices.dtype, device=indices.device) * size
    return (indices.view(books, -1) + first[:, None]).flatten()


def build_codebook(weight: Tensor, options: Options, pruned: bool) -> CodebookConstraint:
    """The codebooks of a weight.

    Args:
        weight: [rows, columns].
        options: bits, rows with one codebook, and how k-means starts.
        pruned: zeros have a centroid of their own, which no other weight uses.
    Returns: the constraint.
    """
    rows = options.rows_per_codebook or weight.shape[0]
    size = 2**options.bits
    how = {"init": options.init, "iterations": options.iterations, "seed": options.seed}
    books, indices = [], []
    for block in weight.detach().float().reshape(weight.shape[0] // rows, -1):
        if not pruned:
            centroids, index = kmeans(block, size, **how)  # type: ignore[arg-type]
        else:
            alive = block != 0
            index = torch.zeros(block.shape, dtype=torch.int32)
            centroids = torch.zeros(size)
            if alive.any() and size > 1:
                centroids[1:], inner = kmeans(block[alive], size - 1, **how)  # type: ignore[arg-type]
                index[alive] = inner + 1
        books.append(centroids)
        indices.append(index)
    return CodebookConstraint(torch.stack(books), torch.stack(indices).view(weight.shape), pruned)


def codebook(model: torch.nn.Module, options: Options, context: StageContext) -> StageReport:
    """Give each chosen weight its codebook; with `aware`, train the centroids.

    Args:
        model: changed in place.
        options: modules and codebooks.
        context: gives training batches, for `aware`.
    Returns: the report.
    Raises: RecipeError for modules that do not fit.
    """
    names = chosen_modules(model, options)
    before = weights_of(model, names)
    kept = {}
    for name in names:
        pruned = any(isinstance(item, Mask) for item in state_of(model).constraints.get(name, []))
        kept[name] = build_codebook(before[name], options, pruned)
    notes = []
    if options.aware is not None:
        notes = train_aware(model, kept, options.aware, context)
    else:
        for name, constraint in kept.items():
            constrain(model, name, constraint)
    books = sum(item.centroids.shape[0] for item in kept.values())
    line = described(model, before, f"{books} codebooks of {2**options.bits} values")
    return report_stage("share/codebook", model, options, [line, *notes, NOT_FASTER])
