"""KServe's two forms: v1 {"instances": […]} → {"predictions": […]}, and v2 with named tensors both ways.

Of v2's binary extension (`binary_tensors`) requests are read; answers are JSON, which Triton's client takes as well.
Source: KServe's «V1 Inference Protocol» and «Open Inference Protocol (V2)».
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handlers.errors import BadRequest
from handlers.inputs.checks import Parameter, checked_parameters, kind_of, quoted
from handlers.protocols.huggingface import forms as hf
from handlers.protocols.reply import to_json
from handlers.protocols.request import Form, Request, Spec

OUTPUT = "output"
MOST = 1024  # inputs of a request whose task has a bound of its own
_INTEGERS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
_FLOATS = ("FP16", "FP32", "FP64")
_BINARY_OUTPUT = "binary_data_output"  # asks for numbers as bytes; who asks takes JSON, too
_TENSOR = ("name", "datatype", "shape", "data", "parameters")


def recognises(document: Any) -> bool:
    """Whether a request's JSON document is in one of the two forms."""
    return isinstance(document, dict) and ("instances" in document or _has_tensors(document.get("inputs")))


def parse(document: Mapping[str, Any], spec: Spec) -> Request:
    """A request in either form.

    Raises: BadRequest saying what is wrong and what is allowed, with a body of these forms.
    """
    try:
        return _v1(document, spec) if "instances" in document else _v2(document, spec)
    except BadRequest as error:
        error.render = kserve_error
        raise


def as_hugging_face(document: Mapping[str, Any], fields: Sequence[str] = ()) -> tuple[dict[str, Any], Form]:
    """A request in either form as Hugging Face's body of the same request, and what renders its answers.

    Args:
        fields: keys of an input that is an object.
    Raises: BadRequest as `parse` does.
    """
    sent = document.get("parameters")
    anything = {name: Parameter(lambda value: True, "") for name in sent} if isinstance(sent, dict) else {}
    spec = Spec(lambda value, where: value, anything, max_inputs=MOST, allowed="", fields=fields)
    request = parse(document, spec)
    assert request.form is not None
    return {"inputs": list(request.inputs), "parameters": request.parameters}, request.form


def kserve_error(code: int, message: str) -> bytes:
    """The body that tells a mistake."""
    return to_json({"error": message})


class _KServe:
    def error(self, code: int, message: str) -> bytes:
        return kserve_error(code, message)


@dataclass(frozen=True)
class Predictions(_KServe):
    """v1."""

    def render(self, answers: Sequence[Any], tokens: int) -> Any:
        """One prediction for each instance."""
        return {"predictions": list(answers)}


@dataclass(frozen=True)
class Tensors(_KServe):
    """v2. model, id: what the answer repeats."""

    model: str
    id: str | None

    def render(self, answers: Sequence[Any], tokens: int) -> Any:
        """Vectors as FP32 [n, width]; anything else as its JSON, BYTES [n]."""
        widths = {len(one) if _is_vector(one) else -1 for one in answers}
        output: dict[str, Any] = {"name": OUTPUT, "datatype": "BYTES", "shape": [len(answers)]}
        if len(widths) == 1 and (width := widths.pop()) > 0:
            numbers = [number for one in answers for number in one]
            output |= {"datatype": "FP32", "shape": [len(answers), width], "data": numbers}
        else:
            output["data"] = [to_json(one).decode() for one in answers]
        named = {} if self.id is None else {"id": self.id}
        return {"model_name": self.model, **named, "outputs": [output]}


def _v1(document: Mapping[str, Any], spec: Spec) -> Request:
    hf.check_keys(document, "instances", "parameters")
    instances = document["instances"]
    if not isinstance(instances, list):
        raise BadRequest(f"'instances' is {kind_of(instances)}; a list is expected")

    def decode(value: Any, where: str) -> Any:
        packed = isinstance(value, dict) and set(value) == {"b64"}
        return spec.decode(value["b64"] if packed else value, where.replace("inputs", "instances"))

    inputs, _ = hf.read_inputs({"inputs": instances}, decode, spec.max_inputs)
    return Request(inputs, False, checked_parameters(document.get("parameters"), spec.parameters), Predictions())


def _v2(document: Mapping[str, Any], spec: Spec) -> Request:
    hf.check_keys(document, "inputs", "parameters", "id", "outputs", "model_name", "model_version")
    name = document.get("id")
    if name is not None and not isinstance(name, str):
        raise BadRequest(f"'id' is {kind_of(name)}; a text is expected")
    given = document.get("parameters") or {}
    if not isinstance(given, dict):
        raise BadRequest(f"'parameters' is {kind_of(given)}, an object is expected")
    given = {name: value for name, value in given.items() if name != _BINARY_OUTPUT}
    columns = {tensor["name"]: _elements(tensor) for tensor in map(_checked, document["inputs"])}
    _check_outputs(document.get("outputs"))
    counts = {len(column) for column in columns.values()}
    if len(counts) != 1:
        raise BadRequest(
            f"the tensors have different lengths {sorted(counts)}; the first axis counts the inputs of all"
        )
    if len(columns) == 1 and not set(columns) & set(spec.fields):
        values: list[Any] = [_value(one, spec) for one in next(iter(columns.values()))]
    else:
        values = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    inputs, _ = hf.read_inputs({"inputs": values}, spec.decode, spec.max_inputs)
    return Request(inputs, False, checked_parameters(given, spec.parameters), Tensors(spec.model, name))


def _value(element: Any, spec: Spec) -> Any:
    """An input: where the task's are objects, a text that is the JSON of one stands for it."""
    if spec.fields and isinstance(element, str) and element.lstrip().startswith("{"):
        try:
            return json.loads(element)
        except (ValueError, RecursionError):
            return element
    return element


def _has_tensors(inputs: Any) -> bool:
    return (
        isinstance(inputs, list)
        and bool(inputs)
        and all(isinstance(one, dict) and {"name", "datatype", "shape"} <= one.keys() for one in inputs)
    )


def _checked(tensor: Mapping[str, Any]) -> Mapping[str, Any]:
    name, shape = tensor["name"], tensor["shape"]
    if not isinstance(name, str):
        raise BadRequest(f"a tensor's 'name' is {kind_of(name)}; a text is expected")
    where = f"the tensor {name[:40]!r}"
    if unknown := sorted(set(tensor) - set(_TENSOR)):
        raise BadRequest(f"{where} has the unknown key {quoted(unknown)}; allowed: {quoted(list(_TENSOR))}")
    if not isinstance(shape, list) or not shape or not all(type(size) is int and size > 0 for size in shape):
        raise BadRequest(f"the shape of {where} is no list of whole numbers from 1")
    if tensor["datatype"] not in ("BYTES", *_INTEGERS, *_FLOATS):
        raise BadRequest(
            f"the datatype of {where} is not known; allowed: {quoted(['BYTES', *_INTEGERS, *_FLOATS], most=20)}"
        )
    if not isinstance(tensor.get("data"), list):
        raise BadRequest(f"{where} has no list 'data'")
    return tensor


def _elements(tensor: Mapping[str, Any]) -> list[Any]:
    """What a tensor has for each input: a value for [n] and [n, 1], a list of them for [n, width]."""
    name, shape = tensor["name"], tensor["shape"]
    flat: list[Any] = []
    level: list[Any] = [tensor["data"]]
    while level:  # nested as the tensor is, or flat in row-major order
        one = level.pop()
        if isinstance(one, list):
            level.extend(reversed(one))
        else:
            flat.append(one)
    kind = tensor["datatype"]
    right = (str, bytes) if kind == "BYTES" else int if kind in _INTEGERS else (int, float)
    if not all(isinstance(value, right) and not isinstance(value, bool) for value in flat):
        raise BadRequest(f"'data' of the tensor {name[:40]!r} holds something that is no {kind}")
    if len(flat) != math.prod(shape):
        raise BadRequest(f"the tensor {name[:40]!r} has {len(flat)} values; its shape {shape} wants {math.prod(shape)}")
    width = math.prod(shape[1:])
    rows = [flat[start : start + width] for start in range(0, len(flat), width)]
    return [row[0] for row in rows] if width == 1 else rows


def _check_outputs(outputs: Any) -> None:
    if outputs is None:
        return
    names = [one.get("name") for one in outputs if isinstance(one, dict)] if isinstance(outputs, list) else [None]
    if any(name != OUTPUT for name in names):
        raise BadRequest(f"'outputs' names something else than the one output there is: {OUTPUT!r}")


def _is_vector(answer: Any) -> bool:
    return isinstance(answer, list) and bool(answer) and all(isinstance(number, float) for number in answer)
