"""Which LoRA adapter a request asks for, in each form's own words; answered as its number, 0 for the model itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from handlers.errors import BadRequest
from handlers.inputs.checks import Parameter, quoted

_TEXT = Parameter(lambda value: isinstance(value, str), "the name of one of the archive's adapters")
# `adapter_id` is what huggingface_hub's text_generation sends.
PARAMETERS = {"adapter": _TEXT, "adapter_id": _TEXT}


def by_parameter(given: Mapping[str, Any], adapters: Sequence[str]) -> int:
    """By the parameter `adapter` or `adapter_id`.

    Args:
        given: checked parameters. adapters: the archive's, by name.
    Raises: BadRequest naming what is allowed.
    """
    named = {given[key] for key in PARAMETERS if key in given}
    if not named:
        return 0
    if len(named) > 1:
        raise BadRequest("'adapter' and 'adapter_id' name two different adapters; send one of them")
    (name,) = named
    if name in adapters:
        return adapters.index(name) + 1
    if not adapters:
        raise BadRequest(f"there is no adapter {name[:60]!r}: this archive has none, leave the parameter out")
    raise BadRequest(
        f"there is no adapter {name[:60]!r}; allowed: {quoted(list(adapters), most=64)}, or none for the model itself"
    )


def by_model(given: Mapping[str, Any], adapters: Sequence[str], model: str) -> int:
    """By OpenAI's `model`. In an archive without adapters it changes nothing: the URL names the model.

    Args:
        given: checked keys of the body. adapters: the archive's, by name. model: the archive's own name.
    Raises: BadRequest 404 naming what is allowed.
    """
    name = given.get("model")
    if name is None or name == model or not adapters:
        return 0
    if name not in adapters:
        raise BadRequest(f"there is no model {name[:60]!r} here; allowed: {quoted([model, *adapters], most=65)}", 404)
    return adapters.index(name) + 1
