"""OpenAI's embeddings: {"input": text, texts or token ids} → vectors as numbers or base64.

Source: OpenAI's API reference, «Embeddings».
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from handlers.inputs.checks import Parameter, is_positive_int
from handlers.protocols.huggingface.forms import read_inputs
from handlers.protocols.openai.reply import DESCRIBING, OpenAIForm, checked_keys
from handlers.protocols.request import Request, Spec

KEYS = DESCRIBING | {
    "input": Parameter(lambda value: isinstance(value, (str, list)), "a text, a list of texts, or token ids"),
    "encoding_format": Parameter(lambda value: value in ("float", "base64"), '"float" or "base64"'),
    "dimensions": Parameter(is_positive_int, "a whole number from 1"),
}


@dataclass(frozen=True)
class Embeddings(OpenAIForm):
    """model: the name that answers repeat. packed: base64 of the numbers, as OpenAI's own client asks for."""

    model: str
    packed: bool = False

    def render(self, answers: Sequence[Any], tokens: int) -> Any:
        """A list of embeddings, and how many tokens were read."""
        data = [
            {"object": "embedding", "index": index, "embedding": self._vector(answer)}
            for index, answer in enumerate(answers)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": self.model, "usage": usage}

    def _vector(self, answer: Sequence[float]) -> Any:
        return base64.b64encode(np.asarray(answer, "<f4").tobytes()).decode() if self.packed else answer


def parse(document: Any, spec: Spec) -> Request:
    """A request for embeddings.

    Raises: BadRequest saying what is wrong and what is allowed.
    """
    given = checked_keys(document, KEYS, "input")
    sent = given["input"]
    if isinstance(sent, list) and sent and all(isinstance(one, int) for one in sent):
        sent = {"token_ids": sent}
    elif isinstance(sent, list):
        sent = [{"token_ids": one} if isinstance(one, list) else one for one in sent]
    inputs, single = read_inputs({"inputs": sent}, _named(spec), spec.max_inputs)
    form = Embeddings(spec.model, given.get("encoding_format") == "base64")
    return Request(inputs, single, {name: given[name] for name in ("dimensions",) if name in given}, form)


def _named(spec: Spec) -> Any:
    return lambda value, where: spec.decode(value, where.replace("inputs", "input"))
