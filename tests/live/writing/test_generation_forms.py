"""What else a language model in a real TorchServe is asked: chats, adapters, grammars, mutated bodies; who leaves."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from live_client import Grpc, Reply, Rest, metrics
from live_writer import ADAPTERS, NAME, ROOM, worker_pids
from mutated import mutated
from places import ROOT

from archiver.torchserve.chat import clean
from archiver.torchserve.server import TorchServe
from handlers.errors import BadRequest
from handlers.tasks.text.generation import TextGenerationHandler


@pytest.mark.parametrize("below", ["", "/v1"])
def test_marpress_chat_prints_what_openai_s_form_gives(writer: TorchServe, below: str) -> None:
    """Two turns, line by line from a pipe: the second is asked with the first and its answer."""
    said = ["hello", "and a film"]
    command = [sys.executable, "-m", "archiver", "chat", writer.prediction_url(NAME) + below, "--max-tokens", "8"]
    command += ["--temperature", "0", "--key-file", str(writer.key_file)]
    done = subprocess.run(command, cwd=ROOT, input="\n".join(said), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cut off: --max-tokens") == 2
    messages: list[dict[str, str]] = []
    right = ""
    with Rest(writer) as rest:
        for text in said:
            messages.append({"role": "user", "content": text})
            reply = rest.post(f"{NAME}/v1/chat/completions", {"messages": messages, "max_tokens": 8, "temperature": 0})
            messages.append(reply.value["choices"][0]["message"])
            right += clean(messages[-1]["content"]) + "\n"
            messages[-1].pop("refusal")
    assert done.stdout == right
    too_long = subprocess.run(command, cwd=ROOT, input="hello " * ROOM, capture_output=True, text=True, timeout=60)
    assert (too_long.returncode, too_long.stdout) == (1, "")
    assert f"prompt and continuation together may have {ROOM}" in too_long.stderr


def test_adapters_by_model_and_by_parameter(writer: TorchServe, sentences: tuple[str, ...]) -> None:
    parameters = {"max_new_tokens": 8}
    with Rest(writer) as rest, Grpc(writer) as grpc:
        texts = {}
        for name in (None, *ADAPTERS):
            more = {} if name is None else {"adapter": name}
            body = {"inputs": sentences[0], "parameters": parameters | more}
            reply = rest.post(NAME, body)
            assert reply.body == grpc.predict(NAME, body).body
            texts[name] = reply.value[0]["generated_text"]
            asked = {"prompt": sentences[0], "max_tokens": 8, "temperature": 0, "model": name or NAME}
            told = rest.post(f"{NAME}/v1/completions", asked).value
            assert told["model"] == (name or NAME)
            assert sentences[0] + told["choices"][0]["text"] == texts[name]
        unknown = rest.post(f"{NAME}/v1/completions", {"prompt": "a", "model": "third"})
        listed = rest.post(f"{NAME}/v1/models", b"").value["data"]
    assert len(set(texts.values())) == 3
    assert unknown.status == 404 and unknown.message.startswith("there is no model 'third' here; allowed: 'writer'")
    assert [model["id"] for model in listed] == [NAME, *ADAPTERS]


def test_a_thousand_mutated_completions_get_their_own_answers(
    writer: TorchServe, handler: TextGenerationHandler
) -> None:
    """What the answer has to be says the archive's handler in this process; see also test_malformed_forms."""
    right = {
        "prompt": ["a film", "good"],
        "max_tokens": 2,
        "temperature": 0.5,
        "n": 2,
        "stop": ["x"],
        "logprobs": 0,
        "echo": False,
        "seed": 1,
        "stream_options": {"include_usage": True},
        "user": "me",
    }
    dice = random.Random(5)
    bodies = [mutated(right, dice) for _ in range(1000)]
    handler.model_name = NAME

    def client(number: int) -> list[str]:
        wrong = []
        with Rest(writer) as rest:
            for body in bodies[number::8]:
                reply = rest.post(f"{NAME}/v1/completions", body)
                status, message = 200, ""
                try:
                    handler.read(
                        {"body": body}, {"Host": "x", "content-type": "application/json", "url_path": "completions"}
                    )
                except BadRequest as error:
                    status, message = error.code, str(error)
                if reply.status != status or (status != 200 and reply.message != message):
                    wrong.append(f"{body[:160]!r}: {reply.status} {reply.body[:200]!r}, expected {status} {message}")
        return wrong

    before = worker_pids(writer)
    with ThreadPoolExecutor(8) as pool:
        wrong = [line for found in pool.map(client, range(8)) for line in found]
    assert not wrong, f"{len(wrong)} wrong:\n" + "\n".join(wrong[:10])
    assert worker_pids(writer) == before


def test_texts_that_match_a_grammar(writer: TorchServe) -> None:
    """Whole and streamed, over REST and gRPC, beside free ones; what cannot be followed is told as any mistake is."""
    schema = {
        "type": "object",
        "properties": {
            "film": {"type": "string", "maxLength": 8},
            "stars": {"type": "integer", "minimum": 0, "maximum": 5},
        },
        "required": ["film", "stars"],
        "additionalProperties": False,
    }
    held = {
        "inputs": "a",
        "parameters": {"grammar": {"type": "json", "value": schema}, "return_full_text": False, "max_new_tokens": 100},
    }
    free = {"inputs": "a dull film", "parameters": {"max_new_tokens": 60}}
    with Rest(writer) as rest, Grpc(writer) as grpc, ThreadPoolExecutor(8) as pool:
        alone = rest.post(NAME, free).body

        def ask(number: int) -> Reply:
            with Rest(writer) as own:
                return own.post(
                    NAME,
                    held | {"parameters": held["parameters"] | {"temperature": 1.5, "seed": number}}
                    if number % 2
                    else free,
                )

        replies = list(pool.map(ask, range(24)))
        assert all(reply.body == alone for reply in replies[::2])
        texts = [reply.value[0]["generated_text"] for reply in replies[1::2]]
        assert len(set(texts)) > 6
        for text in [*texts, grpc.predict(NAME, held).value[0]["generated_text"]]:
            value = json.loads(text)
            assert set(value) == {"film", "stars"} and len(value["film"]) <= 8 and 0 <= value["stars"] <= 5
        prompt = {"prompt": "a", "guided_regex": "(ab){3,9} c", "max_tokens": 90, "temperature": 0}
        whole = rest.post(f"{NAME}/v1/completions", prompt).value["choices"][0]["text"]
        assert whole.endswith(" c")
        bad = rest.post(f"{NAME}/v1/completions", prompt | {"guided_regex": "(a"})
        assert bad.status == 400 and bad.value["error"]["type"] == "invalid_request_error"
        assert bad.value["error"]["message"] == "the regular expression cannot be followed: unclosed group"


def test_a_client_that_left_is_not_told_of_and_the_request_s_own_limit_ends_its_text(writer: TorchServe) -> None:
    """docs/clients.md says so. What is sent to nobody harms nobody."""
    written = []
    for limit in ({}, {"max_time": 0.05}):
        before = metrics(writer, NAME).get("marpress_generated_tokens", 0)
        parameters = {"max_new_tokens": 900, **limit}
        with Rest(writer) as rest:
            left = rest.stream(NAME, {"inputs": "a", "parameters": parameters, "stream": True}, leave_after=1)
        assert left.status == 200 and len(left.events) == 1
        until = time.monotonic() + 30
        while (found := metrics(writer, NAME)).get("marpress_running", 0) or found[
            "marpress_generated_tokens"
        ] == before:
            assert time.monotonic() < until
        written.append(found["marpress_generated_tokens"] - before)
    assert written[0] == 900 > written[1] >= 1
    with Rest(writer) as rest:
        assert rest.post(NAME, {"inputs": "a", "parameters": {"max_new_tokens": 2}}).status == 200
