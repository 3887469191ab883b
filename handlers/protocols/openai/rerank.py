"""Reranking as Cohere's and Jina's clients ask for it: {"query", "documents"} → results by falling relevance.

text-embeddings-inference's form, {"query", "texts"} → a bare list, is Hugging Face's, also under this path.
Source: the API references of Cohere («Rerank», v1 and v2) and of Jina («Reranker»).
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from handlers.errors import BadRequest
from handlers.inputs.checks import Parameter, is_bool, is_positive_int, kind_of, quoted
from handlers.protocols.huggingface import forms as hf
from handlers.protocols.openai.reply import DESCRIBING, OpenAIForm, checked_keys
from handlers.protocols.request import Request, Spec

KEYS = DESCRIBING | {
    "query": Parameter(lambda value: isinstance(value, str), "a text"),
    "documents": Parameter(lambda value: isinstance(value, list), 'a list of texts, or of {"text": …}'),
    "top_n": Parameter(is_positive_int, "a whole number from 1"),
    "return_documents": Parameter(is_bool, "true or false"),
}


@dataclass(frozen=True)
class Reranked(OpenAIForm):
    """texts: the documents, where they are to be repeated. top_n: most results, None for all."""

    model: str
    texts: Sequence[str] | None
    top_n: int | None

    def render(self, answers: Sequence[Any], tokens: int) -> Any:
        """The most relevant first; usage and meta as the two have them."""
        results: list[dict[str, Any]] = [
            {"index": one["index"], "relevance_score": one["score"]} for one in answers[0][: self.top_n]
        ]
        if self.texts is not None:
            results = [one | {"document": {"text": self.texts[one["index"]]}} for one in results]
        return {
            "id": uuid.uuid4().hex,
            "model": self.model,
            "results": results,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
        }


def parse(document: Any, spec: Spec) -> Request:
    """A request for an order of documents, or of texts.

    Raises: BadRequest saying what is wrong and what is allowed.
    """
    if isinstance(document, dict) and "texts" in document and "documents" not in document:
        return hf.parse(document, spec)
    given = checked_keys(document, KEYS, "documents")
    if "query" not in given:
        raise BadRequest(f"the body has no 'query'; allowed: {quoted(sorted(KEYS), most=50)}")
    texts = [_text(one, f"documents[{index}]") for index, one in enumerate(given["documents"])]
    value = spec.decode({"query": given["query"], "texts": texts}, "the body")
    form = Reranked(spec.model, texts if given.get("return_documents") else None, given.get("top_n"))
    return Request((value,), True, {}, form)


def _text(value: Any, where: str) -> str:
    text = value.get("text") if isinstance(value, dict) and set(value) == {"text"} else value
    if not isinstance(text, str):
        raise BadRequest(f'{where} is {kind_of(value)}; a text or {{"text": …}} is expected')
    return text
