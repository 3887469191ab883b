"""The compressed language model as it will be served: staged as in the archive, opened by its own handler, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from archiver.candidate import MAX_EXAMPLES, TOLERANCE_FP32, Candidate, batch_difference
from archiver.compression.plan import plan_of
from archiver.decoder_subject import DecoderSubject
from archiver.errors import DataError
from archiver.export.torch_packed import export_packed
from archiver.packaging.layout import requirement, write_code, write_serving
from archiver.text_windows import read_text
from handlers.cpu import container_cores
from handlers.encoding import TextInput
from handlers.text_generation import TextGenerationHandler
from handlers.torch_decoder import greedy_steps

# The one runtime of text-generation in this version.
RUNTIME = "torch"

PROMPT_TOKENS = 16
EXAMPLE_TOKENS = 16
_MORE_PROMPTS = 4  # looked at for each that is stored
# A stored token is the likeliest by so much that two runs, each off by the tolerance, agree on it.
_MARGIN = 2 * TOLERANCE_FP32


def make_decoder_candidate(subject: DecoderSubject, folder: Path) -> Candidate:
    """Stage the files in `folder`, open them with the handler that will serve them, and measure."""
    folder.mkdir(parents=True)
    write_code(folder, subject.recipe, RUNTIME)
    (folder / "tokenizer.json").write_bytes(subject.tokenizer_json)
    before = set(folder.iterdir())
    plan = plan_of(subject.model)
    export_packed(subject.model, plan, folder)
    weight_bytes = sum(path.stat().st_size for path in set(folder.iterdir()) - before)
    settings = _serving(subject)
    write_serving(folder, settings)
    handler = TextGenerationHandler()
    handler.open(folder, threads=container_cores(), trust_files=True)
    prompts, tokens = choose_prompts(handler, _prompts(subject), subject.recipe.serve.examples)
    handler.serving["example_tokens"] = settings["example_tokens"] = tokens
    write_serving(folder, settings)
    metrics = subject.metrics_of(handler.session.module)
    return Candidate(RUNTIME, folder, handler, metrics, weight_bytes, batch_difference(handler, prompts), prompts)


def _serving(subject: DecoderSubject) -> dict[str, Any]:
    """serving.json: everything the worker must know that is not in the weights."""
    serve = subject.recipe.serve
    session = {
        "runtime": RUNTIME,
        "requirement": requirement("transformers"),
        "device": serve.device,
        "int8": False,
        "model": "model.safetensors",
        "config": "config.json",
        "task": subject.recipe.task,
    }
    return {
        "task": subject.recipe.task,
        "session": session,
        "max_length": serve.max_length,
        "max_inputs": serve.max_inputs,
        "pad_id": subject.pad_id,
        "end_ids": subject.end_ids,
        "tolerance": TOLERANCE_FP32,
        "example_tokens": 1,
    }


def _prompts(subject: DecoderSubject) -> list[TextInput]:
    """The lines of the recipe's own file of texts; else beginnings of lines of the validation text, in its order."""
    wanted = subject.recipe.serve.examples
    if isinstance(wanted, Path):
        return [TextInput(line.strip()) for line in read_text(wanted).splitlines() if line.strip()]
    lines = [line.strip() for line in subject.text.splitlines()]
    beginnings = [" ".join(line.split()[:PROMPT_TOKENS]) for line in lines]
    return [TextInput(text) for text in dict.fromkeys(beginnings) if len(text.split()) > 3] or [
        TextInput(subject.text.strip()[:100])
    ]


def choose_prompts(
    handler: TextGenerationHandler, prompts: list[TextInput], wanted: int | Path
) -> tuple[list[TextInput], int]:
    """(the prompts to store, how many tokens of continuation): those whose continuation is decided longest.

    The number, from 1 to 16, is the same for all: as many tokens as are decided beyond the tolerance in each of them.
    Of the recipe's own file of texts all are stored, at most 64. DataError when not one token is decided.
    """
    count = wanted if isinstance(wanted, int) else MAX_EXAMPLES
    looked_at = prompts[: count if isinstance(wanted, Path) else count * _MORE_PROMPTS]
    room = handler.serving["max_length"]
    decided = []
    for place, prompt in enumerate(looked_at):
        ids = handler.encoder.encode([prompt], truncate=False)[0].ids
        tokens = _decided(handler, ids) if 0 < len(ids) < room else 0
        if tokens:
            decided.append((tokens, place))
    if not decided:
        raise DataError(
            f"no text can be stored as an example: each of {len(looked_at)} has more than serve.max_length {room} tokens, "
            "or several next tokens that are equally likely; name a file of other texts in serve.examples"
        )
    best = sorted(sorted(decided, key=lambda item: -item[0])[:count], key=lambda item: item[1])
    return [looked_at[place] for _, place in best], min(tokens for tokens, _ in best)


def _decided(handler: TextGenerationHandler, ids: list[int]) -> int:
    """How many tokens behind the prompt `ids` no allowed difference of logits can turn into others."""
    most = min(EXAMPLE_TOKENS, handler.serving["max_length"] - len(ids))
    count = 0
    for token, margin in greedy_steps(handler.session.module.model, ids):
        if margin <= _MARGIN:
            break
        count += 1
        if count == most or token in handler.serving["end_ids"]:
            # Behind the end nothing is said, however many tokens are asked for.
            return most
    return count
