"""Whether the weight files hold what a model's class needs: transformers' own loading, on names and shapes alone.

transformers renames what older checkpoints call otherwise and fuses the weights of experts; its own code is therefore
the one that is asked. It gets stand-ins of the tensors, which become tensors of the meta device: no weight is read.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from archiver.models.config import quiet, reason
from archiver.models.tensors import LEGACY_BUFFERS, TensorInfo

# Arguments of `from_pretrained` that every load shares.
LOADING: Mapping[str, Any] = {
    "dtype": torch.float32,
    "attn_implementation": "eager",
    "ignore_mismatched_sizes": True,  # so that every mismatch is known; each is a problem
    "output_loading_info": True,
}
_MOST = 20  # lines of one kind that are listed


@dataclass(frozen=True)
class Checkpoint:
    """A model on the meta device, and how the files' tensors fit it, as transformers' loading names them.

    head: weights of a head that the files lack. problems: sentences about all else that does not fit
    """

    model: Any
    head: list[str]
    problems: list[str]


class _StandIn:
    """A tensor of a file for transformers' loading, which takes it by [...] and moves it with `.to`."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __getitem__(self, _: object) -> _StandIn:
        return self

    def to(self, device: object = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.empty(self.shape, dtype=dtype, device="meta")


def match_checkpoint(
    cls: Any, config: Any, tensors: Mapping[str, TensorInfo], *, options: Mapping[str, Any]
) -> Checkpoint:  # fmt: skip
    """Compare a class of transformers with the tensors of the weight files, without reading them.

    Args:
        cls: a class of transformers, as BertForSequenceClassification.
        config: its configuration.
        tensors: those of all weight files.
        options: arguments of the class's constructor, as `model_options` gives them.
    Raises: ValueError where transformers cannot make or load such a model, with its reason.
    """
    # A subclass under the same name: what its loading leaves on the meta device stays there, uninitialised.
    methods = {
        "__module__": cls.__module__,
        "_move_missing_keys_from_meta_to_device": _nothing,
        "_initialize_missing_keys": _nothing,
        "tie_weights": _forget_tied,
    }
    checked: Any = type(cls.__name__, (cls,), methods)
    stand_ins = {name: _StandIn(info.shape) for name, info in tensors.items()}
    with quiet():
        try:
            model, info = checked.from_pretrained(None, config=config, state_dict=stand_ins, **LOADING, **options)
        except Exception as error:  # whatever a model's own code raises for a configuration it cannot take
            raise ValueError(reason(error)) from error
    head, problems = loading_problems(model, info)
    return Checkpoint(model, head, problems)


def model_options(
    cls: Any, config: Any, base_only: bool, input_name: str, names: Collection[str]
) -> dict[str, Any]:  # fmt: skip
    """Arguments of a class's constructor beside its configuration: no pooler for the base model.

    A pooler of images stays where the files hold its weights, or it has none: it makes what is called their features.

    Args:
        input_name: the model's main input. names: of the weight files' tensors.
    """
    if not base_only or "add_pooling_layer" not in inspect.signature(cls.__init__).parameters:
        return {}
    if input_name != "input_ids":
        with torch.device("meta"):
            pooler = [name for name in cls._from_config(config).state_dict() if name.startswith("pooler.")]
        if all(any(name.endswith(f".{wanted}") or name == wanted for name in names) for wanted in pooler):
            return {}
    return {"add_pooling_layer": False}


def loading_problems(model: Any, info: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What of transformers' loading report is wrong.

    Args:
        model: the loaded model.
        info: what `from_pretrained` gives with output_loading_info.
    Returns: (names of missing weights of a head, sentences about all else).
    """
    prefix = f"{model.base_model_prefix}."
    base_only = model.base_model is model
    missing = sorted(info["missing_keys"])
    head = [] if base_only else [name for name in missing if not name.startswith(prefix)]
    mismatched = sorted(info["mismatched_keys"], key=str)
    surplus = [name for name in sorted(info["unexpected_keys"]) if not _is_unused(name, model)]
    problems = [
        *_short([f"{name} is missing and would be random" for name in missing if name not in head]),
        *_short(
            [f"{name} is {list(found)} in the file, {list(made)} by config.json" for name, found, made in mismatched]
        ),
        *_short([f"{name} is in the file and has no place by config.json" for name in surplus]),
        *_short([reason(ValueError(line)) for line in info.get("error_msgs", [])]),
    ]
    return head, problems


def _is_unused(name: str, model: Any) -> bool:
    """A tensor without a place that does not matter: of another head, or a buffer that transformers makes itself.

    A tensor below a module that the model has is none of these: it is a surplus layer, or an unknown variant.
    """
    if name.endswith(LEGACY_BUFFERS):
        return True
    first = name.removeprefix(f"{model.base_model_prefix}.").partition(".")[0]
    children = {child for module in (model, model.base_model) for child, _ in module.named_children()}
    return first not in children


def _short(lines: list[str]) -> list[str]:
    return lines if len(lines) <= _MOST else [*lines[:_MOST], f"… and {len(lines) - _MOST} more like that"]


def _nothing(*_: object, **__: object) -> None:
    """In the place of a step of loading that would fill weights with random numbers."""


def _forget_tied(self: Any, missing_keys: set[str] | None = None, **_: object) -> None:
    """In the place of tying: a weight is not missing where one that it is tied to is there."""
    pairs = [set(pair) for pair in getattr(self, "all_tied_weights_keys", {}).items()]
    missing = set() if missing_keys is None else missing_keys
    for pair in pairs * len(pairs):  # again and again, for chains of ties
        if not pair <= missing:
            missing -= pair
