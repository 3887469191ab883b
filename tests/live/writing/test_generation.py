"""A tiny language model in a real TorchServe: whole answers and streams, REST and gRPC, alone and beside others."""

from __future__ import annotations

import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
from heap import instances
from live_client import Grpc, Reply, Rest, metrics
from live_writer import NAME, ROOM, worker_pids

from archiver.torchserve.server import TorchServe
from handlers.inputs.text import TextInput
from handlers.tasks.text.generation import TextGenerationHandler


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
