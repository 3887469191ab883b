"""What is declared of a compression method, and the rules on what may stand before it in a recipe.

Nothing here imports torch: a recipe is checked without it. A method names its function and its check, and `load()`,
`load_check()` import them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from archiver.fields import options_of


class Effect(Enum):
    """What a stage leaves on the model that a later stage has to respect."""

    PLANNED_INTEGERS = auto()  # the exporter writes them at the very end; until then the weights are as they were
    FIXED_GRID = auto()  # weights on a grid whose scales do not follow them
    GRID = auto()  # weights on a grid that a later training keeps
    CODEBOOK = auto()  # weights that share a few values
    ZEROS = auto()  # single weights that are zero and stay zero
    FACTORS = auto()  # layers as products of two thin matrices
    SHARED_LAYERS = auto()  # one set of weights for several layers
    FEWER_TOKENS = auto()  # rows of the embedding table are gone


@dataclass(frozen=True)
class Refusal:
    """Why a stage cannot stand after one that has left a certain effect.

    reason: a sentence in which {stage} and {earlier} stand for the labels of both
    unless_targets: it can where both stages name `targets`; whether those overlap is seen on the model's own modules
    """

    reason: str
    unless_targets: bool = False


@dataclass(frozen=True)
class Only:
    """The values that a method is restricted to, and why.

    reason: for devices a sentence ("int8 activations run on the CPU only: …"), for executions what follows the stage's
        name in one ("is for encoders; …"); each ends with what to do instead
    """

    allowed: tuple[str, ...]
    reason: str


PUT_LAST = Refusal(
    "{stage} stands after {earlier}, which becomes integers when the graph is written: put {earlier} last"
)
_MOVES = Refusal(
    "{stage} stands after {earlier}: it would move weights off the values that were just chosen; put it before"
)
# A method that changes weights and says nothing else.
MOVES_WEIGHTS: Mapping[Effect, Refusal] = {
    Effect.PLANNED_INTEGERS: PUT_LAST,
    Effect.FIXED_GRID: _MOVES,
    Effect.GRID: _MOVES,
    Effect.CODEBOOK: _MOVES,
}


@dataclass(frozen=True)
class Method:
    """One way to compress: an entry of METHODS.

    options: frozen dataclass whose fields are made with `archiver.fields.option`
    function: "module:name" of `(model: torch.nn.Module, options, context: StageContext) -> StageReport`, in place
    needs_data: it cannot work without the recipe's data.train; where only some options need it, the options class has a
        property `needs_data`
    check: "module:name" of `(model, options) -> list[str]`: what in the model's modules and shapes it cannot work with,
        every bad module named. It gets the model without weights (meta device) before work starts, and changes the
        shapes as the function will
    needs_tokenizer: it changes the model's tokenizer
    devices: what `serve.device` may be after it; None: any
    executions: how the task may be executed ("forward": one pass gives the answer, "generate": token by token); None: any
    leaves: what it leaves on the model, or a function of its options that says so; None: nothing that binds later stages
    refuses: what must not have been left by an earlier stage, and why, or a function of its options
    """

    options: type
    function: str
    needs_data: bool
    check: str = ""
    needs_tokenizer: bool = False
    devices: Only | None = None
    executions: Only | None = None
    leaves: Effect | Callable[[Any], Effect] | None = None
    refuses: Mapping[Effect, Refusal] | Callable[[Any], Mapping[Effect, Refusal]] = field(
        default_factory=lambda: MOVES_WEIGHTS
    )

    def load(self) -> Callable[..., Any]:
        """Import and return the function."""
        return _import(self.function)

    def load_check(self) -> Callable[..., list[str]] | None:
        """Import and return the check, None for a method that works on every model."""
        return _import(self.check) if self.check else None

    def effect(self, options: Any) -> Effect | None:
        """What it leaves on the model with these options; None: nothing that binds later stages."""
        return self.leaves if self.leaves is None or isinstance(self.leaves, Effect) else self.leaves(options)

    def refusals(self, options: Any) -> Mapping[Effect, Refusal]:
        """What must not have been left before it with these options, and why."""
        return self.refuses if isinstance(self.refuses, Mapping) else self.refuses(options)

    @property
    def search(self) -> dict[str, tuple[Any, ...]]:
        """{option: the values worth trying when a search is run over this method}, as the options declare them."""
        return {name: allowed.search for name, (allowed, _) in options_of(self.options).items() if allowed.search}


def _import(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found
