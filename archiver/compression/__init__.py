"""Every compression method there is: METHODS[verb][method].

A recipe's stage `- quantize: {method: static-int8, samples: 300}` names the verb (`quantize`), the method
(`static-int8`) and the method's options. Without `method:` it is the verb's only one, or the one of its name. A new method
is one entry here, its options dataclass and its function; archiver.compression.method says what an entry may declare.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archiver.compression.factorize.options import ActivationSvd, Svd
from archiver.compression.method import MOVES_WEIGHTS, PUT_LAST, Effect, Only, Refusal
from archiver.compression.method import Method as Method
from archiver.compression.prune.options import L1, SparseGpt, Wanda
from archiver.compression.prune.structured_options import ShareLayers, Structured
from archiver.compression.quantize.options import (
    Binary,
    Codebook,
    DynamicInt8,
    FixedPoint,
    StaticInt8,
    Ternary,
    WeightOnly,
)
from archiver.compression.quantize.product.options import Product
from archiver.compression.retrain.options import Layerwise, Retrain
from archiver.compression.share.options import Vocabulary

_ONCE = Refusal("{stage} stands after {earlier}: quantize once, as the last stage")
_EACH_ONCE = Refusal(
    "{stage} stands after {earlier}: each weight is quantized once; give both `targets` that differ, or remove one",
    unless_targets=True,
)
_SCALES_STAY = Refusal(
    "{stage} stands after {earlier} without `aware`: its scales were fitted to weights that would now move; "
    "put {stage} before it, or give {earlier} `aware: {{…}}`"
)
_WHOLE_TABLE = Refusal(
    "{stage} stands after {earlier}, whose grids belong to all rows of the table: put {stage} before it"
)
_CUT_FIRST = Refusal(
    "{stage} stands after {earlier}, whose parts it cannot tell apart any more: cut first, then {earlier}"
)

# Integers are made from the weights as they are by then: on a grid, they are computed in int8 and stored as it says.
_PLANS: Mapping[Effect, Refusal] = {Effect.PLANNED_INTEGERS: _ONCE}
_QUANTIZES: Mapping[Effect, Refusal] = {
    **MOVES_WEIGHTS,
    Effect.PLANNED_INTEGERS: _ONCE,
    Effect.FIXED_GRID: _EACH_ONCE,
    Effect.GRID: _EACH_ONCE,
}
_TURN_FIRST = Refusal(
    "{stage} turns hidden states, and all weights with them, after {earlier}: put `rotate` into the first of the two, or "
    "set it to false"
)
# A weight-only stage with `rotate`.
_TURNS: Mapping[Effect, Refusal] = dict.fromkeys(set(Effect) - {Effect.FEWER_TOKENS}, _TURN_FIRST)
_TRAINS: Mapping[Effect, Refusal] = {Effect.PLANNED_INTEGERS: PUT_LAST, Effect.FIXED_GRID: _SCALES_STAY}
_BY_THEMSELVES = Refusal(
    "{stage} stands after {earlier}: layers that share weights cannot learn by themselves; use retrain"
)
_FACTORIZES: Mapping[Effect, Refusal] = {
    **MOVES_WEIGHTS,
    Effect.ZEROS: Refusal(
        "{stage} stands after {earlier}: factors of a sparse matrix are dense, its zeros would be lost; swap them"
    ),
}

_INT8_DEVICES = Only(("cpu",), "int8 activations run on the CPU only: use weight-only, or device: cpu")
_ONE_STACK = Only(
    ("forward", "generate"),
    "does not fit a model that begins, forces and forbids tokens by their ids: remove it",
)
_INT8_EXECUTIONS = Only(
    ("forward", "seq2seq"),
    "is for encoders; the runtimes of text-generation quantize activations themselves where that is faster: "
    "use weight-only",
)


def _weight_only_leaves(options: Any) -> Effect:
    if not options.in_place:
        return Effect.PLANNED_INTEGERS
    return Effect.FIXED_GRID if options.aware is None else Effect.GRID


def _weight_only_refuses(options: Any) -> Mapping[Effect, Refusal]:
    if options.rotate:
        return _TURNS
    return _QUANTIZES if options.in_place else _PLANS


METHODS: dict[str, dict[str, Method]] = {
    "retrain": {
        "retrain": Method(
            options=Retrain,
            function="archiver.compression.retrain.stage:retrain",
            needs_data=True,
            refuses=_TRAINS,
        ),
        "layerwise": Method(
            options=Layerwise,
            function="archiver.compression.retrain.layerwise:layerwise",
            needs_data=True,
            refuses={**_TRAINS, Effect.SHARED_LAYERS: _BY_THEMSELVES},
        ),
    },
    "factorize": {
        "svd": Method(
            options=Svd,
            function="archiver.compression.factorize.low_rank:svd",
            needs_data=False,
            check="archiver.compression.factorize.targets:check",
            leaves=Effect.FACTORS,
            refuses=_FACTORIZES,
        ),
        "activation-svd": Method(
            options=ActivationSvd,
            function="archiver.compression.factorize.low_rank:activation_svd",
            needs_data=True,
            check="archiver.compression.factorize.targets:check",
            leaves=Effect.FACTORS,
            refuses=_FACTORIZES,
        ),
    },
    "quantize": {
        "dynamic-int8": Method(
            options=DynamicInt8,
            function="archiver.compression.quantize.int8:dynamic_int8",
            needs_data=False,
            devices=_INT8_DEVICES,
            executions=_INT8_EXECUTIONS,
            leaves=Effect.PLANNED_INTEGERS,
            refuses=_PLANS,
        ),
        "static-int8": Method(
            options=StaticInt8,
            function="archiver.compression.quantize.int8:static_int8",
            needs_data=True,
            devices=_INT8_DEVICES,
            executions=_INT8_EXECUTIONS,
            leaves=Effect.PLANNED_INTEGERS,
            refuses=_PLANS,
        ),
        "weight-only": Method(
            options=WeightOnly,
            function="archiver.compression.quantize.weights:weight_only",
            needs_data=False,
            check="archiver.compression.quantize.targets:check_weight_only",
            leaves=_weight_only_leaves,
            refuses=_weight_only_refuses,
        ),
        "fixed-point": Method(
            options=FixedPoint,
            function="archiver.compression.quantize.weights:fixed_point",
            needs_data=False,
            check="archiver.compression.quantize.targets:check_fixed_point",
            leaves=Effect.GRID,
            refuses=_QUANTIZES,
        ),
        "binary": Method(
            options=Binary,
            function="archiver.compression.quantize.weights:binary",
            needs_data=False,
            check="archiver.compression.quantize.targets:check_targets",
            leaves=Effect.GRID,
            refuses={
                **_QUANTIZES,
                Effect.ZEROS: Refusal(
                    "{stage} stands after {earlier}: ±b has no zero for pruned weights; use ternary, or do not prune"
                ),
            },
        ),
        "ternary": Method(
            options=Ternary,
            function="archiver.compression.quantize.weights:ternary",
            needs_data=False,
            check="archiver.compression.quantize.targets:check_targets",
            leaves=Effect.GRID,
            refuses=_QUANTIZES,
        ),
        "product": Method(
            options=Product,
            function="archiver.compression.quantize.product.stage:product",
            needs_data=False,
            check="archiver.compression.quantize.product.stage:check",
            leaves=Effect.CODEBOOK,
            refuses=_QUANTIZES,
        ),
    },
    "prune": {
        "l1": Method(
            options=L1,
            function="archiver.compression.prune.weights:l1",
            needs_data=False,
            check="archiver.compression.prune.weights:check",
            leaves=Effect.ZEROS,
        ),
        "wanda": Method(
            options=Wanda,
            function="archiver.compression.prune.weights:wanda",
            needs_data=True,
            check="archiver.compression.prune.weights:check",
            leaves=Effect.ZEROS,
        ),
        "sparsegpt": Method(
            options=SparseGpt,
            function="archiver.compression.prune.weights:sparsegpt",
            needs_data=True,
            check="archiver.compression.prune.weights:check",
            leaves=Effect.ZEROS,
        ),
        "structured": Method(
            options=Structured,
            function="archiver.compression.prune.structured:structured",
            needs_data=False,
            check="archiver.compression.prune.structured:check",
            refuses={
                **MOVES_WEIGHTS,
                Effect.SHARED_LAYERS: _CUT_FIRST,
                Effect.FACTORS: _CUT_FIRST,
                Effect.ZEROS: Refusal(
                    "{stage} stands after {earlier}: cut whole structures first, then single weights"
                ),
            },
        ),
    },
    "share": {
        "layers": Method(
            options=ShareLayers,
            function="archiver.compression.share.layers:share_layers",
            needs_data=False,
            check="archiver.compression.share.layers:check",
            leaves=Effect.SHARED_LAYERS,
            refuses={
                **MOVES_WEIGHTS,
                Effect.ZEROS: Refusal(
                    "{stage} stands after {earlier}: layers with zeros in different places cannot share; share first"
                ),
            },
        ),
        "vocabulary": Method(
            options=Vocabulary,
            function="archiver.compression.share.vocabulary:vocabulary",
            executions=_ONE_STACK,
            needs_tokenizer=True,
            needs_data=True,
            check="archiver.compression.share.vocabulary:check",
            leaves=Effect.FEWER_TOKENS,
            refuses={
                Effect.PLANNED_INTEGERS: PUT_LAST,
                Effect.FIXED_GRID: _WHOLE_TABLE,
                Effect.GRID: _WHOLE_TABLE,
                Effect.CODEBOOK: _WHOLE_TABLE,
                Effect.FEWER_TOKENS: Refusal("{stage} stands a second time: the tokens are gone already"),
            },
        ),
        "codebook": Method(
            options=Codebook,
            function="archiver.compression.share.codebook:codebook",
            needs_data=False,
            check="archiver.compression.quantize.targets:check_codebook",
            leaves=Effect.CODEBOOK,
        ),
    },
}
