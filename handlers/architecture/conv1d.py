"""GPT-2's linear layers keep their weight transposed, in a class of transformers' own: here they become torch's.

Every method of compression, every count of multiplications and the archive's own loader then meet one kind of layer.
"""

import torch


def conv1d_to_linear(model: torch.nn.Module) -> torch.nn.Module:
    """Replace each transformers Conv1D (y = x·W + b, W [in, out]) of `model` by a Linear (W [out, in]), in place.

    Works on the meta device as well. Returns `model`.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "Conv1D" and type(child).__module__.startswith("transformers."):
                setattr(parent, name, _linear(child))
    return model


def _linear(layer: torch.nn.Module) -> torch.nn.Linear:
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    inputs, outputs = weight.shape
    linear = torch.nn.Linear(inputs, outputs, device="meta")
    linear.weight = torch.nn.Parameter(weight.detach().T.contiguous(), requires_grad=weight.requires_grad)
    linear.bias = torch.nn.Parameter(bias.detach(), requires_grad=bias.requires_grad)
    return linear.train(layer.training)
