"""Prompts that join and leave a running batch on torch get what they would get alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from cut_models import tiny
from greedy import continue_greedily
from task_models import load_model
from tiny_models import DECODERS

from archiver.architecture import cuts_of
from archiver.compression.prune.structured import cut_out
from handlers.generation.backend import FAILED, LENGTH, STOP, Backend, Load, Sampling, Step
from handlers.runtimes.torch_generation import TorchBackend

TASK = "text-generation"
# Six prompts of other lengths, with other numbers of new tokens.
PROMPTS = ([0, 41, 52, 63], [7], list(range(20, 40)), [9, 9, 9], list(range(60, 71)), [300, 12])
COUNTS = (12, 5, 20, 3, 9, 16)
GREEDY = Sampling(max_new_tokens=12)
SAMPLED = Sampling(max_new_tokens=12, do_sample=True, temperature=1.5, top_p=0.95, top_k=100, seed=11)


def run(
    backend: TorchBackend,
    joining: Mapping[int, Sequence[tuple[int, Sequence[int], Sampling]]],
    cancelled: Mapping[int, int] | None = None,
) -> dict[int, list[Step]]:
    """joining: {step: what joins before it}; cancelled: {step: key}. All Steps by key, until nothing is left."""
    found: dict[int, list[Step]] = {}
    for number in range(500):
        for key, ids, sampling in joining.get(number, ()):
            backend.add(key, ids, sampling)
        if cancelled and number in cancelled:
            backend.cancel(cancelled[number])
        for step in backend.step():
            found.setdefault(step.key, []).append(step)
        if number >= max(joining) and backend.load() == Load(0, 0):
            return found
    raise AssertionError("it does not end")


def text(steps: Sequence[Step]) -> list[int]:
    assert all(step.finish is None for step in steps[:-1]) and steps[-1].finish is not None
    return [token for step in steps for token in step.ids]


def crowd(sampling: Sampling = GREEDY) -> dict[int, list[tuple[int, Sequence[int], Sampling]]]:
    """The six, joining at different steps, so that each has others beside it that come and go."""
    joining: dict[int, list[tuple[int, Sequence[int], Sampling]]] = {}
    for key, (ids, count, at) in enumerate(zip(PROMPTS, COUNTS, (0, 0, 1, 4, 6, 6), strict=True)):
        joining.setdefault(at, []).append((key, ids, replace(sampling, max_new_tokens=count, seed=sampling.seed + key)))
    return joining


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("kind", DECODERS)
def test_greedy_alone_and_among_others(tiny_model, kind, batched) -> None:
    model = load_model(tiny_model(kind, TASK), TASK)
    wanted = [continue_greedily(model, ids, count, (2,)) for ids, count in zip(PROMPTS, COUNTS, strict=True)]
    assert len({tuple(ids) for ids in wanted}) == 6
    backend: Backend = TorchBackend.of_model(model, [2], max_running=6, batched=batched)
    for key, (ids, count) in enumerate(zip(PROMPTS, COUNTS, strict=True)):
        alone = run(backend, {0: [(key, ids, replace(GREEDY, max_new_tokens=count))]})
        assert text(alone[key]) == wanted[key]
    together = run(backend, crowd())
    assert [text(together[key]) for key in range(6)] == wanted


@pytest.mark.parametrize("kind", DECODERS)
def test_logits_of_a_padded_row_are_those_of_the_row_alone(tiny_model, kind) -> None:
    """Log-probabilities of the chosen tokens: batched to rounding, one by one to the last bit."""
    model = load_model(tiny_model(kind, TASK), TASK)
    asked = crowd(replace(GREEDY, logprobs=True))
    one, many = (
        run(TorchBackend.of_model(model, [], max_running=6, batched=batched), asked) for batched in (False, True)
    )
    for key in range(6):
        assert text(one[key]) == text(many[key])
        for a, b in zip(one[key], many[key], strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
            assert len(a.logprobs) == 1 and a.logprobs[0] < 0
    for key, ids, sampling in (joined for group in asked.values() for joined in group):
        assert run(TorchBackend.of_model(model, [], max_running=1), {0: [(key, ids, sampling)]})[key] == one[key]


def test_a_window_of_attention(tiny_model) -> None:
    model = load_model(tiny_model("mistral", TASK, sliding_window=5), TASK)
    full = load_model(tiny_model("mistral", TASK), TASK)
    wanted = [continue_greedily(model, ids, count, ()) for ids, count in zip(PROMPTS, COUNTS, strict=True)]
    assert wanted[2] != continue_greedily(full, PROMPTS[2], COUNTS[2], ())
    together = run(TorchBackend.of_model(model, [], max_running=6, prefill_tokens=3), crowd())
    assert [text(together[key]) for key in range(6)] == wanted


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_layers_with_different_numbers_of_heads(kind) -> None:
    model = tiny(kind)
    every = [[0, 1], [1], [0]] if kind == "llama" else [[0, 2], [1], [0, 1, 3]]
    for cut, heads in zip(cuts_of(model, "heads"), every, strict=True):
        cut_out(model, cut, torch.tensor(heads))
    prompts = ([3, 4, 5], [9], [11, 12, 13, 14, 15])
    joining = {at: [(at, ids, Sampling(max_new_tokens=8))] for at, ids in enumerate(prompts)}
    together = run(TorchBackend.of_model(model, [], max_running=3), joining)
    assert [text(together[key]) for key in range(3)] == [continue_greedily(model, ids, 8, ()) for ids in prompts]


def test_a_long_prompt_is_run_in_pieces_between_the_others_tokens(tiny_model) -> None:
    model = load_model(tiny_model("qwen2", TASK), TASK)
    backend = TorchBackend.of_model(model, [], max_running=2, prefill_tokens=6)
    backend.add(0, [5], replace(GREEDY, max_new_tokens=9))
    backend.step()
    backend.add(1, PROMPTS[2], replace(GREEDY, max_new_tokens=4))  # 20 tokens: pieces of 6, 6, 6, 2
    keys = [[step.key for step in backend.step()] for _ in range(5)]
    assert keys == [[0], [0], [0], [0, 1], [0, 1]]
    assert text(run(TorchBackend.of_model(model, [], 1, prefill_tokens=6), {0: [(1, PROMPTS[2], GREEDY)]})[1]) == (
        continue_greedily(model, PROMPTS[2], 12, ())
    )


@pytest.mark.parametrize("batched", [True, False])
def test_a_seed_gives_the_same_text_whatever_runs_beside_it(tiny_model, batched) -> None:
    model = load_model(tiny_model("llama", TASK), TASK)
    penalized = replace(SAMPLED, repetition_penalty=1.2, frequency_penalty=0.5, presence_penalty=0.3)
    backend = TorchBackend.of_model(model, [2], max_running=7, batched=batched)
    for sampling in (SAMPLED, penalized):
        alone = text(run(backend, {0: [(99, PROMPTS[0], sampling)]})[99])
        assert alone == text(run(backend, {0: [(99, PROMPTS[0], sampling)]})[99])
        joining = crowd(replace(SAMPLED, seed=500))
        joining[2] = [(99, PROMPTS[0], sampling)]
        assert text(run(backend, joining)[99]) == alone
        other = replace(sampling, seed=sampling.seed + 1)
        assert text(run(backend, {0: [(99, PROMPTS[0], other)]})[99]) != alone


def test_an_end_token_is_left_out(tiny_model) -> None:
    model = load_model(tiny_model("llama", TASK), TASK)
    free = continue_greedily(model, PROMPTS[0], 12, ())
    stop = free[5]
    steps = run(TorchBackend.of_model(model, [stop], max_running=1), {0: [(0, PROMPTS[0], GREEDY)]})[0]
    assert text(steps) == free[: free.index(stop)]
    assert steps[-1] == Step(0, [], finish=STOP)
    steps = run(
        TorchBackend.of_model(model, [], max_running=1), {0: [(0, PROMPTS[0], replace(GREEDY, max_new_tokens=1))]}
    )[0]
    assert steps == [Step(0, [free[0]], (), LENGTH)]


def test_no_more_run_than_allowed_and_the_longest_waiting_is_next(tiny_model) -> None:
    model = load_model(tiny_model("gpt2", TASK), TASK)
    backend = TorchBackend.of_model(model, [], max_running=2)
    for key in range(5):
        backend.add(key, PROMPTS[key], replace(GREEDY, max_new_tokens=3 + key))
    assert backend.load() == Load(running=0, waiting=5)
    order: list[int] = []
    while backend.load() != Load(0, 0):
        steps = backend.step()
        assert len(steps) <= 3  # two running; and the one that takes a place that was freed just now
        order += [step.key for step in steps if step.key not in order]
        assert backend.load().running <= 2
    assert order == [0, 1, 2, 3, 4]


def test_cancelling_frees_the_place_and_ends_the_steps(tiny_model) -> None:
    model = load_model(tiny_model("llama", TASK), TASK)
    long = replace(GREEDY, max_new_tokens=40)
    for cancelled in ({5: 2}, {5: 0}):  # once the longest row of the batch, once another
        backend = TorchBackend.of_model(model, [], max_running=3)
        joining = {0: [(key, PROMPTS[key], long) for key in range(3)], 1: [(3, PROMPTS[3], GREEDY)]}
        found = run(backend, joining, cancelled)
        (gone,) = cancelled.values()
        assert len(found[gone]) < 6 and found[gone][-1].finish is None
        for key, count in ((0, 40), (1, 40), (2, 40), (3, 12)):
            if key != gone:
                assert text(found[key]) == continue_greedily(model, PROMPTS[key], count, ())
    backend = TorchBackend.of_model(model, [], max_running=1, prefill_tokens=4)
    for key in range(3):
        backend.add(key, PROMPTS[2], GREEDY)
    assert backend.step() == [] and backend.load() == Load(running=1, waiting=2)
    backend.cancel(0)  # half of its prompt is run
    backend.cancel(1)  # it waits
    backend.cancel(77)
    assert backend.load() == Load(running=0, waiting=1)
    assert set(run(backend, {0: []})) == {2}


def spoilt(path, token: int) -> torch.nn.Module:
    """A model for which one token is not a number."""
    model = load_model(path, TASK)
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    return model


@pytest.mark.parametrize("batched", [True, False])
def test_numbers_that_are_none_end_that_prompt_alone(tiny_model, batched, caplog) -> None:
    path = tiny_model("llama", TASK, tie_word_embeddings=False)
    sound = load_model(path, TASK)
    wanted = [continue_greedily(sound, ids, count, ()) for ids, count in zip(PROMPTS, COUNTS, strict=True)]
    # A token that the third writes at some time, and nobody else: it fails in the middle of the batch.
    others = {token for key, ids in enumerate(wanted) if key != 2 for token in [*PROMPTS[key], *ids]}
    at, token = next(
        (at, t) for at, t in enumerate(wanted[2]) if t not in others and t not in PROMPTS[2] and 0 < at < 19
    )
    with caplog.at_level(logging.CRITICAL):
        found = run(TorchBackend.of_model(spoilt(path, token), [], max_running=6, batched=batched), crowd())
        assert found[2][-1] == Step(2, [], finish=FAILED)
        assert text(found[2]) == wanted[2][: wanted[2].index(token) + 1]
        assert [text(found[key]) for key in (0, 1, 3, 4, 5)] == [wanted[key] for key in (0, 1, 3, 4, 5)]
        found = run(TorchBackend.of_model(spoilt(path, PROMPTS[4][3]), [], max_running=6, batched=batched), crowd())
        assert found[4] == [Step(4, [], finish=FAILED)]


def test_a_model_that_raises_ends_what_was_in_it(tiny_model, caplog) -> None:
    """gpt2 has 64 places: the one that runs beyond them takes its batch along, and whoever comes later is served."""
    model = load_model(tiny_model("gpt2", TASK), TASK)
    backend = TorchBackend.of_model(model, [], max_running=2)
    joining = {0: [(0, [5] * 60, GREEDY), (1, [7], replace(GREEDY, max_new_tokens=20))], 12: [(2, [7], GREEDY)]}
    with caplog.at_level(logging.CRITICAL):
        found = run(backend, joining)
    assert found[0][-1].finish == found[1][-1].finish == FAILED
    assert text(found[2]) == continue_greedily(model, [7], 12, ())


def test_what_is_refused(tiny_model) -> None:
    backend = TorchBackend.of_model(load_model(tiny_model("llama", TASK), TASK), [], max_running=1)
    with pytest.raises(ValueError, match="no tokens"):
        backend.add(0, [], GREEDY)
    with pytest.raises(ValueError, match="top_p is 0; allowed"):
        backend.add(0, [5], replace(GREEDY, top_p=0))
    backend.add(0, [5], GREEDY)
    with pytest.raises(ValueError, match="the key 0 is in use"):
        backend.add(0, [5], GREEDY)
    with pytest.raises(ValueError, match="max_running is 0"):
        TorchBackend.of_model(backend._model, [], max_running=0)
