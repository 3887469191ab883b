"""Product quantization: pure functions on tensors.

    row = [c₁[q₁] | c₂[q₂] | … | c_m[q_m]]      q: m codes of a row, c_s: the 2^bits pieces that all rows share at place s

A table of n rows of width w takes n·m·bits bits of codes and 2^bits·w numbers of pieces.
Source: Jégou, Douze & Schmid 2011, Product quantization for nearest neighbor search. For tables of items: Petrov &
Macdonald 2023, RecJPQ, arXiv:2312.06165.
"""

from __future__ import annotations

import torch

Tensor = torch.Tensor

MOST_LEARNT_FROM = 65_536  # rows that k-means looks at, drawn by the seed: more move the pieces no further
_CHUNK = 16_384  # rows whose distances to all pieces are held at once


def cluster(points: Tensor, clusters: int, *, iterations: int = 25, seed: int = 0) -> Tensor:
    """k-means by Lloyd's algorithm, from distinct points that the seed draws.

    A cluster that becomes empty goes on from the point that is farthest from its centroid. With fewer distinct points than
    clusters each point is one, and the last is repeated.

    Args:
        points: [n, width] float, n ≥ 1.
        clusters: at least 1.
        iterations: at most.
        seed: of the draw.
    Returns: centroids [clusters, width].
    Source: Lloyd 1982, Least squares quantization in PCM.
    """
    distinct: Tensor = points.unique(dim=0)
    if len(distinct) <= clusters:
        return torch.cat([distinct, distinct[-1:].expand(clusters - len(distinct), -1)])
    generator = torch.Generator().manual_seed(seed)
    centroids: Tensor = distinct[torch.randperm(len(distinct), generator=generator)[:clusters]].clone()
    before = None
    for _ in range(iterations):
        codes, distances = nearest(points, centroids)
        if before is not None and torch.equal(codes, before):
            break
        before = codes
        counts = torch.bincount(codes, minlength=clusters)
        sums = torch.zeros_like(centroids).index_add_(0, codes, points)
        centroids = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centroids)
        empty = (counts == 0).nonzero()[:, 0]
        centroids[empty] = points[distances.argsort(descending=True)[: len(empty)]]
    return centroids


def nearest(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each point, the first of several.

    Args:
        points: [n, width]. centroids: [clusters, width].
    Returns: (its index [n] int64, the square of its distance [n]).
    """
    codes, distances = [], []
    norms = centroids.square().sum(1)
    for part in points.split(_CHUNK):
        squares, found = (norms - 2 * part @ centroids.T).min(1)
        codes.append(found)
        distances.append(squares + part.square().sum(1))
    return torch.cat(codes), torch.cat(distances).clamp(min=0)


def product_codes(
    table: Tensor, splits: int, clusters: int, *, iterations: int = 25, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The codes and shared pieces of a table.

    Args:
        table: [rows, columns] float. splits: divides the columns. clusters: pieces to choose from at each place.
    Returns: (codes [rows, splits] int64, pieces [splits, clusters, columns / splits] float32).
    """
    rows = table.detach().float()
    learnt = rows
    if len(rows) > MOST_LEARNT_FROM:
        generator = torch.Generator().manual_seed(seed)
        learnt = rows[torch.randperm(len(rows), generator=generator)[:MOST_LEARNT_FROM]]
    codes, pieces = [], []
    for part, sample in zip(rows.chunk(splits, dim=1), learnt.chunk(splits, dim=1), strict=True):
        pieces.append(cluster(sample.contiguous(), clusters, iterations=iterations, seed=seed))
        codes.append(nearest(part.contiguous(), pieces[-1])[0])
    return torch.stack(codes, dim=1), torch.stack(pieces)


def joined(codes: Tensor, pieces: Tensor) -> Tensor:
    """The table that codes stand for.

    Args:
        codes: [rows, splits] int64. pieces: [splits, clusters, width].
    Returns: [rows, splits · width].
    """
    places = torch.arange(len(pieces), device=codes.device)
    return pieces[places, codes].flatten(1)
