"""Which weights are factorized, how each is computed afterwards, and what cannot work with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from archiver.compression.factorize.low_rank_math import rank_for_ratio, saves
from archiver.compression.factorize.options import Svd
from archiver.compression.modules import choose_modules
from archiver.errors import RecipeError
from archiver.state.constraints import sharing
from handlers.architecture.factored import FactoredEmbedding, FactoredLinear, install

FACTORED, RECOMBINED, ALONE = "factored", "recombined", "left alone"


@dataclass
class Target:
    """One weight to factorize.

    Args:
        names: of all modules that share it.
        rows, columns: its shape.
        table: some module looks it up.
        tied: some look it up, others multiply by it.
    """

    names: list[str]
    rows: int
    columns: int
    table: bool
    tied: bool

    @property
    def full_rank(self) -> int:
        """The largest rank."""
        return min(self.rows, self.columns)

    def execution(self, execute: str, rank: int) -> str:
        """How it is computed with a rank: factored, recombined, or left alone where two factors save nothing."""
        if rank >= self.full_rank:
            return ALONE
        if execute != "auto":
            return execute
        if not saves(self.rows, self.columns, rank):
            return ALONE
        return RECOMBINED if self.table else FACTORED

    def rank(self, options: Svd) -> int | None:
        """The rank that the options' rank or ratio say; None where the weight itself decides."""
        if options.rank is not None:
            return options.rank
        if options.ratio is not None:
            return min(self.full_rank, rank_for_ratio(self.rows, self.columns, options.ratio))
        return None


def targets_of(model: torch.nn.Module, options: Svd) -> list[Target]:
    """The weights that `targets` and `ignore` choose, each once with all its names; factors of an earlier stage stay.

    Raises: RecipeError as `choose_modules`, and when nothing is chosen but factors.
    """
    parts = {
        f"{name}.{child}"
        for name, module in model.named_modules()
        if isinstance(module, (FactoredLinear, FactoredEmbedding))
        for child, _ in module.named_children()
    }
    chosen = [name for name in choose_modules(model, options.targets, options.ignore) if name not in parts]
    if not chosen:
        raise RecipeError("targets name only layers that are factored already: name others, or factorize once")
    found: list[Target] = []
    seen: set[str] = set()
    for name in chosen:
        if name in seen:
            continue
        names = sharing(model, name)
        seen.update(names)
        kinds = [is_table(model, twin) for twin in names]
        rows, columns = model.get_submodule(name).get_parameter("weight").shape
        found.append(Target(names, rows, columns, table=any(kinds), tied=any(kinds) and not all(kinds)))
    return found


def check(model: torch.nn.Module, options: Svd) -> list[str]:
    """Problems before any work; the model (on the meta device) gets the shapes that the stage will give it."""
    try:
        targets = targets_of(model, options)
    except RecipeError as error:
        return error.problems or [error.message]
    problems = []
    for target in targets:
        name = target.names[0]
        if options.rank is not None and options.rank > target.full_rank:
            problems.append(
                f"rank {options.rank} is more than {name} has: {target.rows} × {target.columns}, at most "
                f"{target.full_rank}: lower rank, or add it to `ignore`"
            )
        if target.tied and options.execute == FACTORED:
            problems.append(
                f"{' and '.join(target.names)} are one weight, looked up in one place and multiplied with in the other, "
                "and cannot be executed factored: set execute to recombined or auto, or leave them out of targets"
            )
    for target in targets:
        rank = target.rank(options)
        if rank is not None and target.execution(options.execute, rank) == FACTORED and not target.tied:
            install(model, dict.fromkeys(target.names, rank))
    return problems


def is_table(model: torch.nn.Module, name: str) -> bool:
    """Whether module `name` is looked up."""
    return isinstance(model.get_submodule(name), torch.nn.Embedding)
