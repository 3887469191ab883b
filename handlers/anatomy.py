"""Where the parts of a transformers model are: the one place that knows families by their module names."""

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
