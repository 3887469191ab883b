"""Text on torch, many prompts at once: each step runs part of one waiting prompt and one token of all running ones.

For hosts where OpenVINO does not run. It takes any …ForCausalLM of transformers whose layers keep keys and values, also
one whose layers have different shapes: the cache takes its sizes from what the layers put into it.

Running prompts share one cache, shorter ones padded on their left and the padding masked, so that what stands in
another row has no part in a row's sums. The order in which a kernel adds a row's own numbers can depend on how many
rows there are: a prompt's logits agree to rounding, not to the last bit, with those it gets alone. `batched=False` runs
one row after the other and gives the same bits; all weights are then read once a row.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from handlers.architecture.adapters import AdaptedModel
from handlers.generation.backend import FAILED, LENGTH, STOP, Load, Sampling, Step, Top
from handlers.generation.sampling import check, choose, is_plain, most_likely
from handlers.protocols.continuation import Matcher
from handlers.requirements import require
from handlers.runtimes.torch_device import placed
from handlers.storage.adapters import read_adapters

logger = logging.getLogger(__name__)

PREFILL_TOKENS = 512  # of a waiting prompt in one step: how long running ones are held up by it


@dataclass(eq=False)
class _Prompt:
    """found: its new tokens. cached: how many tokens of prompt and found have keys and values. matcher: of what it has to
    match, None where it is free."""

    key: int
    ids: list[int]
    sampling: Sampling
    generator: np.random.Generator
    adapter: int = 0
    found: list[int] = field(default_factory=list)
    cached: int = 0
    matcher: Matcher | None = None


@dataclass(eq=False)
class _Rows:
    """Prompts that are run together. cache: keys and values [rows, heads, columns, width] of each layer.

    A prompt's places are the last `cached` columns of its row; what is left of them is padding.
    """

    prompts: list[_Prompt]
    cache: Any

    def columns(self) -> int:
        return max(prompt.cached for prompt in self.prompts)

    def failed(self) -> list[Step]:
        return [Step(prompt.key, [], finish=FAILED) for prompt in self.prompts]

    def join(self, other: "_Rows") -> None:
        """Take in the rows of `other`, which is used up. Both are padded to the longer one's columns."""
        columns = max(self.columns(), other.columns())
        for mine, more in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys = torch.cat([_widened(mine.keys, columns), _widened(more.keys, columns)])
            mine.values = torch.cat([_widened(mine.values, columns), _widened(more.values, columns)])
        self.prompts += other.prompts

    def keep(self, prompts: Sequence[_Prompt]) -> None:
        """Only these, at least one, stay; columns that are padding to all of them go."""
        if len(prompts) == len(self.prompts):
            return
        rows = [row for row, prompt in enumerate(self.prompts) if prompt in prompts]
        self.prompts = [self.prompts[row] for row in rows]
        for layer in self.cache.layers:
            index = torch.tensor(rows, device=layer.keys.device)
            layer.keys = layer.keys.index_select(0, index)[:, :, -self.columns() :]
            layer.values = layer.values.index_select(0, index)[:, :, -self.columns() :]


class TorchBackend:
    """A Backend over transformers' module, on the device it is on. Not thread-safe.

    A prompt whose logits are not finite, or on which the model raises, finishes with FAILED; its cause is logged.
    spec: requirement, model and config (the files), max_running, adapters (a file, or none), and device if it is not the
    CPU.
    """

    name = "torch"
    constrains = True
    _adapted: AdaptedModel | None = None

    def __init__(self, folder: Path, spec: Mapping[str, Any], threads: int, end_ids: Collection[int]) -> None:
        require("transformers", spec["requirement"])
        from handlers.architecture.outputs.decoder import load_decoder

        torch.set_num_threads(threads)
        model = placed(load_decoder(folder, spec), spec).model
        self._begin(model, end_ids, spec["max_running"], PREFILL_TOKENS, True)
        if spec.get("adapters"):
            adapters = read_adapters(folder / spec["adapters"])
            self._adapted = AdaptedModel(model, adapters.layers, len(adapters.names))

    @classmethod
    def of_model(
        cls,
        model: torch.nn.Module,
        end_ids: Collection[int],
        max_running: int,
        *,
        prefill_tokens: int = PREFILL_TOKENS,
        batched: bool = True,
    ) -> "TorchBackend":
        """A backend over a live module.

        Args:
            model: transformers' …ForCausalLM in eval mode. end_ids: tokens that end a text. max_running: prompts in the
                batch. prefill_tokens: of a waiting prompt in one step. batched: False runs one row after the other.
        Raises: ValueError for numbers below 1.
        """
        backend = cls.__new__(cls)
        backend._begin(model, end_ids, max_running, prefill_tokens, batched)
        return backend

    @property
    def model(self) -> Any:
        """transformers' …ForCausalLM, for measuring what it predicts."""
        return self._model

    def _begin(
        self, model: Any, end_ids: Collection[int], max_running: int, prefill_tokens: int, batched: bool
    ) -> None:  # fmt: skip
        if max_running < 1 or prefill_tokens < 1:
            raise ValueError(f"max_running is {max_running}, prefill_tokens {prefill_tokens}; allowed: from 1")
        self._model = model
        self._device = next(model.parameters()).device
        self._end_ids = frozenset(end_ids)
        self._max_running = max_running
        self._prefill_tokens = prefill_tokens
        self._batched = batched
        self._waiting: list[_Prompt] = []
        self._entering: _Rows | None = None  # the one whose prompt is being run, piece by piece
        self._running: list[_Rows] = []

    def add(self, key: int, ids: Sequence[int], sampling: Sampling, adapter: int = 0) -> None:
        """See `Backend`. ValueError for an empty prompt, a key in use, and settings out of range."""
        check(sampling)
        if not ids:
            raise ValueError("the prompt has no tokens; at least one is needed")
        if any(prompt.key == key for prompt in self._all()):
            raise ValueError(f"the key {key} is in use")
        generator = np.random.default_rng(sampling.seed)
        prompt = _Prompt(key, [int(token) for token in ids], sampling, generator, adapter)
        prompt.matcher = None if sampling.constraint is None else sampling.constraint.begin()
        self._waiting.append(prompt)

    @torch.inference_mode()
    def step(self) -> list[Step]:
        """One token of each running prompt; then up to `prefill_tokens` tokens of the prompt that waits longest."""
        steps = self._merge()
        for rows in list(self._running):
            steps += self._run(rows, [[prompt.found[-1]] for prompt in rows.prompts])
        if self._entering is None and self._waiting and self._count() < self._max_running:
            # Without a config it keeps whole keys and values, also where layers attend to a window: the mask bounds those.
            self._entering = _Rows([self._waiting.pop(0)], _empty_cache())
        if self._entering is not None:
            prompt = self._entering.prompts[0]
            piece = prompt.ids[prompt.cached : prompt.cached + self._prefill_tokens]
            steps += self._run(self._entering, [piece])
        return steps

    def cancel(self, key: int) -> None:
        """See `Backend`."""
        self._waiting = [prompt for prompt in self._waiting if prompt.key != key]
        for rows in self._in_batch():
            self._settle(rows, [prompt for prompt in rows.prompts if prompt.key != key])

    def load(self) -> Load:
        """See `Backend`. cache_use is 0: the cache grows with the prompts and has no fixed size."""
        return Load(running=self._count(), waiting=len(self._waiting))

    def _merge(self) -> list[Step]:
        """Bring all running rows into one batch. Returns: steps of prompts that failed by it."""
        if not self._batched or len(self._running) < 2:
            return []
        everyone = _Rows([prompt for rows in self._running for prompt in rows.prompts], None)
        try:
            first, *others = self._running
            for other in others:
                first.join(other)
        except Exception:
            logger.exception("%d prompts failed: their caches could not be joined", len(everyone.prompts))
            self._running = []
            return everyone.failed()
        self._running = [first]
        return []

    def _run(self, rows: _Rows, pieces: list[list[int]]) -> list[Step]:
        """Put the next tokens of each row, equally many, through the model; what the rows got by it."""
        try:
            logits = self._logits(rows, pieces)
            finite, likeliest = torch.isfinite(logits).all(-1).tolist(), logits.argmax(-1).tolist()
        except Exception:  # the cache may be half written: nobody in it can go on, everybody else can
            logger.exception("%d prompts failed at %d tokens", len(rows.prompts), rows.columns())
            self._settle(rows, [])
            return rows.failed()
        for prompt, piece in zip(rows.prompts, pieces, strict=True):
            prompt.cached += len(piece)
        if rows.prompts[0].cached < len(rows.prompts[0].ids):
            return []
        steps = [
            self._advance(prompt, logits[row], likeliest[row], finite[row]) for row, prompt in enumerate(rows.prompts)
        ]
        self._settle(rows, [p for p, step in zip(rows.prompts, steps, strict=True) if step.finish is None])
        return steps

    def _logits(self, rows: _Rows, pieces: list[list[int]]) -> torch.Tensor:
        """[rows, vocabulary] float32 behind each row's piece."""
        length = len(pieces[0])
        start = torch.tensor([prompt.cached for prompt in rows.prompts], device=self._device)[:, None]
        padding = rows.columns() - start
        places = torch.arange(length, device=self._device)
        numbers = [prompt.adapter for prompt in rows.prompts]
        with nullcontext() if self._adapted is None else self._adapted.use(numbers):
            output = self._model(
                input_ids=torch.tensor(pieces, device=self._device),
                attention_mask=(torch.arange(rows.columns() + length, device=self._device) >= padding).long(),
                position_ids=start + places,
                past_key_values=rows.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def _advance(self, prompt: _Prompt, logits: torch.Tensor, likeliest: int, finite: bool) -> Step:
        """Choose the next token of one prompt by its logits [vocabulary]."""
        sampling, token, matcher = prompt.sampling, likeliest, prompt.matcher
        logprobs: tuple[float, ...] = ()
        tops: tuple[Top, ...] = ()
        try:
            if not finite:
                raise ArithmeticError("the model's logits are not finite")
            if matcher is not None or not is_plain(sampling):
                raw, given = logits.cpu().numpy(), (prompt.ids, prompt.found, sampling, prompt.generator)
                token, logprob = choose(raw, *given) if matcher is None else matcher.choose(raw, likeliest, *given)
                logprobs = (logprob,) if sampling.logprobs else ()
                tops = (most_likely(raw, sampling.top_logprobs),) if sampling.top_logprobs else ()
        except Exception:  # the others of the batch go on
            logger.exception("a prompt failed behind %d tokens", prompt.cached)
            return Step(prompt.key, [], finish=FAILED, error=None if matcher is None else matcher.error)
        if token in self._end_ids:
            return Step(prompt.key, [], finish=STOP)
        prompt.found.append(token)
        finish = LENGTH if len(prompt.found) == sampling.max_new_tokens else None
        if matcher is not None and matcher.complete:
            finish = STOP
        return Step(prompt.key, [token], logprobs, finish, tops)

    def _settle(self, rows: _Rows, staying: list[_Prompt]) -> None:
        """Keep only the prompts `staying` of some rows; one whose own prompt is read completely joins the running ones."""
        if rows is self._entering:
            if staying and not staying[0].found:
                return
            self._entering = None
            self._running.append(rows)
        if staying:
            rows.keep(staying)
        else:
            self._running.remove(rows)

    def _in_batch(self) -> list[_Rows]:
        return self._running + ([self._entering] if self._entering is not None else [])

    def _all(self) -> list[_Prompt]:
        return self._waiting + [prompt for rows in self._in_batch() for prompt in rows.prompts]

    def _count(self) -> int:
        return sum(len(rows.prompts) for rows in self._in_batch())


def _empty_cache() -> Any:
    from transformers import DynamicCache

    return DynamicCache()


def _widened(states: torch.Tensor, columns: int) -> torch.Tensor:
    """[rows, heads, columns, width] with zeros on the left: finite, so that a masked place adds exactly nothing."""
    return torch.nn.functional.pad(states, (0, 0, columns - states.shape[2], 0))
