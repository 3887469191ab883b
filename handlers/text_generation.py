"""text-generation: a prompt's continuation, always the likeliest token (greedy).

Prompts are run one after another, which makes a batch's answer its single answer by construction; it is no faster than
single requests are.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from handlers.base import Ran, TaskHandler
from handlers.errors import BadRequest
from handlers.payload import Parameter, Request, is_bool, is_positive_int
from handlers.runtime import require

logger = logging.getLogger(__name__)

DEFAULT_NEW_TOKENS = 64  # where a request does not say; fewer where the prompt leaves less room


@dataclass(frozen=True)
class Prompt:
    """ids: with the special tokens that the tokenizer begins a text with."""

    ids: list[int]
    max_new_tokens: int


class TextGenerationHandler(TaskHandler):
    """serving: max_length bounds prompt and continuation together; end_ids end a text."""

    parameters: ClassVar[dict[str, Parameter]] = {
        "max_new_tokens": Parameter(is_positive_int, "a whole number from 1"),
        "return_full_text": Parameter(is_bool, "true or false"),
    }

    def load(self, folder: Path, threads: int) -> None:
        spec = self.serving["session"]
        require("torch", "torch>=2.0")
        require("transformers", spec["requirement"])
        from handlers.torch_decoder import DecoderSession

        self.session = DecoderSession(folder, spec, threads)

    def items(self, request: Request) -> list[Prompt]:
        encoded = self.encoder.encode(request.inputs, truncate=False)
        prompts = []
        for index, (item, text) in enumerate(zip(encoded, request.inputs, strict=True)):
            if text.text_pair is not None:
                raise BadRequest(f"inputs[{index}] is a pair; text-generation takes single texts")
            prompts.append(self._prompt(index, item.ids, request.parameters.get("max_new_tokens")))
        return prompts

    def _prompt(self, index: int, ids: list[int], wanted: int | None) -> Prompt:
        limit = self.serving["max_length"]
        if not ids:
            raise BadRequest(f"inputs[{index}] gives no tokens; at least one is needed")
        if len(ids) >= limit:
            raise BadRequest(
                f"inputs[{index}] has {len(ids)} tokens; prompt and continuation together may have {limit}, "
                f"so that a prompt has at most {limit - 1}"
            )
        if wanted is not None and len(ids) + wanted > limit:
            raise BadRequest(
                f"inputs[{index}] has {len(ids)} tokens and max_new_tokens is {wanted}; together at most {limit} are "
                f"allowed: set max_new_tokens to {limit - len(ids)} or less"
            )
        return Prompt(ids, wanted or min(DEFAULT_NEW_TOKENS, limit - len(ids)))

    def run(self, items: Sequence[Prompt]) -> Ran:
        """outputs: [(prompt ids, new ids), …]"""
        ran = Ran([])
        for index, prompt in enumerate(items):
            try:
                found = self.session.generate(prompt.ids, prompt.max_new_tokens, self.serving["end_ids"])
            except Exception as error:  # the others are still answered
                logger.exception("a prompt of %d tokens failed", len(prompt.ids))
                ran.failed[index] = error
                found = []
            ran.outputs.append((prompt.ids, found))
            ran.tokens += len(prompt.ids) + len(found)
        ran.computed_tokens = ran.tokens
        return ran

    def answers(self, outputs: Sequence[tuple[list[int], list[int]]], request: Request) -> list[Any]:
        """Special tokens are no part of the text; return_full_text (default true) sets the prompt before it, as sent."""
        full = request.parameters.get("return_full_text", True)
        answers = []
        for (prompt, found), text in zip(outputs, request.inputs, strict=True):
            before = self.encoder.decode(prompt)
            new = self.encoder.decode([*prompt, *found])[len(before) :]
            answers.append([{"generated_text": text.text + new if full else new}])
        return answers
