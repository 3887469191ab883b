"""The compressed language model as it will be served: staged as in the archive, opened by its own handler, measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from archiver.data.windows import read_text
from archiver.errors import DataError
from archiver.evaluation.generation_speed import compare_generation
from archiver.evaluation.openvino_windows import likeliest_tokens
from archiver.evaluation.perplexity import Predictions
from archiver.evaluation.speed import Speed
from archiver.models.chat_template import read_chat_template
from archiver.packaging.entry import make_handler
from archiver.packaging.layout import add_requirement, requirements, serving_config, write_code, write_serving
from archiver.pipeline.staging import MAX_EXAMPLES, TOLERANCE_FP32, TOLERANCE_INT8, Candidate, batch_difference
from archiver.runtimes.decoder_export import export_runtime
from archiver.runtimes.openvino_assistance import DRAFT, add_draft, choose_assistance, remove_draft
from archiver.tasks.base import TASKS
from archiver.tasks.text.generation_workload import DecoderSubject
from handlers.architecture.decoder import greedy_steps
from handlers.cpu import container_cores
from handlers.inputs.text import TextInput
from handlers.runtimes.openvino_genai import OpenVinoBackend
from handlers.runtimes.vllm import VllmBackend
from handlers.tasks.text.generation import TextGenerationHandler

RUNTIMES = ("openvino", "torch")  # in the order in which `runtime: auto` prefers them
SESSIONS = {
    "openvino": "handlers.runtimes.openvino_genai:OpenVinoBackend",
    "torch": "handlers.runtimes.torch_generation:TorchBackend",
    "vllm": "handlers.runtimes.vllm:VllmBackend",
}

PROMPT_TOKENS = 16
EXAMPLE_TOKENS = 16
_MORE_PROMPTS = 4  # looked at for each that is stored
# Speed: so many streams at once, each a prompt of so many tokens and so many new ones.
STREAMS, READ, WRITTEN = 8, 32, 32


def make_decoder_candidate(subject: DecoderSubject, runtime: str, folder: Path) -> Candidate:
    """Stage the files in `folder`, open them with the handler that will serve them, and measure."""
    folder.mkdir(parents=True)
    recipe = subject.recipe
    names = {"handler": TASKS[recipe.task].handler, "session": SESSIONS[runtime]}
    write_code(
        folder,
        name=recipe.name,
        version=recipe.version,
        requirements=requirements(runtime, recipe.task),
        config=serving_config(recipe),
        **names,
    )
    (folder / "tokenizer.json").write_bytes(subject.tokenizer_json)
    before = set(folder.iterdir())
    session = export_runtime(subject, runtime, folder)
    if runtime == "openvino" and subject.recipe.serve.draft is not None:
        add_draft(subject, folder)
    if "weights" in session:
        add_requirement(folder, "safetensors")
    settings = _serving(subject, session)
    if settings["chat"]:
        add_requirement(folder, "jinja2")
    measured = None
    if runtime == "openvino" and (subject.recipe.serve.draft or subject.recipe.serve.prompt_lookup):
        more, measured = choose_assistance(subject, folder, session)
        session |= more
        if not more and (folder / DRAFT).exists():
            remove_draft(folder)
    added = (set(folder.iterdir()) - before) | set(folder.glob(f"{DRAFT}/*"))
    weight_bytes = sum(path.stat().st_size for path in added if path.is_file())
    write_serving(folder, settings)
    handler = make_handler(**names)
    assert isinstance(handler, TextGenerationHandler)
    handler.open(folder, threads=container_cores(), trust_files=True)
    prompts, tokens = choose_prompts(handler, subject, _prompts(subject), subject.recipe.serve.examples)
    handler.serving["example_tokens"] = settings["example_tokens"] = tokens
    write_serving(folder, settings)
    metrics = _metrics(subject, handler, folder)
    difference = batch_difference(handler, prompts)
    return Candidate(runtime, folder, handler, metrics, weight_bytes, difference, prompts, assistance=measured)


def generation_speed(subject: DecoderSubject, candidate: Candidate) -> Speed:
    """Tokens written per second against transformers' generate on the fp32 original."""
    assert isinstance(candidate.handler, TextGenerationHandler)
    read, written = _lengths(subject)
    cut = [
        subject.windows(tokenizer)[:STREAMS, :read] for tokenizer in (subject.tokenizer_bytes, subject.tokenizer_json)
    ]
    return compare_generation(subject.original.model, candidate.handler.backend, cut[0], cut[1], written)


def _lengths(subject: DecoderSubject) -> tuple[int, int]:
    """Tokens of a prompt and behind it, as many as the model and the archive have room for."""
    room = min(subject.recipe.serve.max_length, subject.facts.max_positions)
    read = max(1, min(READ, subject.context - 1, room // 2))
    return read, max(1, min(WRITTEN, room - read))


def _serving(subject: DecoderSubject, session: dict[str, Any]) -> dict[str, Any]:
    """serving.json: everything the worker must know that is not in the weights."""
    serve = subject.recipe.serve
    return {
        "task": subject.recipe.task,
        "session": session,
        "max_length": serve.max_length,
        "max_inputs": serve.max_inputs,
        "max_queue": serve.max_queue,
        "deadline_s": serve.deadline_s,
        "chat": read_chat_template(subject.source.path),
        "pad_id": subject.pad_id,
        "end_ids": subject.end_ids,
        "tolerance": TOLERANCE_INT8 if session["int8"] else TOLERANCE_FP32,
        "example_tokens": 1,
    }


def _metrics(subject: DecoderSubject, handler: TextGenerationHandler, folder: Path) -> dict[str, float]:
    """The task's metrics, through the runtime that will serve."""
    if isinstance(handler.backend, VllmBackend):
        return _vllm_metrics(subject, handler.backend)
    if not isinstance(handler.backend, OpenVinoBackend):
        return subject.measure()
    session = {key: value for key, value in handler.serving["session"].items() if key not in ("draft", "prompt_lookup")}
    backend = OpenVinoBackend(folder, session, container_cores(), (), prefix_caching=False)
    windows = subject.windows(subject.tokenizer_json)
    total = 0.0
    for window in windows:
        found = backend.log_likelihoods(window.tolist())
        total -= sum(found)
        if len(found) != len(window) - 1 or not math.isfinite(total):
            raise DataError(
                "the model gave likelihoods that are not finite on the validation text: nothing can be measured"
            )
    with backend.files(folder) as files:
        best = likeliest_tokens(files / "openvino_model.xml", windows, {"INFERENCE_PRECISION_HINT": "f32"})
    return subject.metrics_from(Predictions(total / (windows.shape[0] * (windows.shape[1] - 1)), best), windows)


def _vllm_metrics(subject: DecoderSubject, backend: VllmBackend) -> dict[str, float]:
    """The same by the engine that serves: the windows' own tokens and the likeliest ones, as it computes them."""
    windows = subject.windows(subject.tokenizer_json)
    nll, best = 0.0, np.zeros((windows.shape[0], windows.shape[1] - 1), np.int64)
    for row, window in enumerate(windows.tolist()):
        try:
            nll -= sum(backend.log_likelihoods(window))
            best[row] = backend.likeliest(window)
        except ValueError as error:
            raise DataError(
                f"vLLM cannot measure the validation text: {error}; a window and one more token must fit in the model's "
                f"{subject.facts.max_positions} positions: lower data.context ({windows.shape[1]})"
            ) from error
    if not math.isfinite(nll):
        raise DataError(
            "the model gave likelihoods that are not finite on the validation text: nothing can be measured"
        )
    return subject.metrics_from(Predictions(nll / best.size, best), windows)


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
    handler: TextGenerationHandler, subject: DecoderSubject, prompts: list[TextInput], wanted: int | Path
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
        ids = handler.input.encoder.encode([prompt], truncate=False)[0].ids
        tokens = _decided(handler, subject, ids) if 0 < len(ids) < room else 0
        if tokens:
            decided.append((tokens, place))
    if not decided:
        raise DataError(
            f"no text can be stored as an example: each of {len(looked_at)} has more than serve.max_length {room} tokens, "
            "or several next tokens that are equally likely; name a file of other texts in serve.examples"
        )
    best = sorted(sorted(decided, key=lambda item: -item[0])[:count], key=lambda item: item[1])
    return [looked_at[place] for _, place in best], min(tokens for tokens, _ in best)


def _decided(handler: TextGenerationHandler, subject: DecoderSubject, ids: list[int]) -> int:
    """How many tokens behind the prompt `ids` no allowed difference of logits can turn into others.

    A token counts when it is the likeliest by so much that two runs, each off by the tolerance, agree on it, and the
    runtime that will serve wrote it too.
    """
    most = min(EXAMPLE_TOKENS, handler.serving["max_length"] - len(ids))
    ends = handler.serving["end_ids"]
    served = handler.continuation(ids, most)
    count = 0
    for token, margin in greedy_steps(subject.module.model, ids):
        if margin <= 2 * handler.serving["tolerance"]:
            break
        if token in ends:
            # Behind the end nothing is said, however many tokens are asked for.
            return most if len(served) == count else count
        if count >= len(served) or served[count] != token:
            break
        count += 1
        if count == most:
            return most
    return count
