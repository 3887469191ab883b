"""One kind of linear layer: what transformers keeps in layers of other kinds becomes torch's Linear."""

import torch

from handlers.architecture.conv1d import conv1d_to_linear
from handlers.architecture.experts import experts_to_linear


def to_linear_layers(model: torch.nn.Module) -> torch.nn.Module:
    """Replace GPT-2's transposed layers and fused experts by Linear layers, in place; on the meta device as well.

    Convolutions whose weight is made of a direction and a length get it as a plain one.

    The build does so when it loads a model, and the archive's loader to the skeleton that it fills: names and shapes agree.
    Returns `model`.
    """
    return experts_to_linear(conv1d_to_linear(plain_convolutions(model)))


def plain_convolutions(model: torch.nn.Module) -> torch.nn.Module:
    """Weights of convolutions that are stored as a direction and a length become plain weights, in place.

    The positional convolution of these models is trained that way; each pass would compute its weight anew.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Conv1d) and torch.nn.utils.parametrize.is_parametrized(module, "weight"):
            torch.nn.utils.parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return model
