"""The stage `quantize/product`: rows of a table as codes into pieces that all rows share."""

from __future__ import annotations

from typing import Any

import torch

from archiver.compression.context import StageContext
from archiver.compression.modules import select_modules, weighted_names
from archiver.compression.quantize.product.codes import joined, product_codes
from archiver.compression.quantize.product.options import Product
from archiver.compression.quantize.targets import unquantized
from archiver.compression.quantize.weights import NOT_FASTER, described, train_aware, weights_of
from archiver.compression.report import StageReport, report_stage
from archiver.compression.roles import roles_of
from archiver.errors import RecipeError
from archiver.state.constraints import Constraint, constrain, straight_through

Tensor = torch.Tensor


class ProductCodes(Constraint):
    """The weight is put together from the shared pieces by its codes: training moves the pieces alone.

    Pieces are numbers of float16, which halves what they take at rest.

    Args:
        codes: [rows, splits] int64.
        pieces: [splits, clusters, width], trained.
    """

    codes: Tensor

    def __init__(self, codes: Tensor, pieces: Tensor) -> None:
        super().__init__()
        self.pieces = torch.nn.Parameter(pieces.detach().half().float())
        self.register_buffer("codes", codes)

    def forward(self, weight: Tensor) -> Tensor:
        return joined(self.codes, straight_through(self.pieces, self.pieces.detach().half().float()))

    def product(self) -> tuple[Tensor, Tensor]:
        return self.codes, self.pieces.detach().half().float()

    def freeze(self) -> None:
        """Nothing: the pieces may be trained again."""


def product(model: torch.nn.Module, options: Product, context: StageContext) -> StageReport:
    """Give each chosen weight its codes and pieces; with `aware`, train the pieces.

    Args:
        model: changed in place.
        options: modules, splits and bits.
        context: gives training batches, for `aware`.
    Returns: the report.
    Raises: RecipeError for modules that do not fit.
    """
    problems = check(model, options)
    if problems:
        raise RecipeError("quantize/product does not fit this model:", problems)
    names = chosen(model, options)
    before = weights_of(model, names)
    how: dict[str, Any] = {"iterations": options.iterations, "seed": options.seed}
    kept = {
        name: ProductCodes(*product_codes(weight, options.splits, 2**options.bits, **how))
        for name, weight in before.items()
    }
    notes: list[str] = []
    if options.aware is not None:
        notes = train_aware(model, kept, options.aware, context)
    else:
        for name, constraint in kept.items():
            constrain(model, name, constraint)
    what = f"{options.splits} codes of {options.bits} bits a row, pieces of float16"
    return report_stage("quantize/product", model, options, [described(model, before, what), *notes, NOT_FASTER])


def check(model: torch.nn.Module, options: Product) -> list[str]:
    """Problems before any work: modules that match nothing or are quantized already, splits that do not divide a width."""
    try:
        names = chosen(model, options)
    except RecipeError as error:
        return [error.message, *error.problems]
    widths = {name: model.get_submodule(name).get_parameter("weight").shape[1] for name in names}
    return [
        f"splits {options.splits} does not divide the width of {name}, {width}: choose a divisor of it"
        for name, width in widths.items()
        if width % options.splits
    ]


def chosen(model: Any, options: Product) -> list[str]:
    """Names of the modules, one for each weight."""
    targets = options.targets
    if targets is None:
        words = model.get_input_embeddings()
        targets = tuple(name for name, module in model.named_modules() if module is words)
        if not targets:
            raise RecipeError(f"{type(model).__name__} has no table of input embeddings: name `targets`")
    return unquantized(model, select_modules(weighted_names(model), targets, options.ignore, roles_of(model)))
