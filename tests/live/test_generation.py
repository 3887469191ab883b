"""A tiny language model in a real TorchServe: whole answers and streams, REST and gRPC, alone and beside others."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from heap import instances
from live_client import Grpc, Reply, Rest, metrics
from lora import write_lora
from mutated import mutated
from places import ROOT
from task_models import load_model

from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extracted
from archiver.pipeline import build as pipeline
from archiver.progress import Progress
from archiver.recipe.load import load_recipe
from archiver.torchserve.chat import clean
from archiver.torchserve.server import TorchServe
from handlers.errors import BadRequest
from handlers.inputs.text import TextInput
from handlers.tasks.text.generation import TextGenerationHandler

NAME = "writer"
ADAPTERS = ("first", "second")
ROOM = 1024


@pytest.fixture(scope="module")
def archive(
    tiny_model: Callable[..., Path], sentences: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("generation")
    model = folder / "model"
    shutil.copytree(tiny_model("llama", "text-generation", max_position_embeddings=ROOM, eos_token_id=None), model)
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }} {{ m.content }} .{% endfor %}")
    (folder / "text.txt").write_text("\n".join(sentences) * 4)
    for seed, name in enumerate(ADAPTERS):
        write_lora(folder / name, load_model(model, "text-generation"), seed=seed)
    recipe = {
        "name": NAME,
        "task": "text-generation",
        "model": str(model),
        "data": {"validation": "text.txt", "context": 16},
        "compress": [{"quantize": {"method": "weight-only", "bits": 8}}],
        "serve": {"max_length": ROOM, "max_inputs": 8, "batch_size": 16, "runtime": "openvino"}
        | {"adapters": {name: name for name in ADAPTERS}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return pipeline.build(load_recipe(folder / "recipe.yaml"), folder / "store", Progress(quiet=True)).path


@pytest.fixture(scope="module")
def writer(archive: Path) -> Iterator[TorchServe]:
    with TorchServe([archive], config=ROOT / "config.properties") as running:
        running.wait_ready(180)
        yield running


@pytest.fixture(scope="module")
def handler(archive: Path) -> Iterator[TextGenerationHandler]:
    """The archive's handler in this process, which says what is right."""
    with extracted(archive) as (folder, _):
        found: Any = handler_of(folder)
        found.open(folder, threads=1)
        yield found
        found.engine.close()


def worker_pids(server: TorchServe) -> set[int]:
    """The process that serves, which the worker's other one has forked."""
    (worker,) = server.workers(NAME)
    return {process.pid for process in psutil.Process(worker.pid).children()}


def test_single_and_list(writer: TorchServe, handler: TextGenerationHandler, sentences: tuple[str, ...]) -> None:
    parameters = {"max_new_tokens": 6}
    with Rest(writer) as rest, Grpc(writer) as grpc:
        single = rest.post(NAME, {"inputs": sentences[0], "parameters": parameters})
        several = rest.post(NAME, {"inputs": list(sentences), "parameters": parameters})
        plain = rest.post(NAME, sentences[0].encode(), "text/plain")
        over_grpc = grpc.predict(NAME, {"inputs": sentences[0], "parameters": parameters})
    assert single.status == several.status == plain.status == 200
    assert single.headers["content-type"] == "application/json"
    right = handler.respond([TextInput(text) for text in sentences], parameters)
    assert single.value == right[0] and several.value == right
    assert single.body == over_grpc.body
    assert plain.value[0]["generated_text"].startswith(sentences[0])


def test_a_mistake_is_that_requests_alone(writer: TorchServe, sentences: tuple[str, ...]) -> None:
    bodies = [
        json.dumps({"inputs": text, "parameters": {"max_new_tokens": 2 + index, "return_full_text": index % 2 == 0}})
        for index, text in enumerate(sentences)
    ]
    bodies[2] = json.dumps({"inputs": sentences[2], "parameters": {"max_new_tokens": "many"}})
    bodies[4] = json.dumps({"inputs": sentences[4], "parameters": {"max_new_tokens": ROOM}})

    def send(body: str) -> Reply:
        with Rest(writer) as rest:
            return rest.post(NAME, body)

    before = worker_pids(writer)
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(send, bodies))
    assert [reply.status for reply in together] == [200, 200, 400, 200, 400, 200]
    assert "'max_new_tokens' is \"many\"; allowed: a whole number from 1" in together[2].message
    assert f"{ROOM} new ones are asked for; together at most {ROOM} are allowed" in together[4].message
    for body, reply in zip(bodies, together, strict=True):
        assert send(body).body == reply.body
    assert worker_pids(writer) == before


@pytest.mark.parametrize("style", ["huggingface", "openai"])
def test_a_stream_is_the_whole_answer_in_pieces(writer: TorchServe, sentences: tuple[str, ...], style: str) -> None:
    if style == "openai":
        body: dict[str, Any] = {"prompt": sentences[1], "max_tokens": 9, "temperature": 0}
    else:
        body = {"inputs": sentences[1], "parameters": {"max_new_tokens": 9, "return_full_text": False}}
    with Rest(writer) as rest, Grpc(writer) as grpc:
        whole = rest.post(NAME, body).value
        streamed = rest.stream(NAME, body | {"stream": True})
        in_pieces = grpc.stream(NAME, body | {"stream": True}, stream=b"true")
        unary = grpc.predict(NAME, body | {"stream": True})  # a unary call has one answer, whatever it asks for
        not_asked = grpc.stream(NAME, body | {"stream": True})
    text = whole["choices"][0]["text"] if style == "openai" else whole[0]["generated_text"]
    assert (streamed.status, streamed.content_type) == (200, "text/event-stream")
    assert streamed.text == in_pieces.text == text
    assert len(streamed.events) > 3 and in_pieces.messages > 3
    assert not_asked.messages == 1
    if style == "openai":
        assert streamed.done and in_pieces.done
        assert streamed.events[-1]["choices"][0]["finish_reason"] == "length"
        assert unary.value["choices"] == not_asked.events[0]["choices"] == whole["choices"]
    else:
        assert streamed.events[-1]["generated_text"] == text
        assert unary.value == not_asked.events[0] == whole


def test_a_short_text_leaves_before_a_long_one_that_came_first(writer: TorchServe, sentences: tuple[str, ...]) -> None:
    long = {"inputs": list(sentences), "parameters": {"max_new_tokens": 900}}
    seconds: dict[str, float] = {}

    def write() -> None:
        with Rest(writer) as rest:
            assert rest.post(NAME, long).status == 200
        seconds["long"] = time.monotonic()

    with Rest(writer) as rest:
        for _ in range(5):  # the long one may take only as long as a busy host takes to send the short one
            thread = threading.Thread(target=write)
            thread.start()
            time.sleep(0.02)
            rest.post(NAME, {"inputs": sentences[1], "parameters": {"max_new_tokens": 1}})
            seconds["short"] = time.monotonic()
            thread.join()
            if seconds["short"] < seconds["long"]:
                return
    pytest.fail("the short text never left before the long one")


def test_stop_and_seed(writer: TorchServe, sentences: tuple[str, ...]) -> None:
    sampled = {"max_new_tokens": 12, "temperature": 1.5, "seed": 7}
    with Rest(writer) as rest:
        first = rest.post(NAME, {"inputs": sentences[0], "parameters": sampled})
        again = rest.post(NAME, {"inputs": sentences[0], "parameters": sampled})
        text = first.value[0]["generated_text"][len(sentences[0]) :]
        stop = text[len(text) // 2 :][:3]
        stopped = rest.post(NAME, {"inputs": sentences[0], "parameters": sampled | {"stop": stop, "details": True}})
    assert first.body == again.body
    assert stopped.value[0]["generated_text"] == sentences[0] + text[: text.index(stop)]
    assert stopped.value[0]["details"]["finish_reason"] == "stop_sequence"


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


def test_five_hundred_requests_with_lengths_parameters_and_disconnects(
    writer: TorchServe, handler: TextGenerationHandler, sentences: tuple[str, ...]
) -> None:
    """Each answer is its own prompt's, nothing is left in the frontend, and the worker does not grow."""
    rng = random.Random(0)
    plans = []
    for index in range(500):
        words = " ".join(rng.choice(sentences).split()[: rng.randint(1, 8)]) or sentences[0]
        parameters: dict[str, Any] = {"max_new_tokens": rng.randint(1, 40), "return_full_text": bool(index % 2)}
        if rng.random() < 0.5:
            parameters |= {"temperature": rng.choice([0.5, 1.0, 2.0]), "seed": index, "top_k": rng.choice([0, 5, 50])}
            parameters["return_full_text"] = (
                True  # a draw near a bound falls to either side: the prompt says whose it is
            )
        if rng.random() < 0.2:
            parameters["repetition_penalty"] = 1.2
        kind = rng.choice(["rest", "rest", "rest stream", "grpc", "grpc stream", "leave", "grpc leave", "bad"])
        plans.append((f"{words} {index}", parameters, kind))

    def run(plan: tuple[str, dict[str, Any], str]) -> str | None:
        text, parameters, kind = plan
        body: dict[str, Any] = {"inputs": text, "parameters": parameters}
        with Rest(writer) as rest, Grpc(writer) as grpc:
            if kind == "bad":
                return str(rest.post(NAME, body | {"parameters": {"top_p": 3}}).status)
            if kind == "rest":
                return rest.post(NAME, body).value[0]["generated_text"]
            if kind == "grpc":
                return grpc.predict(NAME, body).value[0]["generated_text"]
            leave = 2 if kind.endswith("leave") else None
            if kind.startswith("grpc"):
                found = grpc.stream(NAME, body | {"stream": True}, leave, stream=b"true")
            else:
                found = rest.stream(NAME, body | {"stream": True}, leave)
            return found.events[-1]["generated_text"] if leave is None else None

    def right(plan: tuple[str, dict[str, Any], str]) -> str | None:
        text, parameters, kind = plan
        if kind == "bad":
            return "400"
        return handler.respond([TextInput(text)], parameters)[0][0]["generated_text"] if "leave" not in kind else None

    java = next(process.pid for process in writer.processes() if process.name() == "java")
    before = worker_pids(writer)
    (pid,) = before
    seen = [0]
    memory: list[int] = []
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(run, plans[:50]))
        memory.append(psutil.Process(pid).memory_info().rss)
        later = [pool.submit(run, plan) for plan in plans[50:]]
        while not all(one.done() for one in later):
            seen.append(instances(java, "Job"))
            time.sleep(0.5)
        answers += [one.result() for one in later]
    memory.append(psutil.Process(pid).memory_info().rss)
    for plan, found in zip(plans, answers, strict=True):
        if "seed" in plan[1] and "leave" not in plan[2] and plan[2] != "bad":
            assert found is not None and found.startswith(plan[0])
        else:
            assert found == right(plan), plan
    assert worker_pids(writer) == before
    assert max(seen) > 0, "the histogram shows no job while some run: it would not show those that are left either"
    with Rest(writer) as rest:  # behind those whose clients left
        rest.post(NAME, {"inputs": sentences[0], "parameters": {"max_new_tokens": 1}})
    until = time.monotonic() + 20
    while (
        left := instances(java, "org.pytorch.serve.job.RestJob") + instances(java, "org.pytorch.serve.job.GRPCJob")
    ) > 0:
        assert time.monotonic() < until, f"{left} jobs are left in the frontend"
        time.sleep(0.2)
    assert memory[1] <= 1.05 * memory[0]


def test_metrics(writer: TorchServe, sentences: tuple[str, ...]) -> None:
    before = metrics(writer, NAME)
    with Rest(writer) as rest:
        rest.post(NAME, {"inputs": sentences[0], "parameters": {"max_new_tokens": 7}})
    until = time.monotonic() + 10
    while (found := metrics(writer, NAME)).get("marpress_requests", 0) <= before.get("marpress_requests", 0):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert found["marpress_generated_tokens"] - before.get("marpress_generated_tokens", 0) == 7
    for name in ("marpress_ttft_seconds", "marpress_tpot_seconds", "marpress_request_seconds"):
        assert found[f"{name}_count"] - before.get(f"{name}_count", 0) == 1
    assert {"marpress_running", "marpress_waiting", "marpress_cache_use", "marpress_tokens_per_second"} <= found.keys()


def _noted(server: TorchServe) -> int:
    """Requests that are read and not answered: a place of 64 bytes for each, which begins with a letter while it counts."""
    files = server.folder.glob("marpress-unanswered-*/*")
    return sum(notes[at] in b"wsg" for notes in (path.read_bytes() for path in files) for at in range(0, 4096 * 64, 64))


def test_when_the_worker_is_killed_its_clients_are_told(writer: TorchServe, sentences: tuple[str, ...]) -> None:
    """TorchServe would leave them waiting: the process that stands by answers for it, and forks the next one."""
    shown = writer.workers(NAME)
    body = {"inputs": sentences[0], "parameters": {"max_new_tokens": 900}}
    (pid,) = worker_pids(writer)
    with ThreadPoolExecutor(3) as pool, Rest(writer) as whole, Rest(writer) as streamed, Grpc(writer) as grpc:
        stream = pool.submit(streamed.stream, NAME, body | {"inputs": sentences[1], "stream": True})
        time.sleep(0.05)
        long = body | {"inputs": list(sentences)}
        replies = [pool.submit(whole.post, NAME, long), pool.submit(grpc.predict, NAME, long)]
        until = time.monotonic() + 10
        while _noted(writer) < 3 - stream.done():  # read and not answered
            assert time.monotonic() < until, "the worker never began"
            time.sleep(0.005)
        psutil.Process(pid).kill()
        found = [stream.result(60), *(reply.result(60) for reply in replies)]
    told = "the worker died while it wrote this answer"
    if "error" in found[0].events[-1]:  # it may have been done already
        assert told in found[0].events[-1]["error"]["message"]
    assert found[1].status == 503 and told in found[1].message
    assert found[2].value["error"]["code"] == 503 and told in found[2].message
    with Rest(writer) as rest:
        assert rest.post(NAME, body | {"parameters": {"max_new_tokens": 2}}).status == 200
    assert writer.workers(NAME) == shown and shown[0].status == "READY"
    assert worker_pids(writer) != {pid}
    java = next(process.pid for process in writer.processes() if process.name() == "java")
    assert instances(java, "org.pytorch.serve.job.RestJob") + instances(java, "org.pytorch.serve.job.GRPCJob") == 0


def test_what_a_killed_worker_had_not_read_is_answered(
    writer: TorchServe, handler: TextGenerationHandler, sentences: tuple[str, ...]
) -> None:
    """Requests that come while a successor loads wait for it: TorchServe would break the load off, and lose them."""
    bodies = [{"inputs": text, "parameters": {"max_new_tokens": 6}} for text in sentences]
    (pid,) = worker_pids(writer)
    worker = psutil.Process(pid)
    worker.suspend()
    with ThreadPoolExecutor(len(bodies)) as pool:
        replies = [pool.submit(_post, writer, body) for body in bodies]
        time.sleep(1)
        worker.kill()
        time.sleep(0.5)
        late = pool.submit(_post, writer, bodies[0])
        found = [reply.result(60) for reply in (*replies, late)]
    texts = [handler.respond([TextInput(body["inputs"])], body["parameters"])[0] for body in (*bodies, bodies[0])]
    assert [reply.status for reply in found] == [200] * len(found), [reply.body for reply in found]
    assert [reply.value for reply in found] == texts


def _post(server: TorchServe, body: dict[str, Any]) -> Reply:
    with Rest(server) as rest:
        return rest.post(NAME, body)


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
