"""A checkpoint's own precision: what stages leave as floats goes back to it, in memory too, so that it is what is measured.

Stages compute in float32. A weight of a bf16 model that was retrained or refitted would lie there, and in the archive, in
twice the bytes it came in, for digits that its training cannot fill.
"""

from __future__ import annotations

import torch

from archiver.host import drop_mapped
from archiver.state.constraints import Mask, state_of
from archiver.state.plan import plan_of

_SHORT = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def keep_precision(model: torch.nn.Module, dtype: str) -> int:
    """Round the matrices of a model to what its checkpoint's precision can hold, in place.

    Left as they are: vectors, which are small; what a constraint has put onto values of its own (a mask has none), lies in
    factors or is planned as integers; and what float16 cannot hold.

    Args:
        model: in float32, after its last stage.
        dtype: of the checkpoint, as torch names it: "bfloat16", "float16"; others hold what float32 does.
    Returns: how many matrices were rounded; none where all are what the checkpoint held.
    """
    if dtype not in _SHORT:
        return 0
    state, plan = state_of(model), plan_of(model)
    bound = {name for name, chain in state.constraints.items() if any(not isinstance(one, Mask) for one in chain)}
    bound |= set(state.factors)
    bound |= {*plan.linears, *plan.embeddings, *plan.convolutions} if plan is not None else set()
    rounded = 0
    for name, parameter in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        if parameter.dim() < 2 or (leaf == "weight" and module in bound):
            continue
        weight = parameter.detach()
        nearest = weight.to(_SHORT[dtype]).to(weight.dtype)
        if not torch.equal(nearest, weight) and bool(nearest.isfinite().all()):
            weight.copy_(nearest)
            rounded += 1
        drop_mapped()  # a large model's weights lie in a file: not all of them have to be looked at together
    return rounded
