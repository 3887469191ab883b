"""Hidden states turned by a random orthogonal matrix before weights are rounded: no column is far larger than the others.

Large columns make a group's range wide and its steps coarse. The turn is folded into the weights of all that read and
write the hidden states, so that the model computes what it did; the values of attention's heads are turned likewise. Where
table and head are one weight it stays as it is, and they are turned by a small layer of their own, behind the table and
before the head.
Source: Ashkboos et al. 2024, QuaRot, arXiv:2404.00456, section 4, stages 1a and 1b (values): what can be folded
into weights; its turns at run time are left out.
"""

from __future__ import annotations

from typing import Any

import torch

from archiver.architecture import HeadValues, Stream, residual_stream, table_and_head
from archiver.errors import RecipeError, UnsupportedModelError
from archiver.host import drop_mapped
from handlers.architecture.factored import FactoredEmbedding, FactoredLinear, put

Tensor = torch.Tensor

TOLERANCE = 1e-3  # of the largest logit, that the turned model may differ by: float32 leaves 1e-5
_TOKENS = 16  # that both are asked
_ROWS = 8192  # of a table that are turned at a time


def orthogonal(width: int, seed: int) -> Tensor:
    """A random orthogonal matrix D·(Q ⊗ H): signs D, the Walsh–Hadamard matrix H of the largest power of two that divides
    the width, divided by its root, and a random orthogonal Q for the odd rest.

    Args:
        width: its rows and columns, at least 1.
        seed: of D and Q.
    Returns: [width, width] float64.
    """
    power = width & -width
    generator = torch.Generator().manual_seed(seed)
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while len(hadamard) < power:
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    rest = torch.linalg.qr(
        torch.randn(width // power, width // power, dtype=torch.float64, generator=generator)
    ).Q.contiguous()
    signs = 2.0 * torch.randint(0, 2, (width, 1), generator=generator).double() - 1
    return signs * torch.kron(rest, hadamard / power**0.5)


def check_rotation(model: Any, where_it_can: bool = False) -> list[str]:
    """Why the hidden states of a model cannot be turned; empty where they can, and the model has the layers for it then.

    Args:
        model: on the meta device.
        where_it_can: a model that cannot be turned is left as it is, and nothing is said.
    """
    try:
        stream = residual_stream(model)
    except UnsupportedModelError as error:
        return [] if where_it_can else [f"rotate: {error}; remove rotate"]
    if stream.tied(model):
        _put_turns(model, stream, torch.empty(stream.width, stream.width, device="meta"))
    return []


def rotation_layers(model: Any) -> set[str]:
    """Names of the layers that turn behind the table and before the head, in a model that `rotate` has gone through."""
    names = {id(module): name for name, module in model.named_modules()}
    table, head = table_and_head(model)
    square = [
        getattr(module, leaf)
        for module, leaf in ((table, "projection"), (head, "v"))
        if isinstance(module, FactoredEmbedding | FactoredLinear)
    ]
    return {names[id(module)] for module in square}


def rotate(model: Any, where_it_can: bool = False, seed: int = 0) -> list[str]:
    """Turn a decoder's hidden states, in place.

    Args:
        model: in float32, all its layers as they were trained or cut.
        where_it_can: a model that cannot be turned is left as it is, and the note says why.
        seed: of the matrix.
    Returns: notes for the report.
    Raises: RecipeError where the model cannot be turned, or answers otherwise than before by more than TOLERANCE.
    """
    try:
        stream = residual_stream(model)
    except UnsupportedModelError as error:
        if where_it_can:
            return [f"hidden states are not turned: {error}"]
        raise RecipeError(f"rotate: {error}; remove rotate") from error
    before, tied, device = _logits(model), stream.tied(model), next(model.parameters()).device
    _turn_stream(model, stream, orthogonal(stream.width, seed).float().to(device))
    for values in stream.values:
        _turn_values(model, values, orthogonal(values.rows.shape[1], seed).float().to(device))
    off = float((_logits(model) - before).abs().max() / before.abs().max())
    if not off <= TOLERANCE:
        raise RecipeError(
            f"rotate: the turned model's logits differ by {off:.1g} of the largest (allowed: {TOLERANCE}): something in "
            f"{type(model).__name__} reads its hidden states in a way that was not found; set rotate: false"
        )
    more = f", by two layers of {stream.width} × {stream.width} at table and head, which share a weight" if tied else ""
    return [
        f"hidden states and heads' values turned by Hadamard matrices{more}; logits moved by {off:.1g} of the largest"
    ]


@torch.no_grad()
def _turn_stream(model: Any, stream: Stream, turn: Tensor) -> None:
    """Hidden states times R, from the table to the head; norms hand their weights on to those that read them."""
    gains = {}
    for name, after in stream.readers.items():
        norm = model.get_submodule(name).get_parameter("weight")
        gains[name] = norm + stream.offsets[name]
        norm.fill_(1 - stream.offsets[name])
        for reader in after:
            if reader != stream.head:
                _turn_rows(model.get_submodule(reader).get_parameter("weight"), turn, gains[name])
    for name in stream.writers:
        writer = model.get_submodule(name)
        weight = writer.get_parameter("weight")
        weight.copy_(turn.T @ weight)
        if writer.bias is not None:
            writer.get_parameter("bias").copy_(turn.T @ writer.bias)
        drop_mapped()
    gain = next(gains[name] for name, after in stream.readers.items() if stream.head in after)
    if stream.tied(model):
        _put_turns(model, stream, turn, gain)
    else:
        _turn_rows(model.get_submodule(stream.table).get_parameter("weight"), turn)
        _turn_rows(model.get_submodule(stream.head).get_parameter("weight"), turn, gain)


@torch.no_grad()
def _turn_values(model: Any, values: HeadValues, turn: Tensor) -> None:
    """The values of each head times R, and what reads them times its inverse."""
    before, after = model.get_submodule(values.before), model.get_submodule(values.after).get_parameter("weight")
    for rows, columns in zip(values.rows, values.columns, strict=True):
        before.weight[rows] = turn.T @ before.weight[rows]
        if before.bias is not None:
            before.bias[rows] = turn.T @ before.bias[rows]
        for query in columns:
            after[:, query] = after[:, query] @ turn
    drop_mapped()


def _turn_rows(weight: Tensor, turn: Tensor, gain: Tensor | None = None) -> None:
    """W ← W·diag(gain)·R, some rows at a time."""
    for rows in weight.split(_ROWS):
        rows.copy_((rows if gain is None else rows * gain) @ turn)
    drop_mapped()


def _put_turns(model: Any, stream: Stream, turn: Tensor, gain: Tensor | None = None) -> None:
    """A layer x·R behind the table and one x·Rᵀ·diag(gain) before the head, in the place of both."""
    table, head = model.get_submodule(stream.table), model.get_submodule(stream.head)
    width = stream.width
    with torch.device("meta"):
        turned = FactoredEmbedding(len(table.weight), width, width, table.padding_idx)
        back = FactoredLinear(width, len(head.weight), width, bias=head.bias is not None)
    turned.rows.weight, back.u.weight, back.u.bias = table.weight, head.weight, head.bias
    turned.projection.weight = torch.nn.Parameter(turn.T.contiguous(), table.weight.requires_grad)
    back.v.weight = torch.nn.Parameter(turn if gain is None else gain[:, None] * turn, head.weight.requires_grad)
    put(model, stream.table, turned.train(table.training))
    put(model, stream.head, back.train(head.training))


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    """Of some tokens from all over the table, [1, tokens, tokens known]."""
    rows = model.get_input_embeddings().num_embeddings
    ids = torch.linspace(0, rows - 1, _TOKENS).long()[None]
    logits: Tensor = model(input_ids=ids.to(next(model.parameters()).device), use_cache=False).logits
    return logits
