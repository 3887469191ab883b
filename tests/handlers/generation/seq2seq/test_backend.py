"""Groups of texts that are written from sources: batched as alone, rows that leave, groups that take turns, failures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tiny_seq2seq import VOCABULARY, model_of

from handlers.generation.backend import FAILED, STOP, Step
from handlers.generation.seq2seq.backend import GROUPS, Seq2SeqBackend
from handlers.generation.seq2seq.rules import Rules
from handlers.inputs.text import Encoded, Encoder, Text
from handlers.runtimes.torch_seq2seq import TorchSeq2Seq

RULES = Rules((0,), (2,), 12)


class Padded(Text):
    """Items are made by the test; only their arrays are needed."""

    def __init__(self) -> None:
        self.encoder = Encoder.__new__(Encoder)
        self.encoder.pad_id = 1


def source(length: int, seed: int) -> Encoded:
    ids = np.random.default_rng(seed).integers(3, VOCABULARY, length).tolist()
    return Encoded(ids, [0] * length)


@pytest.fixture(scope="module")
def session() -> TorchSeq2Seq:
    return TorchSeq2Seq.of_model(model_of("t5", eos_token_id=2))


def backend_of(session: Any, rows: int = 64) -> Seq2SeqBackend:
    return Seq2SeqBackend(session, Padded(), max_rows=rows, most_size=4096)


def finish(backend: Seq2SeqBackend, most: int = 200) -> dict[int, tuple[list[int], str]]:
    """{key: (tokens, why it ended)} of everything that is in the backend."""
    found: dict[int, list[int]] = {}
    ended: dict[int, tuple[list[int], str]] = {}
    for _ in range(most):
        for step in backend.step():
            found.setdefault(step.key, []).extend(step.ids)
            if step.finish is not None:
                ended[step.key] = (found[step.key], step.finish)
        load = backend.load()
        if not load.running and not load.waiting:
            return ended
    raise AssertionError("it does not end")


def test_batched_is_alone(session) -> None:
    rules = [RULES, Rules((0,), (2,), 5), Rules((0,), (2,), 9, num_beams=3), Rules((0,), (2,), 12, num_beams=2)]
    sources = [source(3 + 4 * index, index) for index in range(8)]
    alone = []
    for index, item in enumerate(sources):
        backend = backend_of(session)
        backend.add_source(0, item, rules[index % 4])
        alone.append(finish(backend)[0])
    together = backend_of(session)
    for index, item in enumerate(sources):
        together.add_source(index, item, rules[index % 4])
    assert [finish_of for _, finish_of in sorted(finish(together).items())] == alone


def test_who_is_done_leaves_and_who_comes_later_is_written_beside(session) -> None:
    backend = backend_of(session)
    backend.add_source(0, source(20, 1), Rules((0,), (), 30))
    backend.step()
    backend.add_source(1, source(4, 2), Rules((0,), (), 3))
    told: list[tuple[int, str | None]] = []
    for _ in range(4):
        told += [(step.key, step.finish) for step in backend.step()]
    assert (1, "length") in told
    assert backend.load().running == 1


def test_no_more_groups_than_take_turns_and_the_shortest_waits_least(session) -> None:
    backend = backend_of(session)
    for key in range(GROUPS):
        backend.add_source(key, source(5, key), Rules((0,), (), 30))
        backend.step()
    for key, length in ((10, 20), (11, 6)):
        backend.add_source(key, source(length, key), Rules((0,), (), 2))
    assert backend.load().waiting == 2
    backend.cancel(0)
    backend._max_rows = GROUPS  # room for one more row
    backend.step()
    assert [entry.key for entry in backend._waiting] == [10]


def test_the_oldest_is_passed_over_a_few_times_only(session) -> None:
    backend = backend_of(session, rows=1)
    backend.add_source(0, source(20, 0), Rules((0,), (), 1))
    order = []
    for key in range(1, 9):
        backend.add_source(key, source(4, key), Rules((0,), (), 1))
        order += [step.key for step in backend.step() if step.finish]
    assert 0 in order and order.index(0) == 4


def test_other_beginnings_are_another_group(session) -> None:
    backend = backend_of(session)
    backend.add_source(0, source(5, 0), Rules((0,), (), 4))
    backend.add_source(1, source(5, 0), Rules((0, 7, 8), (), 4))
    assert set(finish(backend)) == {0, 1}


def test_cancelled_ones_are_not_heard_of_again(session) -> None:
    backend = backend_of(session)
    for key in range(3):
        backend.add_source(key, source(5 + key, key), Rules((0,), (), 6, num_beams=1 + key))
    backend.step()
    backend.cancel(1)
    backend.cancel(7)
    assert set(finish(backend)) == {0, 2}


class Broken:
    """A session whose decoders fail, or give what is no number, for one source."""

    name = "broken"

    def __init__(self, inner: Any, how: str) -> None:
        self.inner, self.how = inner, how

    def read(self, arrays: Any) -> Any:
        if self.how == "read":
            raise RuntimeError("no memory")
        decoder, how = self.inner.read(arrays), self.how
        inner = decoder.step

        def step(ids: np.ndarray, parents: Sequence[int], places: Sequence[int]) -> np.ndarray:
            if how == "step":
                raise RuntimeError("no memory")
            logits = inner(ids, parents, places).copy()
            logits[0] = np.nan
            return logits

        decoder.step = step
        return decoder


@pytest.mark.parametrize(("how", "failed"), [("read", {0, 1}), ("step", {0, 1}), ("nan", {0})])
def test_failures_are_told(session, how: str, failed: set[int], caplog: pytest.LogCaptureFixture) -> None:
    backend = backend_of(Broken(session, how))
    backend.add_source(0, source(5, 0), Rules((0,), (), 1))
    backend.add_source(1, source(5, 1), Rules((0,), (), 1))
    assert {key for key, (_, why) in finish(backend).items() if why == FAILED} == failed


def test_an_end_token_is_no_part_of_the_text(session) -> None:
    backend = backend_of(session)
    backend.add_source(0, source(5, 0), Rules((0,), tuple(range(VOCABULARY)), 5))
    assert finish(backend)[0] == ([], STOP)
    assert backend.step() == list[Step]()
