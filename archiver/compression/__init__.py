"""Every compression method there is: METHODS[verb][method].

A recipe's stage `- quantize: {method: static-int8, samples: 300}` names the verb (`quantize`), the method
(`static-int8`) and the method's options. A verb with one method needs no `method:`. Checking a recipe must not cost
an import of torch, so a method names its function and `load()` imports it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from archiver.compression.factorize.options import ActivationSvd, Svd
from archiver.compression.modules import DynamicInt8, StaticInt8
from archiver.compression.prune.options import L1, SparseGpt, Wanda
from archiver.compression.prune.structured_options import ShareLayers, Structured
from archiver.compression.quantize.options import Binary, Codebook, FixedPoint, Ternary, WeightOnly
from archiver.compression.retrain.options import Retrain
from archiver.compression.share.options import Vocabulary


@dataclass(frozen=True)
class Method:
    """One way to compress.

    options: frozen dataclass whose fields are made with `archiver.fields.option`
    function: "module:name" of `(model: torch.nn.Module, options, context: StageContext) -> StageReport`, in place
    needs_data: it cannot work without the recipe's data.train; where only some options need it, the options class has a
        property `needs_data`
    check: "module:name" of `(model, options) -> list[str]`: what in the model's modules and shapes it cannot work with,
        every bad module named. It gets the model without weights (meta device) before work starts, and changes the
        shapes as the function will
    search: option name -> the values worth trying when a search is run over this method
    """

    options: type
    function: str
    needs_data: bool
    check: str = ""
    search: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def load(self) -> Callable[..., Any]:
        """Import and return the function."""
        return _import(self.function)

    def load_check(self) -> Callable[..., list[str]] | None:
        """Import and return the check, None for a method that works on every model."""
        return _import(self.check) if self.check else None


def _import(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


METHODS: dict[str, dict[str, Method]] = {
    "retrain": {
        "retrain": Method(Retrain, "archiver.compression.retrain.stage:retrain", needs_data=True),
    },
    "factorize": {
        "svd": Method(
            options=Svd,
            function="archiver.compression.factorize.low_rank:svd",
            needs_data=False,
            check="archiver.compression.factorize.low_rank:check",
            search={"ratio": (0.3, 0.5, 0.7)},
        ),
        "activation-svd": Method(
            options=ActivationSvd,
            function="archiver.compression.factorize.low_rank:activation_svd",
            needs_data=True,
            check="archiver.compression.factorize.low_rank:check",
            search={"ratio": (0.3, 0.5, 0.7), "samples": (100, 300, 1000)},
        ),
    },
    "quantize": {
        "dynamic-int8": Method(
            options=DynamicInt8,
            function="archiver.compression.quantize.int8:dynamic_int8",
            needs_data=False,
        ),
        "static-int8": Method(
            options=StaticInt8,
            function="archiver.compression.quantize.int8:static_int8",
            needs_data=True,
            search={"samples": (100, 300, 1000)},
        ),
        "weight-only": Method(
            options=WeightOnly,
            function="archiver.compression.quantize.weights:weight_only",
            needs_data=False,
            check="archiver.compression.quantize.weights:check_weight_only",
            search={"bits": (8, 4, 3), "group_size": (32, 64, 128), "algorithm": ("rtn", "gptq", "awq")},
        ),
        "fixed-point": Method(
            options=FixedPoint,
            function="archiver.compression.quantize.weights:fixed_point",
            needs_data=False,
            check="archiver.compression.quantize.weights:check_fixed_point",
            search={"format": ("q2.5", "q1.6", "q0.7", "q3.4")},
        ),
        "binary": Method(
            options=Binary,
            function="archiver.compression.quantize.weights:binary",
            needs_data=False,
            check="archiver.compression.quantize.weights:check_targets",
            search={"scale": ("mean", "learned"), "granularity": ("channel", "tensor")},
        ),
        "ternary": Method(
            options=Ternary,
            function="archiver.compression.quantize.weights:ternary",
            needs_data=False,
            check="archiver.compression.quantize.weights:check_targets",
            search={"granularity": ("channel", "tensor")},
        ),
    },
    "prune": {
        "l1": Method(
            options=L1,
            function="archiver.compression.prune.weights:l1",
            needs_data=False,
            check="archiver.compression.prune.weights:check",
            search={"sparsity": (0.3, 0.5, 0.7), "scope": ("global", "layer")},
        ),
        "wanda": Method(
            options=Wanda,
            function="archiver.compression.prune.weights:wanda",
            needs_data=True,
            check="archiver.compression.prune.weights:check",
            search={"sparsity": (0.3, 0.5, 0.7), "scope": ("row", "layer")},
        ),
        "sparsegpt": Method(
            options=SparseGpt,
            function="archiver.compression.prune.weights:sparsegpt",
            needs_data=True,
            check="archiver.compression.prune.weights:check",
            search={"sparsity": (0.3, 0.5, 0.7), "damping": (0.01, 0.1)},
        ),
        "structured": Method(
            options=Structured,
            function="archiver.compression.prune.structured:structured",
            needs_data=False,
            check="archiver.compression.prune.structured:check",
            search={"neurons": (0.25, 0.5, 0.67), "heads": (0.33, 0.5), "layers": (0.33, 0.5)},
        ),
    },
    "share": {
        "layers": Method(
            options=ShareLayers,
            function="archiver.compression.share.layers:share_layers",
            needs_data=False,
            check="archiver.compression.share.layers:check",
            search={"groups": (2, 3), "init": ("mean", "first")},
        ),
        "vocabulary": Method(
            options=Vocabulary,
            function="archiver.compression.share.vocabulary:vocabulary",
            needs_data=True,
            check="archiver.compression.share.vocabulary:check",
        ),
        "codebook": Method(
            options=Codebook,
            function="archiver.compression.share.codebook:codebook",
            needs_data=False,
            check="archiver.compression.quantize.weights:check_codebook",
            search={"bits": (3, 4, 5), "granularity": ("tensor", "group")},
        ),
    },
}
