"""One worker's running texts: who joins, who leaves, and why; a fault ends what it must and nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from greedy import continue_greedily
from task_models import load_model
from tokenizers import Tokenizer

from handlers.generation.backend import FAILED, LENGTH, STOP, Load, Sampling, Step
from handlers.generation.engine import Engine, Job
from handlers.protocols.continuation import STOP_STRING, TIME
from handlers.runtimes.torch_generation import TorchBackend

TASK = "text-generation"
SECONDS = 20  # that anything may take before it counts as stuck


class Counting:
    """A backend that writes the prompt's last token + 1, + 2, …; 0 is its end token. Steps pass one at a time on demand.

    fault: what the next step raises. gate: None to run freely, else released once a step
    """

    name = "counting"

    def __init__(self, max_running: int = 2) -> None:
        self.max_running = max_running
        self.running: dict[int, tuple[list[int], Sampling]] = {}
        self.seen: list[list[int]] = []  # the keys of each step
        self.cancelled: list[int] = []
        self.fault: Exception | None = None
        self.gate: threading.Semaphore | None = None

    def add(self, key: int, ids: Sequence[int], sampling: Sampling, adapter: int = 0) -> None:
        if not ids:
            raise ValueError("the prompt has no tokens")
        self.running[key] = (list(ids), sampling)

    def step(self) -> list[Step]:
        if self.gate is not None:
            assert self.gate.acquire(timeout=SECONDS)
        fault, self.fault = self.fault, None
        if fault is not None:
            raise fault
        keys = list(self.running)[: self.max_running]
        self.seen.append(keys)
        return [self._advance(key) for key in keys]

    def cancel(self, key: int) -> None:
        self.cancelled.append(key)
        self.running.pop(key, None)

    def load(self) -> Load:
        return Load(len(self.running), 0, 0.5)

    def _advance(self, key: int) -> Step:
        ids, sampling = self.running[key]
        token = ids[-1] + 1
        if token == 99:  # it never says this number
            del self.running[key]
            return Step(key, [], finish=FAILED)
        if token % 10 == 0:
            del self.running[key]
            return Step(key, [], finish=STOP)
        ids.append(token)
        sampling_left = sampling.max_new_tokens - 1
        self.running[key] = (ids, Sampling(max(1, sampling_left)))
        if sampling_left == 0:
            del self.running[key]
        return Step(key, [token], [-0.5], None if sampling_left else LENGTH)


class Numbers:
    """A tokenizer of numbers: token 12 is the text "12 "."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(f"{token} " for token in ids)


class Heard:
    """Jobs with their news: texts as they came."""

    def __init__(self) -> None:
        self.texts: dict[int, list[str]] = {}
        self.ends = threading.Semaphore(0)

    def job(self, prompt: Sequence[int], tokens: int = 3, **more: Any) -> Job:
        job = Job(prompt, Sampling(tokens), **more)
        job.listener = self.listen
        return job

    def listen(self, job: Job, text: str) -> None:
        self.texts.setdefault(id(job), []).append(text)
        if job.done:
            self.ends.release()

    def wait(self, count: int) -> None:
        for _ in range(count):
            assert self.ends.acquire(timeout=SECONDS), "a job never ended"


@pytest.fixture
def backend() -> Counting:
    return Counting()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def make(backend) -> Iterator[Callable[..., Engine]]:
    made: list[Engine] = []

    def build(**more: Any) -> Engine:
        settings: dict[str, Any] = {"max_running": backend.max_running, "max_waiting": 8} | more
        made.append(Engine(backend, Numbers(), **settings))
        return made[-1]

    yield build
    backend.gate = None
    for engine in made:
        engine.close()


def eventually(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until, "it never came to be"
        time.sleep(0.001)


def by_hand(backend: Counting) -> Callable[[int], None]:
    """Steps pass only when the returned function lets so many pass, and it waits until they have."""
    gate = backend.gate = threading.Semaphore(0)

    def steps(count: int) -> None:
        wanted = len(backend.seen) + count
        for _ in range(count):
            gate.release()
        eventually(lambda: len(backend.seen) >= wanted)

    return steps


# ---- joining and leaving ----------------------------------------------------------------------------------------------


def test_one_text_from_its_first_token_to_its_end(make, heard) -> None:
    started = time.monotonic()
    job = heard.job([1], 3)
    assert make().submit([job])
    heard.wait(1)
    assert (job.ids, job.text, job.finish, job.error) == ([2, 3, 4], "2 3 4 ", LENGTH, None)
    assert heard.texts[id(job)] == ["2 ", "3 ", "4 "]
    assert job.logprobs == [-0.5] * 3
    assert started <= job.submitted <= job.first <= job.last <= time.monotonic()


def test_an_end_token(make, heard) -> None:
    late, at_once = heard.job([7], 9), heard.job([9], 9)
    make().submit([late, at_once])
    heard.wait(2)
    assert (late.ids, late.text, late.finish) == ([8, 9], "8 9 ", STOP)
    assert (at_once.ids, at_once.text, at_once.finish, at_once.first) == ([], "", STOP, 0.0)


def test_jobs_join_and_leave_between_steps(make, backend, heard) -> None:
    steps = by_hand(backend)
    engine = make()
    engine.submit([heard.job([11], 7)])
    steps(1)
    engine.submit([heard.job([21], 2)])
    eventually(lambda: engine.load() == Load(2, 0, 0.5))
    backend.gate.release(8)
    heard.wait(2)
    assert backend.seen[0] == backend.seen[-1] == [0] and backend.seen.count([0, 1]) == 2
    assert engine.load() == Load(0, 0, 0.5)


def test_generate_with_more_jobs_than_there_is_room_for(make, backend) -> None:
    engine = make(max_waiting=1)
    jobs = [Job([10 * index], Sampling(3)) for index in range(1, 9)]
    engine.generate(jobs)
    assert [job.ids for job in jobs] == [[10 * i + 1, 10 * i + 2, 10 * i + 3] for i in range(1, 9)]
    assert max(len(keys) for keys in backend.seen) == 2 and engine.room == (0, 3)


def test_a_full_queue_takes_all_or_none(make, backend, heard) -> None:
    steps = by_hand(backend)
    engine = make(max_waiting=1)
    assert engine.room == (0, 3)
    assert engine.submit([heard.job([1]), heard.job([1])])
    assert not engine.submit([heard.job([1]), heard.job([1])])
    assert engine.room == (2, 3)
    assert engine.submit([heard.job([1])])
    assert not engine.submit([heard.job([1])])
    assert engine.load() == Load(2, 1, 0.5)
    steps(1)
    backend.gate.release(20)
    heard.wait(3)
    assert engine.room == (0, 3)
    assert engine.submit([heard.job([1])])
    heard.wait(1)


# ---- ends that are not the backend's ----------------------------------------------------------------------------------


def test_a_stop_string_ends_it_in_the_backend_too(make, backend, heard) -> None:
    job = heard.job([1], 8, stops=["4 5"])
    other = heard.job([11], 8)
    make().submit([job, other])
    heard.wait(2)
    assert (job.text, job.ids, job.finish) == ("2 3 ", [2, 3, 4, 5], STOP_STRING)
    assert "".join(heard.texts[id(job)]) == "2 3 "
    assert backend.cancelled == [0] and other.finish == LENGTH
    assert all(0 not in keys for keys in backend.seen[4:])


def test_what_was_held_back_for_a_stop_string_comes_at_the_end(make, heard) -> None:
    job = heard.job([1], 3, stops=["4 5"])
    make().submit([job])
    heard.wait(1)
    assert heard.texts[id(job)] == ["2 ", "3 ", "4 "] and job.text == "2 3 4 "


def test_a_deadline_ends_it_with_what_it_has(make, backend, heard) -> None:
    steps = by_hand(backend)
    engine = make()
    job = heard.job([11], 8)
    engine.submit([job])
    steps(2)
    job.deadline = time.monotonic()
    steps(1)
    backend.gate.release(8)
    heard.wait(1)
    assert job.finish == TIME and 2 <= len(job.ids) < 8 and backend.cancelled == [0]
    assert job.text == "".join(heard.texts[id(job)]) == "".join(f"{token} " for token in job.ids)
    late = heard.job([11], 8, deadline=time.monotonic() - 1)
    engine.submit([late])
    heard.wait(1)
    assert (late.finish, late.ids, late.text) == (TIME, [], "")


def test_cancelling(make, backend, heard) -> None:
    steps = by_hand(backend)
    engine = make()
    running, other, waiting = heard.job([11], 8), heard.job([21], 3), heard.job([31], 8)
    engine.submit([running, other])
    steps(1)
    engine.submit([waiting])
    engine.cancel([running, waiting])
    engine.cancel([running])
    backend.gate.release(20)
    heard.wait(3)
    assert (running.finish, running.error) == (waiting.finish, waiting.error) == (FAILED, "cancelled")
    assert waiting.ids == [] and other.finish == LENGTH and backend.cancelled == [0]
    engine.cancel([other])  # it is done: nothing happens
    again = heard.job([1])
    engine.submit([again])
    heard.wait(1)
    assert again.finish == LENGTH and engine.room[0] == 0


# ---- faults -----------------------------------------------------------------------------------------------------------


def test_a_step_that_fails_ends_those_in_it_and_later_ones_are_served(make, backend, heard, caplog) -> None:
    engine = make()
    one, two = heard.job([11], 5), heard.job([21], 5)
    backend.fault = MemoryError("no more")
    engine.submit([one, two])
    heard.wait(2)
    for job in (one, two):
        assert (job.finish, job.error) == (FAILED, "the model failed: MemoryError")
    assert backend.cancelled == [0, 1] and engine.room[0] == 0
    assert "the model failed on a step over 2 prompts" in caplog.text
    later = heard.job([11], 2)
    engine.submit([later])
    heard.wait(1)
    assert later.ids == [12, 13]


def test_a_prompt_that_cannot_be_run_and_one_the_model_gives_up(make, heard) -> None:
    empty, good, given_up = heard.job([], 5), heard.job([11], 2), heard.job([97], 5)
    make().submit([empty, good, given_up])
    heard.wait(3)
    assert (empty.finish, empty.error) == (FAILED, "the prompt has no tokens")
    assert good.ids == [12, 13]
    assert (given_up.finish, given_up.error) == (FAILED, "the model gave no answer to this prompt")
    assert given_up.ids == [98]


def test_a_listener_that_fails_harms_nobody(make, heard, caplog) -> None:
    def broken(job: Job, text: str) -> None:
        raise KeyError("no such thing")

    bad, good = heard.job([11], 2), heard.job([21], 3)
    bad.listener = broken
    make().submit([bad, good])
    heard.wait(1)
    assert good.ids == [22, 23, 24] and bad.finish == LENGTH
    assert "a listener failed" in caplog.text


@pytest.mark.parametrize("which", ["before_step", "after_step"])
def test_a_frontend_that_fails_does_not_end_the_thread(make, heard, which, caplog) -> None:
    def broken() -> None:
        raise BrokenPipeError

    job = heard.job([11], 2)
    engine = make(**{which: broken})
    engine.submit([job])
    heard.wait(1)
    later = heard.job([11], 2)
    engine.submit([later])
    heard.wait(1)
    assert job.ids == later.ids == [12, 13]
    assert "the frontend failed" in caplog.text


def test_the_frontend_is_told_before_a_step_and_behind_its_listeners(make, backend, heard) -> None:
    order: list[str] = []
    job = heard.job([11], 2)

    def listener(job: Job, text: str) -> None:
        order.append(text)
        heard.listen(job, text)

    job.listener = listener
    step = backend.step
    backend.step = lambda: order.append("step") or step()
    engine = make(before_step=lambda: order.append("before"), after_step=lambda: order.append("after"))
    engine.submit([job])
    heard.wait(1)
    eventually(lambda: len(order) >= 9)
    assert order[:9] == ["before", "step", "12 ", "after", "before", "step", "13 ", "after", "before"]


def test_closing(make, backend, heard) -> None:
    steps = by_hand(backend)
    engine = make()
    running = heard.job([11], 8)
    engine.submit([running])
    steps(1)
    closing = threading.Thread(target=engine.close)
    closing.start()
    eventually(lambda: engine._closed)
    backend.gate.release(20)
    closing.join(SECONDS)
    assert not closing.is_alive()
    assert (running.finish, running.error) == (FAILED, "the worker is closing")
    assert not engine.submit([heard.job([11])])
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.generate([heard.job([11])])
    engine.close()
    make().close()  # one that never ran


# ---- with a model -----------------------------------------------------------------------------------------------------


def test_a_model_s_texts(tiny_model) -> None:
    path = tiny_model("llama", TASK)
    model, tokenizer = load_model(path, TASK), Tokenizer.from_file(str(path / "tokenizer.json"))
    engine = Engine(TorchBackend.of_model(model, [2], max_running=2), tokenizer, max_running=2, max_waiting=1)
    try:
        prompts = ([0, 41, 52, 63], [7], list(range(20, 40)), [9, 9, 9], [300, 12])
        jobs = [Job(ids, Sampling(5 + index)) for index, ids in enumerate(prompts)]
        engine.generate(jobs)
        for index, job in enumerate(jobs):
            assert job.ids == continue_greedily(model, prompts[index], 5 + index, (2,))
            before = tokenizer.decode(prompts[index])
            assert before + job.text == tokenizer.decode([*prompts[index], *job.ids])
        text = jobs[0].text
        stop = text[len(text) // 2 :][:2]
        stopped = Job(prompts[0], Sampling(5), stops=[stop])
        engine.generate([stopped])
        assert stopped.finish == STOP_STRING and stopped.text == text[: text.index(stop)]
        assert engine.load() == Load(0, 0) and engine.backend.load() == Load(0, 0)
    finally:
        engine.close()
