"""What a model is made of, found in its module tree by shape and by how a traced example flows; no family is named.

`layer_list` finds the repeated layers, `layer_parts` what can be cut out of each and where scales can be folded,
`residual_stream` who reads and writes the hidden states.
`cut_layer` and `keep_layers` make the cuts. What a cut changes beside shapes travels as settings.
"""

from archiver.architecture.discovery import kv_shapes, layer_parts
from archiver.architecture.layers import is_linear, keep_layers, layer_list, layer_stacks, removable, without_layers
from archiver.architecture.parts import KINDS, Cut, Fold, LayerParts
from archiver.architecture.stream import HeadValues, Stream, residual_stream, table_and_head
from archiver.architecture.surgery import cut_layer, cuts_of
from handlers.architecture.skeleton import settings_of

__all__ = [
    "KINDS",
    "Cut",
    "Fold",
    "HeadValues",
    "LayerParts",
    "Stream",
    "cut_layer",
    "cuts_of",
    "is_linear",
    "keep_layers",
    "kv_shapes",
    "layer_list",
    "layer_parts",
    "layer_stacks",
    "removable",
    "residual_stream",
    "settings_of",
    "table_and_head",
    "without_layers",
]
