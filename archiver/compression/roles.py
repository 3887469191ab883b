"""Roles of a model's modules, of whatever family: `@layers`, `@attention`, `@feed-forward`, `@embeddings`, `@head`.

Layers, tables and heads are found in the module tree. Only attention is told from feed-forward by a name, since both are
linear layers of one layer: every family of transformers calls its attention something with "attn" or "attention".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

ROLES = ("@layers", "@attention", "@feed-forward", "@embeddings", "@head")

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_HEADS = ("classifier", "pre_classifier", "score", "lm_head")  # of a model that does not say which part is its base


def roles_of(model: Any) -> Mapping[str, set[str]]:
    """Role → names of the linear layers and embedding tables that play it. What plays none is in no set.

    Args:
        model: a module of transformers; of any other, heads are known by their usual names alone.
    """
    import torch

    from handlers.architecture.factored import FactoredEmbedding

    heads = head_names(model)
    stacks = [
        f"{name}.{index}."
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and all(_linears(member) > 1 for member in module)
        for index in range(len(module))
    ]
    tables = [f"{name}." for name, module in model.named_modules() if isinstance(module, FactoredEmbedding)]
    roles: dict[str, set[str]] = {role: set() for role in ROLES}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            continue
        inside = min((prefix for prefix in stacks if name.startswith(prefix)), key=len, default=None)
        if name in heads:
            roles["@head"].add(name)
        elif inside is not None:
            part = "@attention" if _ATTENTION.search(name.removeprefix(inside)) else "@feed-forward"
            roles["@layers"].add(name)
            roles[part].add(name)
        elif isinstance(module, torch.nn.Embedding) or name.startswith(tuple(tables)):
            roles["@embeddings"].add(name)
    return roles


def head_names(model: Any) -> set[str]:
    """Names of the linear layers of a model's head: what lies outside of its base model, and the output embeddings.

    Heads are small, or share their weight with the embeddings, and quantizing them costs most accuracy.
    """
    import torch

    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    words = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    prefix = getattr(model, "base_model_prefix", "")
    if prefix and getattr(model, prefix, None) is not None:
        outside = {name for name in linears if not name.startswith(f"{prefix}.")}
    else:
        outside = {name for name in linears if name.startswith(_HEADS)}
    return outside | {name for name, module in linears.items() if module is words}


def _linears(module: Any) -> int:
    import torch

    return sum(isinstance(item, torch.nn.Linear) for item in module.modules())
