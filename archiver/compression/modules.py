"""Which modules a stage works on: how `targets` and `ignore` choose among a model's linear layers and tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from archiver.errors import RecipeError

_GLOBS = (
    "globs over module names, in which * also crosses dots, or @layers, @attention, @feed-forward, @embeddings, @head; "
    "default: "
)
# What the options `targets` and `ignore` say of themselves.
LINEAR_HELP = _GLOBS + "every linear layer but the output head"
ALL_HELP = _GLOBS + "every linear layer and embedding table"
IGNORE_HELP = "globs over module names that are left alone, although targets names them"


def select_modules(names: Iterable[str], targets: Sequence[str], ignore: Sequence[str] = ()) -> list[str]:
    """The module names that some glob of `targets` matches and none of `ignore` does, in the order given.

    Args:
        names: fully qualified names of the modules a method can work on ("encoder.layer.0.output.dense").
        targets, ignore: globs, in which * also crosses dots, or roles ("@attention").
    Returns: the names that are left.
    Raises: RecipeError that lists every glob which matches no name, and when nothing is left.
    """
    candidates = list(names)
    problems = [
        f"{key}: {glob!r} matches no module"
        for key, globs in (("targets", targets), ("ignore", ignore))
        for glob in globs
        if not any(_matches(name, glob) for name in candidates)
    ]
    chosen = [name for name in candidates if _any(name, targets) and not _any(name, ignore)]
    if not chosen and not problems:
        problems.append(f"targets {list(targets)} and ignore {list(ignore)} together leave no module")
    if problems:
        shown = ", ".join(candidates[:8]) + (f" and {len(candidates) - 8} more" if len(candidates) > 8 else "")
        raise RecipeError(f"targets and ignore do not fit this model, whose modules are: {shown or 'none'}", problems)
    return chosen


def _any(name: str, globs: Sequence[str]) -> bool:
    return any(_matches(name, glob) for glob in globs)


def _matches(name: str, glob: str) -> bool:
    return ROLES[glob](name) if glob in ROLES else fnmatchcase(name, glob)


# Classification heads by their names in transformers: they are small, and quantizing them costs most accuracy.
HEADS = ("classifier", "pre_classifier", "score")

# Roles say the same of every family, where globs need its module names. They go by how transformers names modules.
_LAYER = re.compile(r"(?:^|\.)(?:layer|layers|h)\.\d+\.")
_ATTENTION = re.compile(r"\.(?:attention|self_attn|attn)\.")
_TABLE = re.compile(r"(?:^|\.)(?:embeddings\.\w+|embed_tokens|wte|wpe)(?:\.|$)")
ROLES: dict[str, Callable[[str], bool]] = {
    "@layers": lambda name: bool(_LAYER.search(name)),
    "@attention": lambda name: bool(_LAYER.search(name) and _ATTENTION.search(name)),
    "@feed-forward": lambda name: bool(_LAYER.search(name) and not _ATTENTION.search(name)),
    "@embeddings": lambda name: bool(_TABLE.search(name)),
    "@head": lambda name: name.startswith((*HEADS, "lm_head")),
}


def linear_names(model: Any) -> list[str]:
    """Names of the model's linear layers, without the output head and classification heads.

    These are what pruning, factorizing and quantizing mean by "every linear layer" unless `targets` says otherwise.
    """
    import torch

    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    inside = [name for name in layers if model.get_submodule(name) is not head]
    return [name for name in inside if not name.startswith(HEADS)]


def weighted_names(model: Any) -> list[str]:
    """Names of every module whose weight a method may be pointed at: linear layers (the head too) and embedding tables."""
    import torch

    kinds = (torch.nn.Linear, torch.nn.Embedding)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def choose_modules(model: Any, targets: Sequence[str] | None, ignore: Sequence[str] = ()) -> list[str]:
    """The modules a stage works on.

    Args:
        targets: globs over linear layers (the head too) and embedding tables; None: every linear layer but heads.
        ignore: globs over what is left alone.
    Returns: names in the model's order.
    Raises: RecipeError as `select_modules`.
    """
    if targets is None:
        return select_modules(linear_names(model), ("*",), ignore)
    return select_modules(weighted_names(model), targets, ignore)
