"""Hugging Face's form, for every task: {"inputs": one or a list, "parameters": {…}}, and plain text or bytes as one input.

An input that is an object may also be the body itself, with its parameters beside its own keys: {"query": …, "texts": […],
"raw_scores": true}, as text-embeddings-inference has it; and beside 'inputs' they may stand, too, as huggingface_hub sends
those of a feature extraction.

Source: the request and response bodies of Hugging Face Inference Endpoints and of text-embeddings-inference. For text
generation: `handlers.protocols.huggingface.generation`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from handlers.errors import BadRequest
from handlers.inputs.checks import checked_parameters, kind_of, quoted
from handlers.protocols.request import Request, Spec


def recognises(document: Mapping[str, Any]) -> bool:
    """Whether a request's JSON object is in this form."""
    return "inputs" in document


def parse(document: Any, spec: Spec) -> Request:
    """A request to any task but text generation.

    Args:
        document: as `read_document` gives it.
    Raises: BadRequest saying what is wrong and what is allowed.
    """
    if not isinstance(document, dict):
        raise BadRequest(f"the JSON body is {kind_of(document)}, an object is expected; {spec.allowed}")
    if "inputs" not in document and not set(spec.fields).isdisjoint(document):
        document = _wrapped(document, spec.fields)
    elif not set(spec.parameters).isdisjoint(document):
        beside = {key: value for key, value in document.items() if key in spec.parameters}
        rest = {key: value for key, value in document.items() if key not in beside}
        document = rest | {"parameters": _joined(beside, document.get("parameters"))}
    check_keys(document, "inputs", "parameters")
    if "inputs" not in document:
        raise BadRequest(f"the body has no 'inputs'; {spec.allowed}")
    inputs, single = read_inputs(document, spec.decode, spec.max_inputs)
    return Request(inputs, single, checked_parameters(document.get("parameters"), spec.parameters))


def _wrapped(document: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """The usual form of a body that is its own input: what is neither one of `fields` nor 'parameters' is a parameter."""
    beside = {key: value for key, value in document.items() if key not in (*fields, "parameters")}
    given = document.get("parameters")
    return {
        "inputs": {key: document[key] for key in fields if key in document},
        "parameters": _joined(beside, given) if beside else given,
    }


def _joined(beside: Mapping[str, Any], given: Any) -> dict[str, Any]:
    """Parameters that stand in the body with those of `parameters`."""
    if given is None:
        return dict(beside)
    if not isinstance(given, dict):
        raise BadRequest(f"'parameters' is {kind_of(given)}, an object is expected")
    if twice := sorted(set(beside) & set(given)):
        raise BadRequest(f"{quoted(twice)} stands in the body and in 'parameters'; send it once")
    return {**beside, **given}


def render(answers: Sequence[Any], single: bool) -> Any:
    """The JSON value to answer: a list of answers for a list of inputs, one answer for one that was sent bare."""
    return answers[0] if single else answers


def check_keys(document: Mapping[str, Any], *allowed: str) -> None:
    """BadRequest naming the keys of the body that are not among `allowed`."""
    unknown = sorted(set(document) - set(allowed))
    if unknown:
        raise BadRequest(f"unknown key {quoted(unknown)} in the body; allowed: {quoted(list(allowed))}")


def read_inputs(
    document: Mapping[str, Any], decode: Callable[[Any, str], Any], max_inputs: int
) -> tuple[tuple[Any, ...], bool]:
    """The inputs of a request that has them, each through `decode` with its place, and whether one was sent bare."""
    inputs = document["inputs"]
    if not isinstance(inputs, list):
        return (decode(inputs, "inputs"),), True
    if not inputs:
        raise BadRequest(f"'inputs' is an empty list; send 1 to {max_inputs} inputs")
    if len(inputs) > max_inputs:
        raise BadRequest(f"'inputs' has {len(inputs)} elements; at most {max_inputs} are allowed in one request")
    return tuple(decode(item, f"inputs[{index}]") for index, item in enumerate(inputs)), False
