"""Which adapter a request names, in each form's words."""

from __future__ import annotations

import re
from typing import Any

import pytest

from handlers.errors import BadRequest
from handlers.protocols.generation import read_request
from handlers.protocols.openai.answers import Renderer

NAMES = ("a", "b")


def read(document: dict[str, Any], adapters: tuple[str, ...] = NAMES) -> tuple[int, str | None]:
    """(the adapter's number, the model that the answer names)"""
    request, renderer = read_request(
        document, max_inputs=1, chat=None, model="base", random_seed=lambda: 0, adapters=adapters
    )
    return request.adapter, renderer.model if isinstance(renderer, Renderer) else None


def inputs(**parameters: Any) -> dict[str, Any]:
    return {"inputs": "x", "parameters": parameters}


def test_by_parameter_and_by_model() -> None:
    assert read(inputs()) == (0, None)
    assert read(inputs(adapter="b")) == (2, None)
    assert read(inputs(adapter_id="a")) == read(inputs(adapter="a", adapter_id="a")) == (1, None)
    assert read({"prompt": "x", "model": "b"}) == (2, "b")
    assert read({"prompt": "x", "model": "base"}) == read({"prompt": "x"}) == (0, "base")
    assert read({"prompt": "x", "model": None}) == (0, "base")
    assert read({"prompt": "x", "model": "gpt-4"}, ()) == (0, "base")  # without adapters it changes nothing


@pytest.mark.parametrize(
    ("document", "adapters", "code", "message"),
    [
        (inputs(adapter="c"), NAMES, 400, "there is no adapter 'c'; allowed: 'a', 'b', or none for the model itself"),
        (inputs(adapter="c"), (), 400, "there is no adapter 'c': this archive has none, leave the parameter out"),
        (inputs(adapter=""), NAMES, 400, "there is no adapter ''; allowed"),
        (inputs(adapter="a", adapter_id="b"), NAMES, 400, "'adapter' and 'adapter_id' name two different adapters"),
        ({"prompt": "x", "model": "c"}, NAMES, 404, "there is no model 'c' here; allowed: 'base', 'a', 'b'"),
        ({"prompt": "x", "model": ""}, NAMES, 404, "there is no model '' here"),
        ({"prompt": "x", "adapter": "a"}, NAMES, 400, "unknown parameter 'adapter'"),
    ],
)
def test_what_is_refused(document, adapters, code, message) -> None:
    with pytest.raises(BadRequest, match=re.escape(message)) as refused:
        read(document, adapters)
    assert refused.value.code == code
