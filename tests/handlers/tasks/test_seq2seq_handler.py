"""Requests to a tiny T5: parameters, refusals, streams, and that a batch is as its texts alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from generating import told_events
from tiny_seq2seq import build_tiny_seq2seq
from torchserve_side import Told, ask
from writing_from import MOST, seq2seq_handler

from archiver.models.load import load_model
from handlers.inputs.text import TextInput
from handlers.tasks.text.seq2seq import Seq2SeqHandler

ENGLISH = "the dog runs fast"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    build_tiny_seq2seq(folder, "t5")
    return folder


@pytest.fixture(scope="module")
def handler(directory) -> Iterator[Seq2SeqHandler]:
    model = load_model(directory, "AutoModelForSeq2SeqLM")
    made = seq2seq_handler(model, (directory / "tokenizer.json").read_bytes())
    yield made
    made.engine.close()


def one(handler: Seq2SeqHandler, document: Any) -> Told:
    return asyncio.run(ask(handler, {"body": document}))


def answered(handler: Seq2SeqHandler, inputs: Any, **parameters: Any) -> Any:
    told = one(handler, {"inputs": inputs, "parameters": parameters})
    assert told.status == 200, told.body
    return json.loads(told.body)


def test_one_text_and_a_list(handler) -> None:
    alone = answered(handler, ENGLISH)
    assert list(alone[0]) == ["generated_text"]
    both = answered(handler, [ENGLISH, "a dull and boring story in the warm scene"], num_beams=2)
    assert both == [
        *answered(handler, ENGLISH, num_beams=2),
        *answered(handler, "a dull and boring story in the warm scene", num_beams=2),
    ]


def test_parameters_are_heeded_wherever_they_stand(handler) -> None:
    beams = answered(handler, ENGLISH, num_beams=3, max_new_tokens=6, details=True)
    assert beams[0]["details"]["generated_tokens"] <= 6
    assert answered(handler, ENGLISH, generate_parameters={"num_beams": 3, "max_new_tokens": 6}, details=True) == beams
    assert answered(handler, ENGLISH, max_length=7, num_beams=3, details=True) == beams
    drawn = [answered(handler, ENGLISH, do_sample=True, seed=seed, temperature=9.0) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_stream_is_the_whole_answer_in_pieces(handler) -> None:
    whole = answered(handler, ENGLISH)[0]["generated_text"]
    events = told_events(one(handler, {"inputs": ENGLISH, "stream": True}))
    assert len(events) > 3
    assert "".join(event["token"]["text"] for event in events) == whole == events[-1]["generated_text"]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            {"inputs": ENGLISH, "parameters": {"num_beams": 17}},
            "'num_beams' is 17; allowed: a whole number from 1 to 16",
        ),
        ({"inputs": ENGLISH, "parameters": {"max_new_tokens": MOST + 1}}, f"{MOST + 1} new tokens are asked for"),
        ({"inputs": ENGLISH, "parameters": {"max_length": 1}}, "at least 2 is expected"),
        ({"inputs": ENGLISH, "parameters": {"min_length": 9, "max_length": 4}}, "at least 8 new tokens are asked for"),
        ({"inputs": ENGLISH, "parameters": {"num_beams": 2, "do_sample": True}}, "choose one"),
        ({"inputs": ENGLISH, "parameters": {"tgt_lang": "de"}}, "no tokens for languages"),
        ({"inputs": ENGLISH, "parameters": {"top_h": 1}}, "unknown parameter 'top_h'"),
        ({"inputs": ENGLISH, "parameters": {"generate_parameters": {"stop": "."}}}, "unknown parameter 'stop'"),
        ({"inputs": "good " * 40, "parameters": {"truncation": False}}, "at most 24 are allowed"),
        ({"inputs": [ENGLISH, ENGLISH], "stream": True}, "'stream' sends one text"),
        ({"inputs": ENGLISH, "stream": 1}, "'stream' is a number"),
        ({"inputs": [ENGLISH] * 5}, "at most 4"),
        ({"text": ENGLISH}, "unknown key 'text'"),
        ({"inputs": "  "}, "inputs is empty"),
    ],
)
def test_refusals_say_what_is_allowed(handler, document, message) -> None:
    told = one(handler, document)
    assert told.status == 400
    assert message in json.loads(told.body)["error"]["message"]


def test_what_is_too_long_is_cut(handler) -> None:
    assert answered(handler, "good " * 40) == answered(handler, "good " * 60)


def test_languages_are_tokens(directory) -> None:
    model = load_model(directory, "AutoModelForSeq2SeqLM")
    tokenizer = (directory / "tokenizer.json").read_bytes()
    handler = seq2seq_handler(model, tokenizer, languages={"en": 2, "de": 40, "fr": 41})
    try:
        told = [one(handler, {"inputs": ENGLISH, "parameters": {"tgt_lang": code}}) for code in ("de", "fr")]
        assert told[0].status == 200 and told[0].body != told[1].body
        items = handler._items([TextInput(ENGLISH)], {"src_lang": "fr"})
        assert items[0].ids[-1] == 41
        refused = one(handler, {"inputs": ENGLISH, "parameters": {"tgt_lang": "xx"}})
        assert "'tgt_lang' is 'xx'; allowed: 'de', 'en', 'fr'" in json.loads(refused.body)["error"]["message"]
    finally:
        handler.engine.close()
