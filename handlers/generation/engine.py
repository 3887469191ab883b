"""A worker's engine: a thread that adds prompts to the batch, runs a step of the model and hands out its tokens, in a loop.

A prompt ends with its end token, its last token, a stop string, its deadline, or when its request is cancelled.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from handlers.generation.backend import Load, Stepping
from handlers.generation.stream import TextStream
from handlers.protocols.continuation import FAILED, STOP_STRING, TIME, Sampling, Top

logger = logging.getLogger(__name__)


@dataclass
class Job:
    """One prompt in the engine, a `Continuation`.

    listener: called in the engine's thread after each step that moved it on, with the new text; must not wait.
    deadline: time.monotonic() at which it ends with what it has. keep_special: whether special tokens stand in the text.
    adapter: the number of its LoRA adapter, 0 for none.
    finish: None while it runs, then STOP, STOP_STRING, LENGTH, TIME or FAILED. first, last: when tokens came.
    started, ended: when it was let into the batch, and when it was done. beside: how many texts had part in the step that
    let it in.
    """

    prompt: Sequence[int]
    sampling: Sampling
    stops: Sequence[str] = ()
    deadline: float = float("inf")
    listener: Callable[["Job", str], None] = lambda job, text: None
    adapter: int = 0
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[Top] = field(default_factory=list)
    text: str = ""
    finish: str | None = None
    error: str | None = None
    submitted: float = 0.0
    first: float = 0.0
    last: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    beside: int = 0
    stream: TextStream | None = None
    keep_special: bool = False

    @property
    def done(self) -> bool:
        """Whether nothing more comes."""
        return self.finish is not None

    def join(self, backend: Any, key: int) -> None:
        """Give the prompt to a backend. ValueError with a sentence for what it cannot do."""
        backend.add(key, self.prompt, self.sampling, self.adapter)


class Engine:
    """Runs jobs on a backend in a thread of its own.

    Args:
        backend: the model. tokenizer: a tokenizers.Tokenizer. max_running: prompts in the backend's batch.
        max_waiting: jobs that may wait for a place beyond max_running.
        before_step, after_step: called in the thread before a step, and after its listeners, so that a frontend can send
            what they gathered at once.
    """

    def __init__(
        self,
        backend: Stepping,
        tokenizer: Any,
        *,
        max_running: int,
        max_waiting: int,
        before_step: Callable[[], None] = lambda: None,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.backend = backend
        self.before_step = before_step
        self.after_step = after_step
        self._tokenizer = tokenizer
        self._room = max_running + max_waiting
        self._max_running = max_running
        self._wake = threading.Condition()
        self._inbox: list[Job] = []
        self._gone: list[Job] = []
        self._jobs: dict[int, Job] = {}
        self._before: list[Job] = []  # that the backend has and that were not in its batch yet
        self._count = 0
        self._next = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    def submit(self, jobs: Sequence[Job]) -> bool:
        """Take the jobs in, all or none; False when there is no room for them."""
        with self._wake:
            if self._count + len(jobs) > self._room or self._closed:
                return False
            now = time.monotonic()
            for job in jobs:
                job.submitted = now
            self._count += len(jobs)
            self._inbox += jobs
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="marpress-engine", daemon=True)
                self._thread.start()
            self._wake.notify()
        return True

    def cancel(self, jobs: Sequence[Job]) -> None:
        """End jobs whose answers have no receiver; unknown and finished ones are ignored."""
        with self._wake:
            self._gone += jobs
            self._wake.notify()

    def generate(self, jobs: Sequence[Job]) -> None:
        """Submit and wait until all are done, for a build or a check of stored examples."""
        waiting = threading.Semaphore(0)

        def listener(job: Job, text: str) -> None:
            if job.done:
                waiting.release()

        for start in range(0, len(jobs), self._room):
            part = jobs[start : start + self._room]
            for job in part:
                job.listener = listener
            while not self.submit(part):
                if self._closed:
                    raise RuntimeError("the engine is closed")
                time.sleep(0.01)
            for _ in part:
                waiting.acquire()

    def close(self) -> None:
        """End the thread; what still runs ends as failed."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    @property
    def room(self) -> tuple[int, int]:
        """(jobs here, jobs that fit)"""
        return self._count, self._room

    def load(self) -> Load:
        """Running and waiting jobs, waiting ones that the backend has not seen included."""
        running = min(self._count, self._max_running)
        return Load(running, self._count - running, self.backend.load().cache_use)

    # ---- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._call(self.before_step)
            with self._wake:
                while not (self._inbox or self._jobs or self._gone or self._closed):
                    self._wake.wait()
                if self._closed:
                    break
                joining, self._inbox = self._inbox, []
                gone, self._gone = self._gone, []
            self._leave(gone, joining)
            self._join(joining)
            self._expire()
            if self._jobs:
                self._step()
            self._call(self.after_step)
        for job in [*self._jobs.values(), *self._inbox]:
            self._finish(job, FAILED, "the worker is closing")

    def _call(self, hook: Callable[[], None]) -> None:
        try:
            hook()
        except Exception:  # a thread that ended would leave every later request without an answer
            logger.exception("the frontend failed between two steps")

    def _join(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if job.done:
                continue
            key, self._next = self._next, self._next + 1
            try:
                job.stream = TextStream(self._tokenizer, job.prompt, job.stops, keep_special=job.keep_special)
                job.join(self.backend, key)
            except Exception as error:  # this prompt alone: the others run on
                logger.exception("a prompt of %d tokens cannot be run", len(job.prompt))
                self._finish(job, FAILED, str(error))
                continue
            self._jobs[key] = job
            self._before.append(job)

    def _leave(self, gone: Sequence[Job], joining: list[Job]) -> None:
        if not gone:
            return
        wanted = {id(job) for job in gone}
        for key, job in list(self._jobs.items()):
            if id(job) in wanted:
                self._end(key, job, FAILED, "cancelled")
        for job in joining:
            if id(job) in wanted:
                self._finish(job, FAILED, "cancelled")

    def _expire(self) -> None:
        now = time.monotonic()
        for key, job in list(self._jobs.items()):
            if job.deadline <= now:
                self._end(key, job, TIME)

    def _step(self) -> None:
        began = time.monotonic()
        try:
            steps = self.backend.step()
        except Exception as error:  # the model failed: nothing says whose fault it was, so all of them end
            logger.exception("the model failed on a step over %d prompts", len(self._jobs))
            for key, job in list(self._jobs.items()):
                self._end(key, job, FAILED, f"the model failed: {type(error).__name__}")
            return
        now = time.monotonic()
        if self._before:
            self._note_started(began)
        for step in steps:
            if step.key not in self._jobs:
                continue
            job = self._jobs[step.key]
            if step.ids:
                job.first = job.first or now
                job.last = now
            assert job.stream is not None
            text = job.stream.feed(step.ids) if step.ids else ""
            job.ids += step.ids
            job.logprobs += step.logprobs
            job.tops += step.tops
            if job.stream.stopped:
                self._end(step.key, job, STOP_STRING, text=text)
            elif step.finish is not None:
                del self._jobs[step.key]
                why = (step.error or "the model gave no answer to this prompt") if step.finish == FAILED else None
                self._finish(job, step.finish, why, text + job.stream.end())
            else:
                job.text += text
                self._tell(job, text)

    def _note_started(self, began: float) -> None:
        """Who was let in by the last step: as many as the backend no longer lets wait, those that came first."""
        waiting = self.backend.load().waiting
        count = max(0, len(self._before) - waiting)
        for job in self._before[:count]:
            job.started, job.beside = began, len(self._jobs) - waiting
        del self._before[:count]

    def _end(self, key: int, job: Job, finish: str, error: str | None = None, text: str = "") -> None:
        """End a job that the backend still holds."""
        del self._jobs[key]
        self.backend.cancel(key)
        assert job.stream is not None
        self._finish(job, finish, error, text + job.stream.end())

    def _finish(self, job: Job, finish: str, error: str | None = None, text: str = "") -> None:
        with self._wake:
            self._count -= 1
        job.text += text
        job.finish, job.error, job.ended = finish, error, time.monotonic()
        if not job.started:
            self._before = [one for one in self._before if one is not job]
        self._tell(job, text)

    def _tell(self, job: Job, text: str) -> None:
        try:
            job.listener(job, text)
        except Exception:  # the listener's fault is its request's, not the engine's
            logger.exception("a listener failed")
