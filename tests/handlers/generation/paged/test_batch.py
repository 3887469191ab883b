"""Texts that share a paged cache get what they would get alone, however they are read, guessed and pushed out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from paged_models import VOCABULARY, Counting, follow

from handlers.generation.backend import FAILED, LENGTH, STOP, Load, Sampling, Step
from handlers.generation.paged.batch import PagedBatch
from handlers.generation.paged.guesses import Lookup

PROMPTS = ([0, 41, 2, 13], [7], list(range(20, 40)), [9, 9, 9], list(range(30, 41)), [3, 12])
COUNTS = (12, 5, 20, 3, 9, 16)


def batch(blocks: int = 64, ends: Sequence[int] = (), mod: int = VOCABULARY, **more: Any) -> PagedBatch:
    return PagedBatch(Counting(blocks, 4, mod), blocks, 4, ends, **{"max_running": 6, **more})


def run(backend: PagedBatch, joining: Mapping[int, Sequence[tuple[int, Sequence[int], Sampling]]]) -> dict[int, Step]:
    """joining: {step: what joins before it}. All tokens of each key as one Step, until nothing is left."""
    found: dict[int, Step] = {}
    for number in range(500):
        for key, ids, sampling in joining.get(number, ()):
            backend.add(key, ids, sampling)
        for step in backend.step():
            before = found.get(step.key, Step(step.key, []))
            assert before.finish is None
            ids, logprobs = [*before.ids, *step.ids], [*before.logprobs, *step.logprobs]
            found[step.key] = Step(step.key, ids, logprobs, step.finish, [*before.tops, *step.tops], step.error)
        if number >= max(joining) and backend.load() == Load(0, 0, backend.load().cache_use):
            return found
    raise AssertionError("it does not end")


def crowd() -> dict[int, list[tuple[int, Sequence[int], Sampling]]]:
    joining: dict[int, list[tuple[int, Sequence[int], Sampling]]] = {}
    for key, (ids, count, at) in enumerate(zip(PROMPTS, COUNTS, (0, 0, 1, 4, 6, 6), strict=True)):
        joining.setdefault(at, []).append((key, ids, Sampling(count)))
    return joining


# 9 blocks: the six need up to 36, so that some wait and some are pushed out and read anew.
@pytest.mark.parametrize(("blocks", "most"), [(64, 6), (64, 2), (10, 6), (10, 3)])
def test_alone_and_among_others(blocks, most) -> None:
    backend = batch(blocks, max_running=most)
    for _ in range(2):  # the second time beginnings are there
        found = run(backend, crowd())
        for key, (ids, count) in enumerate(zip(PROMPTS, COUNTS, strict=True)):
            assert (found[key].ids, found[key].finish) == (follow(ids, count), LENGTH)
    assert backend.load() == Load(0, 0, 0.0)


def test_some_are_pushed_out_by_those_that_were_there_before() -> None:
    backend = batch(6)
    backend.add(0, [1], Sampling(16))
    backend.add(1, [2], Sampling(16))
    waited = False
    texts: dict[int, list[int]] = {0: [], 1: []}
    for _ in range(60):
        for step in backend.step():
            texts[step.key] += step.ids
        waited = waited or backend.load().waiting == 1
    assert waited and texts == {0: follow([1], 16), 1: follow([2], 16)}


def test_a_long_prompt_is_read_in_pieces_between_the_others_tokens() -> None:
    backend = batch(128)
    model: Any = backend._model
    backend.add(0, [5], Sampling(100))
    backend.step()
    backend.add(1, list(range(40)) * 5, Sampling(1))
    while not any(step.key == 1 for step in backend.step()):
        assert len(model.passes) < 60
    sizes = [len(pieces[1].ids) for pieces in model.passes[1:] if len(pieces) == 2]
    assert sum(sizes) == 200 and min(sizes) >= 2 and len(sizes) > 1
    assert all(pieces[0].apart for pieces in model.passes[1:])  # the other text goes on in every step
    alone = batch(128)
    alone.add(1, list(range(40)) * 5, Sampling(1))
    assert [step.ids for step in alone.step()] == [follow(list(range(40)) * 5, 1)]  # at once, where nothing else runs


@pytest.mark.parametrize("length", range(255, 262))
def test_no_piece_is_a_single_token(length) -> None:
    backend = batch(128)
    model: Any = backend._model
    ids = [token % 50 for token in range(length)]
    assert run(backend, {0: [(0, ids, Sampling(1))]})[0].ids == follow(ids, 1)
    assert min(len(pieces[0].ids) for pieces in model.passes) >= 2


def test_guesses_change_how_many_steps_it_takes_and_nothing_else() -> None:
    steps = {}
    for guesses in (0, 4):
        backend = batch(64, mod=7, guesser=Lookup(), guesses=guesses, guess_up_to=2)
        backend._pace.price = lambda rows: 0.1  # type: ignore[method-assign]
        found = run(backend, {0: [(0, [1, 2], Sampling(40)), (1, [4], Sampling(3))]})
        assert found[0].ids == follow([1, 2], 40, 7) and found[1].ids == follow([4], 3, 7)
        steps[guesses] = len(backend._model.passes)  # type: ignore[attr-defined]
    assert steps[0] == 41 and steps[4] < 20  # one of them shows how long a step takes that reads nothing


def test_where_many_run_nothing_is_guessed() -> None:
    backend = batch(64, mod=7, guesser=Lookup(), guesses=4, guess_up_to=2)
    backend._pace.price = lambda rows: 0.1  # type: ignore[method-assign]
    run(backend, {0: [(key, [1, 2], Sampling(30)) for key in range(3)]})
    assert all(len(piece.ids) <= 2 for pieces in backend._model.passes for piece in pieces)  # type: ignore[attr-defined]


def test_ends_in_the_middle_of_guesses() -> None:
    def ended(ends: Sequence[int], sampling: Sampling) -> Step:
        backend = batch(64, ends, 7, guesser=Lookup(), guesses=4, guess_up_to=2)
        backend._pace.price = lambda rows: 0.1  # type: ignore[method-assign]
        return run(backend, {0: [(0, [0, 1, 2, 3, 4, 5, 6, 0, 1], sampling)]})[0]

    assert ended([4], Sampling(30)) == Step(0, [2, 3], [], STOP, [])
    found = ended([4], Sampling(30, logprobs=True))
    assert (found.ids, found.finish, len(found.logprobs)) == ([2, 3], STOP, 2) and max(found.logprobs) < 0
    assert ended([], Sampling(3)) == Step(0, [2, 3, 4], [], LENGTH, [])


def test_a_seed_gives_the_same_text_with_guesses_and_without() -> None:
    sampling = Sampling(30, do_sample=True, temperature=0.4, seed=5, repetition_penalty=1.1)
    texts = []
    for guesses, others in ((0, 0), (4, 0), (4, 1)):
        backend = batch(64, mod=7, guesser=Lookup(), guesses=guesses, guess_up_to=2)
        backend._pace.price = lambda rows: 0.01  # type: ignore[method-assign]
        more = [(key, [key], replace(sampling, seed=key)) for key in range(1, others + 1)]
        texts.append(run(backend, {0: [(0, [0, 1, 2, 3, 4, 5, 6, 0, 1], sampling), *more]})[0].ids)
    assert texts[0] == texts[1] == texts[2]


def test_cancelling_gives_everything_back() -> None:
    backend = batch(64, max_running=2)
    for key in range(3):
        backend.add(key, PROMPTS[2], Sampling(20))
    backend.step()
    backend.cancel(2)
    backend.cancel(0)
    backend.cancel(99)
    assert {step.key for step in backend.step()} == {1}
    backend.cancel(1)
    assert backend.load() == Load(0, 0, 0.0) and backend.step() == []


def test_numbers_that_are_none_end_that_prompt_alone(caplog) -> None:
    backend = batch()
    model: Any = backend._model
    right = model.run

    def run_wrong(pieces: Sequence[Any]) -> np.ndarray:
        logits: np.ndarray = right(pieces)
        logits[0, 3] = np.nan
        return logits

    backend.add(0, [1], Sampling(4))
    backend.add(1, [2], Sampling(4))
    model.run = run_wrong
    assert backend.step()[0] == Step(0, [], [], FAILED, [])
    assert "not finite" in caplog.text
    model.run = right
    assert run(backend, {0: []})[1].ids == follow([2], 4)[1:]


def test_what_is_refused() -> None:
    backend = batch(4)
    with pytest.raises(ValueError, match="the prompt has no tokens"):
        backend.add(0, [], Sampling(1))
    with pytest.raises(ValueError, match="a prompt of 10 tokens and 7 new ones do not fit into a cache of 16"):
        backend.add(0, [1] * 10, Sampling(7))
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        backend.add(0, [1], Sampling(0))


def test_log_likelihoods() -> None:
    backend = batch()
    ids = [1, *follow([1], 150)]
    found = backend.log_likelihoods([*ids[:-1], (ids[-1] + 1) % VOCABULARY])
    right = 1 - np.log(np.e + VOCABULARY - 1)
    assert found == pytest.approx([right] * 149 + [right - 1])
    assert backend.log_likelihoods([4]) == [] and backend.load().cache_use == 0


# ---- texts that have to match something -------------------------------------------------------------------------------


class Rising:
    """A `Constraint` and a matcher of it: each token is greater than the one before, from `least`, and `most` ends it."""

    error: str | None = None

    def __init__(self, least: int, most: int) -> None:
        self.last, self.most = least - 1, most

    def begin(self) -> Rising:
        return Rising(self.last + 1, self.most)

    @property
    def complete(self) -> bool:
        return self.last == self.most

    def choose(self, logits: np.ndarray, likeliest: int, *others: Any) -> tuple[int, float]:
        allowed = np.arange(len(logits)) > self.last
        if self.last >= 40:
            self.error = "it is too much"
            raise ArithmeticError(self.error)
        self.last = int(np.where(allowed, logits, -np.inf).argmax())
        return self.last, 0.0


def test_what_has_to_match_does_with_guesses_and_among_others() -> None:
    # Twenty tokens that follow each other: half of what is guessed, from the prompt, is what may come.
    held = Sampling(30, constraint=Rising(5, 12))
    prompt = [*range(20), *range(20)]
    joining = {0: [(0, prompt, held), (1, prompt, Sampling(16)), (2, [7, 3], Sampling(30, constraint=Rising(8, 9)))]}
    plain = run(batch(mod=20), joining)
    guessed = run(batch(mod=20, guesser=Lookup(), guesses=4, guess_up_to=6), joining)
    assert plain == guessed
    told = {key: (step.ids, step.finish) for key, step in plain.items()}
    assert told == {
        0: ([5, 6, 7, 8, 9, 10, 11, 12], STOP),  # 5 is the first that may come; then each the next
        1: (follow(prompt, 16, 20), LENGTH),
        2: ([8, 9], STOP),
    }


def test_what_cannot_be_matched_any_further_fails_alone_and_says_why() -> None:
    held = Sampling(60, constraint=Rising(38, 49))
    found = run(batch(), {0: [(0, [1], held), (1, [2], Sampling(5))]})
    assert found[0].finish == FAILED and found[0].ids and found[0].error == "it is too much"
    assert (found[1].ids, found[1].finish, found[1].error) == (follow([2], 5), LENGTH, None)


def test_adapters_beside_each_other_on_a_cache_that_knows_their_beginnings() -> None:
    backend = batch(64)
    for _ in range(3):
        texts: dict[int, list[int]] = {}
        for key in range(6):
            backend.add(key, PROMPTS[2], Sampling(12), key % 3)
        while backend.load().running or backend.load().waiting:
            for step in backend.step():
                texts.setdefault(step.key, []).extend(step.ids)
        assert texts == {key: follow(PROMPTS[2], 12, adapter=key % 3) for key in range(6)}
    assert len({tuple(text) for text in texts.values()}) == 3
    model: Any = backend._model
    read = [piece for pieces in model.passes[-13:] for piece in pieces if not piece.apart]
    assert {len(piece.ids) for piece in read} == {4} and {piece.adapter for piece in read} == {0, 1, 2}
