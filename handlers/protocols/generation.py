"""A request for text in whichever form it comes: Hugging Face's or OpenAI's, under the same URL."""

from collections.abc import Callable, Sequence
from typing import Any

from handlers.errors import BadRequest
from handlers.inputs.checks import kind_of, quoted
from handlers.protocols.continuation import GenerationRequest, Renderer
from handlers.protocols.huggingface import generation as hf_generation
from handlers.protocols.openai import text as openai
from handlers.protocols.openai.calls import CallForm

PATHS = {"chat/completions": "messages", "completions": "prompt"}  # of OpenAI's clients, and what the body must have
ALLOWED = (
    'allowed: {"inputs": "text" or ["text", …], "parameters": {…}}, {"messages": [{"role": …, "content": …}, …]}, '
    '{"prompt": "text"}, or plain text'
)


def read_request(
    document: Any,
    path: str = "",
    *,
    max_inputs: int,
    chat: openai.Chat | None,
    calls: CallForm | None = None,
    model: str,
    random_seed: Callable[[], int],
    spell: Callable[[int], str] | None = None,
    adapters: Sequence[str] = (),
) -> tuple[GenerationRequest, Renderer]:
    """One request for text, and what renders its answer in the form it came in.

    Args:
        document: as it came. path: below the model's version, "" for none. max_inputs: most prompts of one request.
        chat: messages → prompt, None where the model has no chat template. calls: how the model writes calls of functions,
            None where it does not. model: its name. random_seed: for requests that name none. spell: a token id to its
            text, None where nothing is told of tokens. adapters: the archive's, by name.
    Returns: the request, and its renderer.
    Raises: BadRequest saying what is wrong and what is allowed.
    """
    if not isinstance(document, dict):
        raise BadRequest(f"the JSON body is {kind_of(document)}, an object is expected; {ALLOWED}")
    if path and (form := PATHS[path]) not in document:
        raise BadRequest(f"the body has no {form!r}, which {path} is about; found {quoted(sorted(document), most=50)}")
    forms = [name for name in ("inputs", "messages", "prompt") if name in document]
    if len(forms) != 1:
        found = f"both {quoted(forms)}" if forms else "neither 'inputs' nor 'messages' nor 'prompt'"
        raise BadRequest(f"the body has {found}; {ALLOWED}")
    if hf_generation.recognises(document):
        return hf_generation.parse(document, max_inputs=max_inputs, random_seed=random_seed, adapters=adapters)
    return openai.parse(
        document,
        chat=chat,
        calls=calls,
        model=model,
        random_seed=random_seed,
        max_inputs=max_inputs,
        spell=spell,
        adapters=adapters,
    )
