"""The adapter to vLLM. vLLM is not here: a stand-in keeps to what its documentation says of LLMEngine, and no more."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from archiver.errors import DataError
from archiver.runtimes.vllm import score
from handlers.errors import UnsoundArchive
from handlers.generation.backend import FAILED, LENGTH, STOP, Backend, Load, Sampling, Step
from handlers.runtimes.vllm import VllmBackend

PLAIN = Sampling(max_new_tokens=3)
END = 2
DEVICE_COUNT = torch.cuda.device_count


class ClientError(Exception):
    """vllm.exceptions.VLLMClientError: no ValueError."""


@dataclass
class Parameters:
    """vllm.SamplingParams: the arguments that are used, with its bounds."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    max_tokens: int = 16
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    logit_bias: dict[int, float] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    output_kind: str = "CUMULATIVE"

    def __post_init__(self) -> None:
        if not -2 <= self.presence_penalty <= 2:
            raise ClientError(f"presence_penalty must be in [-2, 2], got {self.presence_penalty}.")


@dataclass
class Engine:
    """LLMEngine: one token a request and step, in delta mode, the stop token included; an empty step would block.

    tokens: what is written behind a prompt; 99 stands for an error of the engine about this request
    """

    arguments: dict[str, Any]
    requests: dict[str, tuple[list[int], Parameters]] = field(default_factory=dict)
    tokens: Callable[[list[int]], int] = lambda ids: ids[-1] + 1

    def add_request(self, request_id: str, prompt: dict[str, list[int]], params: Parameters) -> str:
        if len(prompt["prompt_token_ids"]) >= 8:
            raise ClientError("The decoder prompt is longer than the maximum model length")
        self.requests[request_id] = (prompt["prompt_token_ids"], params)
        params.written = []  # type: ignore[attr-defined]
        return request_id + "-1f"

    def has_unfinished_requests(self) -> bool:
        return bool(self.requests)

    def abort_request(self, request_ids: list[str]) -> None:
        for name in request_ids:
            self.requests.pop(name, None)

    def step(self) -> list[Any]:
        assert self.requests, "it would block"
        return [self._one(name, ids, params) for name, (ids, params) in list(self.requests.items())]

    def _one(self, name: str, ids: list[int], params: Any) -> Any:
        assert params.output_kind == "DELTA" and params.ignore_eos and not params.detokenize
        token = self.tokens([*ids, *params.written])
        params.written.append(token)
        reason = None
        if token in params.stop_token_ids:
            reason = "stop"
        elif token == 99:
            reason = "error"
        elif len(params.written) == params.max_tokens:
            reason = "length"
        if reason:
            del self.requests[name]
        likely = {100 + place: types.SimpleNamespace(logprob=-place / 100) for place in range(params.logprobs or 0)}
        logprobs = None if params.logprobs is None else [{token: types.SimpleNamespace(logprob=-token / 10)} | likely]
        output = types.SimpleNamespace(
            token_ids=[] if reason == "error" else [token], logprobs=logprobs, finish_reason=reason
        )
        told = None
        if params.prompt_logprobs and len(params.written) == 1:  # once, in delta mode
            told = [None, *(self._place(ids[:index], ids[index]) for index in range(1, len(ids)))]
        return types.SimpleNamespace(
            request_id=name, outputs=[output], finished=reason is not None, prompt_logprobs=told
        )

    def _place(self, before: list[int], token: int) -> dict[int, Any]:
        """The text's own token, first, and the likeliest one; the one `tokens` would write has ln p = −1."""
        best = self.tokens(before)
        found = {token: -1.0 if token == best else -token / 10 - 2}
        return {key: types.SimpleNamespace(logprob=value) for key, value in ({best: -1.0} | found).items()}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module `vllm` and a device."""
    vllm: Any = types.ModuleType("vllm")
    vllm.__version__ = "0.33.0"
    vllm.EngineArgs = dict
    vllm.LLMEngine = types.SimpleNamespace(from_engine_args=lambda arguments: Engine(arguments))
    parameters: Any = types.ModuleType("vllm.sampling_params")
    parameters.SamplingParams = Parameters
    parameters.RequestOutputKind = types.SimpleNamespace(DELTA="DELTA")
    exceptions: Any = types.ModuleType("vllm.exceptions")
    exceptions.VLLMClientError = ClientError
    for module in (vllm, parameters, exceptions):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")
    return vllm


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    return tmp_path


def opened(model: Path, **more: Any) -> Any:
    return VllmBackend(model, {"requirement": "vllm>=0.33", "model": "model", **more}, 1, [END])


def finish(backend: Backend) -> dict[int, list[Step]]:
    found: dict[int, list[Step]] = {}
    while backend.load() != Load(0, 0):
        for step in backend.step():
            found.setdefault(step.key, []).append(step)
    return found


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm(model) -> None:
    with pytest.raises(UnsoundArchive, match=r'needs vllm>=0.33, .* run `pip install "vllm>=0.33"`'):
        opened(model)


def test_a_vllm_that_does_not_load(model, stand_in) -> None:
    """Its names are imported when they are asked for: a missing libcudart shows there."""

    def missing(name: str) -> Any:
        raise ImportError("libcudart.so.12: cannot open shared object file")

    del stand_in.LLMEngine
    stand_in.__getattr__ = missing  # type: ignore[method-assign]
    with pytest.raises(UnsoundArchive, match=r"does not load \(libcudart.so.12.*pip install"):
        opened(model)


def test_an_old_vllm(model, stand_in) -> None:
    stand_in.__version__ = "0.9.2"
    with pytest.raises(UnsoundArchive, match="needs vllm>=0.33, this host has 0.9.2"):
        opened(model)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device here")
def test_without_a_device(model, stand_in, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", DEVICE_COUNT)
    with pytest.raises(UnsoundArchive, match="needs a CUDA device, and torch sees none here: run the worker on a host"):
        opened(model)


def test_a_folder_without_a_model(model, stand_in) -> None:
    (model / "model" / "model.safetensors").unlink()
    with pytest.raises(UnsoundArchive, match=r"holds no model for vLLM: it needs config.json and \*.safetensors"):
        opened(model)


def test_how_the_engine_is_asked_for(model, stand_in) -> None:
    arguments = opened(model, max_length=128, max_running=7)._engine.arguments
    assert arguments["model"] == str(model / "model")
    assert (arguments["max_model_len"], arguments["max_num_seqs"]) == (128, 7)
    assert "trust_remote_code" not in arguments and arguments["load_format"] == "safetensors"
    assert arguments["skip_tokenizer_init"] and arguments["enable_prefix_caching"]


def test_sampling_is_passed_on(model, stand_in) -> None:
    backend = opened(model)
    backend.add(0, [5], replace(PLAIN, temperature=0.3, top_p=0.5, seed=4))
    backend.add(1, [5], replace(PLAIN, do_sample=True, temperature=0.3, top_p=0.5, top_k=9, seed=4, logprobs=True))
    greedy, sampled = (backend._engine.requests[name][1] for name in ("0", "1"))
    assert (greedy.temperature, greedy.top_p, greedy.seed, greedy.logprobs) == (0.0, 1.0, None, None)
    assert (sampled.temperature, sampled.top_p, sampled.top_k, sampled.seed) == (0.3, 0.5, 9, 4)
    assert (sampled.logprobs, sampled.max_tokens, sampled.stop_token_ids) == (0, 3, [END])


def test_steps_and_finishes(model, stand_in) -> None:
    backend = opened(model)
    assert backend.step() == []
    backend.add(0, [10], PLAIN)
    backend.add(1, [0], replace(PLAIN, logprobs=True))
    backend.add(2, [97], PLAIN)
    found = finish(backend)
    assert found[0] == [Step(0, [11]), Step(0, [12]), Step(0, [13], finish=LENGTH)]
    assert [(list(s.ids), list(s.logprobs), s.finish) for s in found[1]] == [([1], [-0.1], None), ([], [], STOP)]
    assert found[2][-1] == Step(2, [], finish=FAILED)
    backend.add(0, [10], PLAIN)  # a key that is done may come again
    assert len(finish(backend)[0]) == 3


def test_the_likeliest_tokens_and_a_bias(model, stand_in) -> None:
    backend = opened(model)
    backend.add(0, [0], replace(PLAIN, logprobs=True, top_logprobs=2, bias=((7, 1.5),)))
    assert backend._engine.requests["0"][1].logit_bias == {7: 1.5}
    told = finish(backend)[0]
    assert [(list(step.logprobs), list(step.tops)) for step in told] == [
        ([-0.1], [[(100, 0.0), (101, -0.01)]]),
        ([], []),
    ]


def test_cancel_and_load(model, stand_in) -> None:
    backend = opened(model, max_running=2)
    for key in range(3):
        backend.add(key, [10 * key + 10], PLAIN)
    assert backend.load() == Load(running=2, waiting=1)
    backend.step()
    backend.cancel(1)
    backend.cancel(55)
    assert backend.load() == Load(running=2, waiting=0)
    assert set(finish(backend)) == {0, 2}


def test_likelihoods_of_a_text(model, stand_in) -> None:
    backend = opened(model)
    # Behind 10 the engine would write 11, behind 11 12, and behind 20 21.
    assert backend.log_likelihoods([10, 11, 20, 21]) == [-1.0, -4.0, -1.0]
    assert backend.likeliest([10, 11, 20, 21]) == [11, 12, 21]
    assert backend.load() == Load(0, 0) and backend._engine.requests == {}
    with pytest.raises(ValueError, match="longer than the maximum model length"):
        backend.log_likelihoods([5] * 8)
    backend.add(0, [10], PLAIN)
    with pytest.raises(ValueError, match="likelihoods are measured while no request runs"):
        backend.likeliest([10, 11])


def test_an_engine_that_tells_no_likelihoods(model, stand_in) -> None:
    backend = opened(model)
    backend._engine._place = lambda before, token: None
    step = backend._engine.step

    def silent() -> list[Any]:
        outputs = step()
        for output in outputs:
            output.prompt_logprobs = None
        return outputs

    backend._engine.step = silent
    with pytest.raises(ValueError, match="vLLM told likelihoods of 0 tokens of a text of 2"):
        backend.log_likelihoods([10, 11])


def test_the_metrics_of_an_archive_for_vllm_are_measured_by_its_engine(model, stand_in) -> None:
    """Two windows by hand: ln p of their tokens, and the likeliest ones."""
    windows = np.array([[10, 11, 20], [3, 4, 5]])
    handler: Any = types.SimpleNamespace(backend=opened(model))
    with score(handler, model) as predict:
        found = predict(windows)
        assert found.nll.tolist() == pytest.approx([(1 + 4) / 2, (1 + 1) / 2])
        assert found.best.tolist() == [[11, 12], [4, 5]]
        with pytest.raises(DataError, match=r"longer than the maximum.*positions: lower data.context \(8\)"):
            predict(np.array([[5] * 8]))


def test_what_is_refused(model, stand_in) -> None:
    backend = opened(model)
    with pytest.raises(ValueError, match=r"presence_penalty must be in \[-2, 2\]"):
        backend.add(0, [5], replace(PLAIN, presence_penalty=3.0))
    with pytest.raises(ValueError, match="longer than the maximum model length"):
        backend.add(0, [5] * 8, PLAIN)
    with pytest.raises(ValueError, match="no tokens"):
        backend.add(0, [], PLAIN)
    assert backend.load() == Load(0, 0)
    backend.add(0, [5], PLAIN)
    with pytest.raises(ValueError, match="the key 0 is in use"):
        backend.add(0, [5], PLAIN)
