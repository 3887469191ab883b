"""Where the parts of a transformers model are: the one place that knows families by their module names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Below the base model; the first that exists. bert, roberta, electra … · distilbert · llama, qwen2, mistral · gpt2
_LAYER_LISTS = ("encoder.layer", "transformer.layer", "layers", "h")


def layer_list(model: Any) -> tuple[str, Any]:
    """(name from `model` down, torch.nn.ModuleList) of the model's transformer layers.

    ValueError for a family that is not known.
    """
    base = getattr(model, "base_model", model)
    prefix = "" if base is model else f"{model.base_model_prefix}."
    for name in _LAYER_LISTS:
        owner: Any = base
        for part in name.split("."):
            owner = getattr(owner, part, None)
        if owner is not None and hasattr(owner, "append"):
            return prefix + name, owner
    raise ValueError(f"{type(model).__name__}: its transformer layers are in no place that is known")


@dataclass(frozen=True)
class LayerParts:
    """Names, from the model down, of one transformer layer's linear layers.

    inputs: what attention projects with: query, key and value, or one layer that holds the three in this order
    output: what consumes the heads; attention: the module that holds their count; fused: inputs is one layer
    head_dim: width of a head; heads: of queries; key_heads: of keys and values. With fewer key_heads than heads each is
        shared by a group of queries, and such a group is what can be cut
    up: the layers that produce neurons (up, and gate where there is one); down: the one that consumes them
    """

    inputs: tuple[str, ...]
    output: str
    attention: str
    fused: bool
    head_dim: int
    heads: int
    key_heads: int
    up: tuple[str, ...]
    down: str


# By what a layer has: (inputs, output, attention, up, down), names from the layer down.
_FAMILIES: tuple[tuple[tuple[str, ...], str, str, tuple[str, ...], str], ...] = (
    (
        ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention.output.dense",
        "attention.self",
        ("intermediate.dense",),
        "output.dense",
    ),
    (
        ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        "attention.out_lin",
        "attention",
        ("ffn.lin1",),
        "ffn.lin2",
    ),
    (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "self_attn.o_proj",
        "self_attn",
        ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.down_proj",
    ),
    (("attn.c_attn",), "attn.c_proj", "attn", ("mlp.c_fc",), "mlp.c_proj"),
)
_HEAD_DIM = ("attention_head_size", "head_dim")


def layer_parts(model: Any) -> list[LayerParts]:
    """The parts of each layer, with the head counts that the shapes have now. ValueError for a family that is not known."""
    prefix, layers = layer_list(model)
    return [_parts(f"{prefix}.{index}", layer) for index, layer in enumerate(layers)]


def _parts(name: str, layer: Any) -> LayerParts:
    for inputs, output, attention, up, down in _FAMILIES:
        holder = _find(layer, attention)
        if holder is None or any(_find(layer, part) is None for part in (*inputs, output, *up, down)):
            continue
        head_dim = next((getattr(holder, key) for key in _HEAD_DIM if hasattr(holder, key)), 0)
        heads = in_features(_find(layer, output)) // head_dim
        key_heads = heads if len(inputs) == 1 else out_features(_find(layer, inputs[1])) // head_dim
        return LayerParts(
            inputs=tuple(f"{name}.{part}" for part in inputs),
            output=f"{name}.{output}",
            attention=f"{name}.{attention}",
            fused=len(inputs) == 1,
            head_dim=head_dim,
            heads=heads,
            key_heads=key_heads,
            up=tuple(f"{name}.{part}" for part in up),
            down=f"{name}.{down}",
        )
    raise ValueError(f"{name}: a {type(layer).__name__} whose parts are in no place that is known")


def in_features(module: Any) -> int:
    """Inputs of a linear layer, factored or not."""
    return int(module.in_features)


def out_features(module: Any) -> int:
    """Outputs of a linear layer, factored or not."""
    return int(module.out_features)


def _find(module: Any, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part, None)
    return module


def keep_layers(model: Any, kept: Sequence[int]) -> None:
    """Drop all layers but those with the indices `kept`, in this order; the config and the caches' indices follow."""
    name, layers = layer_list(model)
    parent, _, attribute = name.rpartition(".")
    chosen = [layers[index] for index in kept]
    setattr(model.get_submodule(parent), attribute, type(layers)(chosen))
    for index, layer in enumerate(chosen):
        for module in layer.modules():
            if getattr(module, "layer_idx", None) is not None:
                module.layer_idx = index
    config = model.config
    config.num_hidden_layers = len(chosen)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[index] for index in kept]


def fit_attention(model: Any, parts: LayerParts) -> None:
    """Tell an attention module what its linear layers' shapes say after a cut: where it keeps widths of its own."""
    holder = model.get_submodule(parts.attention)
    width = in_features(model.get_submodule(parts.output))
    heads = width // parts.head_dim
    if parts.fused:
        holder.split_size = width
        holder.num_heads = heads
    elif hasattr(holder, "num_key_value_groups"):
        holder.num_key_value_groups = heads // (out_features(model.get_submodule(parts.inputs[1])) // parts.head_dim)
    for key in ("num_attention_heads", "n_heads"):
        if hasattr(holder, key):
            setattr(holder, key, heads)
    if hasattr(holder, "all_head_size"):
        holder.all_head_size = width
