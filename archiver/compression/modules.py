"""Which modules a stage works on: how `targets` and `ignore` choose among a model's linear layers and tables."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from archiver.compression.roles import head_names, roles_of
from archiver.errors import RecipeError

_GLOBS = (
    "globs over module names, in which * also crosses dots, or @layers, @attention, @feed-forward, @embeddings, @head; "
    "default: "
)
# What the options `targets` and `ignore` say of themselves.
LINEAR_HELP = _GLOBS + "every linear layer but the output head"
ALL_HELP = _GLOBS + "every linear layer and embedding table"
IGNORE_HELP = "globs over module names that are left alone, although targets names them"


def select_modules(
    names: Iterable[str],
    targets: Sequence[str],
    ignore: Sequence[str] = (),
    roles: Mapping[str, Collection[str]] | None = None,
) -> list[str]:
    """The module names that some glob of `targets` matches and none of `ignore` does, in the order given.

    Args:
        names: fully qualified names of the modules a method can work on ("encoder.layer.0.output.dense").
        targets, ignore: globs, in which * also crosses dots, or roles ("@attention").
        roles: the names that play each role, as `roles_of` gives them.
    Returns: the names that are left.
    Raises: RecipeError that lists every glob which matches no name, and when nothing is left.
    """
    known, candidates = roles or {}, list(names)

    def matches(name: str, glob: str) -> bool:
        return name in known[glob] if glob in known else fnmatchcase(name, glob)

    def any_of(globs: Sequence[str], name: str) -> bool:
        return any(matches(name, glob) for glob in globs)

    problems = [
        f"{key}: {glob!r} matches no module"
        for key, globs in (("targets", targets), ("ignore", ignore))
        for glob in globs
        if not any(matches(name, glob) for name in candidates)
    ]
    chosen = [name for name in candidates if any_of(targets, name) and not any_of(ignore, name)]
    if not chosen and not problems:
        problems.append(f"targets {list(targets)} and ignore {list(ignore)} together leave no module")
    if problems:
        shown = ", ".join(candidates[:8]) + (f" and {len(candidates) - 8} more" if len(candidates) > 8 else "")
        raise RecipeError(f"targets and ignore do not fit this model, whose modules are: {shown or 'none'}", problems)
    return chosen


def linear_names(model: Any) -> list[str]:
    """Names of the model's linear layers, without those of its head.

    These are what pruning, factorizing and quantizing mean by "every linear layer" unless `targets` says otherwise.
    """
    import torch

    heads = head_names(model)
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name not in heads]


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
        return select_modules(linear_names(model), ("*",), ignore, roles_of(model))
    return select_modules(weighted_names(model), targets, ignore, roles_of(model))
