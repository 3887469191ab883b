"""Mixture of experts: transformers keeps a layer's experts as one 3-D weight; here each one gets linear layers of its own.

Every method of compression, every exporter and the archive's own loader then meet one kind of layer, as with conv1d.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


class Expert(torch.nn.Module):
    """The linear layers of one expert, named as transformers names the experts' weights.

    up_name: "gate_up_proj", or "up_proj" where the experts have no gate.
    """

    def __init__(self, up_name: str, up: torch.nn.Linear, down: torch.nn.Linear) -> None:
        super().__init__()
        self.up_name = up_name
        self.add_module(up_name, up)
        self.down_proj = down


class Experts(torch.nn.Module):
    """A drop-in for transformers' experts of one layer: the same numbers, each expert with linear layers of its own.

    rule: what is left of transformers' module, without weights: its activation, its gate and their settings.
    """

    def __init__(self, experts: Iterable[Expert], rule: torch.nn.Module) -> None:
        super().__init__()
        for index, expert in enumerate(experts):
            self.add_module(str(index), expert)
        self.rule = rule
        self.num_experts = index + 1

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """hidden_states [tokens, width], top_k_index and top_k_weights [tokens, k] → sums [tokens, width].

        Only the tokens of an expert go through it. torch.export cannot follow that: there all go through all experts.
        """
        if torch.compiler.is_exporting():
            return self._dense(hidden_states, top_k_index, top_k_weights)
        found = torch.zeros_like(hidden_states)
        # A traced graph must hold every expert, since other inputs choose others.
        chosen = range(self.num_experts) if torch._C._get_tracing_state() else top_k_index.unique().tolist()
        for index in chosen:
            token, place = torch.where(top_k_index == index)
            result = self._run(index, hidden_states[token]) * top_k_weights[token, place, None]
            found.index_add_(0, token, result.to(found.dtype))
        return found

    def _dense(self, states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        weights = states.new_zeros(states.shape[0], self.num_experts)
        weights = weights.scatter(1, top_k_index, top_k_weights.to(states.dtype))
        found = torch.zeros_like(states)
        for index in range(self.num_experts):
            found = found + weights[:, index : index + 1] * self._run(index, states)
        return found

    def _run(self, index: int, states: torch.Tensor) -> torch.Tensor:
        expert = self.get_submodule(str(index))
        inner = expert.get_submodule(expert.up_name)(states)  # type: ignore[arg-type]
        inner = self.rule._apply_gate(inner) if self.rule.has_gate else self.rule.act_fn(inner)  # type: ignore[operator]
        outputs: torch.Tensor = expert.get_submodule("down_proj")(inner)
        return outputs


def experts_to_linear(model: torch.nn.Module) -> torch.nn.Module:
    """Replace the fused experts in `model`, whatever its family, by Experts, in place.

    Recognised is what follows transformers' interface of experts (integrations/moe.py): 3-D weights `down_proj` and
    `gate_up_proj` or `up_proj`, and the notes has_gate, has_bias and is_transposed. Works on the meta device as well.
    Returns `model`.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if _is_fused(child):
                setattr(parent, name, _split(child))
    return model


def _up_name(module: torch.nn.Module) -> str:
    return "gate_up_proj" if module.has_gate else "up_proj"


def _is_fused(module: torch.nn.Module) -> bool:
    if any(not hasattr(module, note) for note in ("has_gate", "has_bias", "is_transposed", "_apply_gate")):
        return False
    own = dict(module.named_parameters(recurse=False))
    names = {_up_name(module), "down_proj"}
    expected = names | ({f"{name}_bias" for name in names} if module.has_bias else set())
    return own.keys() == expected and all(own[name].dim() == 3 for name in names)


def _split(module: torch.nn.Module) -> Experts:
    up_name = _up_name(module)
    own = {name: getattr(module, name) for name in (up_name, "down_proj")}
    biases = {name: getattr(module, f"{name}_bias") if module.has_bias else None for name in own}
    for name in list(dict(module.named_parameters(recurse=False))):
        delattr(module, name)

    def linear(name: str, index: int) -> torch.nn.Linear:
        weight, bias = own[name], biases[name]
        one = weight.detach()[index].T if module.is_transposed else weight.detach()[index]
        made = torch.nn.Linear(one.shape[1], one.shape[0], bias=bias is not None, device="meta")
        # A copy: a view would keep all the experts' memory for as long as one of them lives.
        made.weight = torch.nn.Parameter(one.clone(memory_format=torch.contiguous_format), weight.requires_grad)
        if bias is not None:
            made.bias = torch.nn.Parameter(bias.detach()[index].clone(), bias.requires_grad)
        return made.train(module.training)

    count = own["down_proj"].shape[0]
    experts = [Expert(up_name, linear(up_name, i), linear("down_proj", i)).train(module.training) for i in range(count)]
    return Experts(experts, module).train(module.training)
