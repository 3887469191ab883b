"""text-generation in a worker: greedy continuations, bounds, and one bad request that harms no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import DECODERS

from archiver.decoder_candidate import choose_prompts
from archiver.errors import DataError
from archiver.models import load_model
from handlers.encoding import Encoder, TextInput
from handlers.text_generation import TextGenerationHandler
from handlers.torch_decoder import DecoderWithHead, continue_greedily, greedy_steps

TASK = "text-generation"


class Context:
    """What the handler needs of TorchServe's."""

    metrics = None

    def __init__(self, count: int) -> None:
        self.status: dict[int, tuple[int, str]] = {}
        self.count = count

    def get_all_request_header(self, index: int) -> dict[str, str]:
        return {"content-type": "application/json"}

    def set_response_status(self, code: int, phrase: str, index: int) -> None:
        self.status[index] = (code, phrase)

    def get_response_status(self, index: int) -> tuple[int | None, str | None]:
        return self.status.get(index, (None, None))

    def set_response_content_type(self, index: int, value: str) -> None:
        assert value == "application/json"


class Session:
    """Generates on a module that was loaded here."""

    def __init__(self, path: Path) -> None:
        self.module = DecoderWithHead(load_model(path, TASK))

    def generate(self, prompt, max_new_tokens, end_ids):
        return continue_greedily(self.module.model, prompt, max_new_tokens, end_ids)


@pytest.fixture
def handler(tiny_model) -> TextGenerationHandler:
    return made(tiny_model("llama", TASK))


def made(path: Path) -> TextGenerationHandler:
    handler = TextGenerationHandler()
    handler.serving = {"max_inputs": 4, "max_length": 32, "end_ids": [2], "example_tokens": 5}
    handler.encoder = Encoder(path / "tokenizer.json", max_length=32, pad_id=1)
    handler.session = Session(path)
    return handler


def ask(handler: TextGenerationHandler, *documents: Any) -> tuple[list[Any], list[int]]:
    context = Context(len(documents))
    bodies = handler.handle([{"body": document} for document in documents], context)
    return [json.loads(body) for body in bodies], [
        context.get_response_status(index)[0] or 200 for index in range(len(documents))
    ]


@pytest.mark.parametrize("kind", DECODERS)
def test_greedy_with_kept_keys_is_what_the_whole_text_says(tiny_model, kind) -> None:
    model = load_model(tiny_model(kind, TASK), TASK)
    ids = [0, 41, 52, 63]
    found = continue_greedily(model, ids, 12, end_ids=())
    again = list(ids)
    for _ in range(12):
        with torch.no_grad():
            again.append(int(model(torch.tensor([again])).logits[0, -1].argmax()))
    assert found == again[4:]
    stop = found[5]
    assert continue_greedily(model, ids, 12, end_ids=[stop]) == found[: found.index(stop)]


def test_answers(handler) -> None:
    (bare, listed, new), _ = ask(
        handler,
        {"inputs": "this film", "parameters": {"max_new_tokens": 6}},
        {"inputs": ["this film", "a dull story"], "parameters": {"max_new_tokens": 6}},
        {"inputs": "this film", "parameters": {"max_new_tokens": 6, "return_full_text": False}},
    )
    assert bare.__class__ is list and list(bare[0]) == ["generated_text"]
    assert bare[0]["generated_text"].startswith("this film")
    assert bare[0]["generated_text"] == "this film" + new[0]["generated_text"]
    assert listed[0] == bare and len(listed) == 2
    ids = handler.encoder.encode([TextInput("this film")], truncate=False)[0].ids
    tokens = handler.session.generate(ids, 6, [2])
    text = handler.encoder.decode([*ids, *tokens])
    assert text == bare[0]["generated_text"]


def test_a_batch_answers_as_single_requests_do_and_a_bad_one_fails_alone(handler, sentences) -> None:
    documents: list[Any] = [
        {"inputs": text, "parameters": {"max_new_tokens": 3 + index}} for index, text in enumerate(sentences)
    ]
    together, statuses = ask(handler, *documents)
    assert set(statuses) == {200}
    for document, answer in zip(documents, together, strict=True):
        assert ask(handler, document)[0] == [answer]
    bad = {"inputs": "a", "parameters": {"max_new_tokens": 0}}
    answers, statuses = ask(handler, *documents[:2], bad, *documents[3:])
    assert statuses == [200, 200, 400, *[200] * (len(documents) - 3)]
    assert answers[2]["error"]["message"] == "parameter 'max_new_tokens' is 0; allowed: a whole number from 1"
    assert [a for i, a in enumerate(answers) if i != 2] == [a for i, a in enumerate(together) if i != 2]


def test_bounds(handler) -> None:
    length = len(handler.encoder.encode([TextInput("good " * 3)], truncate=False)[0].ids)
    fits = {"inputs": "good " * 3, "parameters": {"max_new_tokens": 32 - length}}
    over = {"inputs": ["good", "good " * 3], "parameters": {"max_new_tokens": 33 - length}}
    answers, statuses = ask(
        handler, fits, over, {"inputs": "good " * 90}, {"inputs": {"text": "a", "text_pair": "b"}}, {"inputs": "good"}
    )
    assert statuses == [200, 400, 400, 400, 200]
    assert answers[1]["error"]["message"] == (
        f"inputs[1] has {length} tokens and max_new_tokens is {33 - length}; together at most 32 are allowed: "
        f"set max_new_tokens to {32 - length} or less"
    )
    assert answers[2]["error"]["message"].endswith(
        "prompt and continuation together may have 32, so that a prompt has at most 31"
    )
    assert "is a pair; text-generation takes single texts" in answers[3]["error"]["message"]
    _, (status,) = ask(handler, {"inputs": "a", "parameters": {"truncation": True}})
    assert status == 400


def test_a_model_that_fails_fails_its_request_alone(handler) -> None:
    generate = handler.session.generate
    bad = handler.encoder.encode([TextInput("dull")], truncate=False)[0].ids

    def break_on_bad(prompt, max_new_tokens, end_ids):
        if prompt == bad:
            raise MemoryError("no more")
        return generate(prompt, max_new_tokens, end_ids)

    handler.session.generate = break_on_bad
    answers, statuses = ask(handler, {"inputs": "good"}, {"inputs": ["good", "dull"]}, {"inputs": "fine"})
    assert statuses == [200, 500, 200]
    assert answers[1]["error"]["message"] == "the model failed on this request: MemoryError"
    with pytest.raises(MemoryError):
        handler.respond([TextInput("dull")])


def test_logits_that_are_no_numbers_are_an_error(handler) -> None:
    with torch.no_grad():
        handler.session.module.model.lm_head.weight.fill_(float("nan"))
    answers, statuses = ask(handler, {"inputs": "good"})
    assert statuses == [500]
    assert answers[0]["error"]["message"] == "the model failed on this request: ArithmeticError"


def test_stored_continuations_end_before_a_token_is_undecided(handler, sentences) -> None:
    prompts = [TextInput(text) for text in sentences]
    chosen, tokens = choose_prompts(handler, prompts, 2)
    assert len(chosen) == 2 and 1 <= tokens <= 16
    for prompt in chosen:
        ids = handler.encoder.encode([prompt], truncate=False)[0].ids
        steps = greedy_steps(handler.session.module.model, ids)
        for token, margin in [next(steps) for _ in range(tokens)]:
            if token == 2:
                break
            assert margin > 0.002
    with torch.no_grad():
        handler.session.module.model.lm_head.weight.zero_()
    with pytest.raises(DataError, match="no text can be stored as an example: each of 6 has more than"):
        choose_prompts(handler, prompts, 2)
