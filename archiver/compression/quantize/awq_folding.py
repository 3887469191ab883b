"""Where a scale of input channels can be folded into what comes before, exactly.

Only where nothing else reads the output that is divided by the scale, and nothing that is not linear lies between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from archiver.state.constraints import Mask, state_of
from handlers.architecture.anatomy import layer_list

Tensor = torch.Tensor


@dataclass(frozen=True)
class Fold:
    """before: a norm or linear layer whose output, divided by s, is all that the linear layers `after` take.

    first: the first of the outputs of `before` that are meant; heads, head_size: where groups of `repeats` heads read the
    same outputs (grouped-query attention), the outputs are heads × head_size; heads 0: one output for one input
    """

    before: str
    after: tuple[str, ...]
    first: int = 0
    heads: int = 0
    head_size: int = 0
    repeats: int = 1

    def tied(self, channels: Tensor) -> Tensor:
        """Values of input channels, averaged over those that read the same output."""
        if self.repeats == 1:
            return channels
        mean = channels.view(self.heads, self.repeats, self.head_size).mean(1, keepdim=True)
        return mean.expand(-1, self.repeats, -1).reshape(-1)

    def apply(self, model: torch.nn.Module, scale: Tensor) -> None:
        """Divide the outputs of `before` by `scale` [inputs of `after`], multiply the columns of `after` by it."""
        outputs = scale
        if self.repeats > 1:
            outputs = scale.view(self.heads, self.repeats, self.head_size)[:, 0].reshape(-1)
        before = model.get_submodule(self.before)
        rows = slice(self.first, self.first + len(outputs))
        with torch.no_grad():
            weight = before.get_parameter("weight")
            weight[rows] /= outputs if weight.dim() == 1 else outputs[:, None]
            if getattr(before, "bias", None) is not None:
                before.get_parameter("bias")[rows] /= outputs
            for name in self.after:
                model.get_submodule(name).get_parameter("weight").mul_(scale)


# (before, after) by their names below a layer. llama, mistral, qwen2 · gpt2 · bert, roberta, electra · distilbert
_NORMS = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ("ln_1", ("attn.c_attn",)),
    ("ln_2", ("mlp.c_fc",)),
)
_LINEARS = (
    ("mlp.up_proj", "mlp.down_proj"),
    ("self_attn.v_proj", "self_attn.o_proj"),
    ("attn.c_attn", "attn.c_proj"),
    ("attention.self.value", "attention.output.dense"),
    ("attention.v_lin", "attention.out_lin"),
)


def folds_of(model: torch.nn.Module, chosen: set[str]) -> list[Fold]:
    """The folds into layers that are all among `chosen`; none where a weight is shared or on a grid already."""
    try:
        prefix, layers = layer_list(model)
    except ValueError:
        return []
    uses = Counter(
        id(parameter)
        for _, module in model.named_modules(remove_duplicate=False)
        for parameter in getattr(module, "_parameters", {}).values()
        if parameter is not None
    )

    def free(name: str) -> bool:
        module = model.get_submodule(name)
        chain = state_of(model).constraints.get(name, [])
        alone = all(uses[id(parameter)] == 1 for parameter in module.parameters(recurse=False))
        return alone and all(isinstance(item, Mask) for item in chain)

    found = []
    for index, layer in enumerate(layers):
        for fold in _of_layer(layer, f"{prefix}.{index}."):
            if set(fold.after) <= chosen and all(free(name) for name in (fold.before, *fold.after)):
                found.append(fold)
    return found


def _of_layer(layer: Any, prefix: str) -> Iterator[Fold]:
    modules = dict(layer.named_modules(remove_duplicate=False))
    for norm, after in _NORMS:
        if norm not in modules or not all(isinstance(modules.get(name), torch.nn.Linear) for name in after):
            continue
        width = modules[norm].weight.shape
        if all(width == (modules[name].in_features,) for name in after):
            yield Fold(prefix + norm, tuple(prefix + name for name in after))
    for before, behind in _LINEARS:
        first, second = modules.get(before), modules.get(behind)
        if isinstance(first, torch.nn.Linear) and isinstance(second, torch.nn.Linear):
            fold = _between(first, second, prefix + before, prefix + behind, modules)
            if fold is not None:
                yield fold


def _between(first: Any, second: Any, before: str, after: str, modules: dict[str, Any]) -> Fold | None:
    outputs, inputs = first.out_features, second.in_features
    if before.endswith("c_attn"):  # queries, keys and values in one: the values are last
        return Fold(before, (after,), first=outputs - inputs) if outputs == 3 * inputs else None
    if outputs == inputs:
        return Fold(before, (after,))
    size = getattr(modules.get("self_attn"), "head_dim", 0)
    if not before.endswith("v_proj") or not size or inputs % outputs or outputs % size:
        return None
    return Fold(before, (after,), heads=outputs // size, head_size=size, repeats=inputs // outputs)
