"""Text on vLLM, for a host with a CUDA device: its scheduler, its paged cache and its kernels.

Written against the sources of vLLM 0.33.0 (LLMEngine, EngineArgs, SamplingParams). **This path has not been run against a
GPU, nor against an installed vLLM**: its tests know the engine's documented behaviour only, from a stand-in.

vLLM makes the model from config.json alone. The folder holds a plain Hugging Face model: config.json and *.safetensors
with weights by their own names, none packed, and every layer as large as the config says; a model whose layers differ in
shape, or are factored, cannot be served this way. Code that lies beside a model is not run, which is vLLM's default.

What differs from torch_generation: the same seed gives other tokens; logits that are not finite are not noticed;
an engine that dies raises out of `step`, and nothing after it works: the worker has to be started anew.
"""

import importlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handlers.errors import UnsoundArchive
from handlers.generation.backend import FAILED, LENGTH, STOP, Load, Sampling, Step
from handlers.requirements import require

REQUIREMENT = "vllm>=0.33"
_MEASURED = "measured"  # the request id of a text whose likelihoods are measured: no key of a prompt
_FINISHES = {"stop": STOP, "length": LENGTH}  # of vLLM's: stop, length, abort, error, repetition


@dataclass(frozen=True)
class _Api:
    """The names of vLLM that are used."""

    engine_args: Any
    engine: Any
    sampling_params: Any
    delta: Any
    client_error: type[Exception]


class VllmBackend:
    """A Backend over vLLM's LLMEngine. Not thread-safe.

    spec: requirement; and if it says so, model (the model's folder inside the archive), dtype (auto), max_length (prompt
    and continuation together, by default what config.json allows), max_running (prompts in the batch, 64), memory_share
    (of the device's memory for weights and cache, 0.9). end_ids end a text, and no others do. threads: not used.
    """

    name = "vllm"
    constrains = False  # it has tokens, and no tokenizer

    def __init__(self, folder: Path, spec: Mapping[str, Any], threads: int, end_ids: Collection[int]) -> None:
        self._api = _load_api(spec.get("requirement", REQUIREMENT))
        _need_device()
        self._end_ids = frozenset(end_ids)
        self._max_running = int(spec.get("max_running", 64))
        self._keys: dict[int, int] = {}  # and of how many likeliest tokens each is told
        arguments = self._api.engine_args(
            model=str(_model_folder(folder / spec.get("model", "."))),
            skip_tokenizer_init=True,
            load_format="safetensors",  # never a pickled .bin
            generation_config="vllm",  # what a generation_config.json says about end tokens is in end_ids already
            enable_prefix_caching=True,
            dtype=spec.get("dtype", "auto"),
            max_model_len=spec.get("max_length"),
            max_num_seqs=self._max_running,
            gpu_memory_utilization=spec.get("memory_share", 0.9),
            seed=0,
            disable_log_stats=True,
        )
        self._engine = self._api.engine.from_engine_args(arguments)

    def add(self, key: int, ids: Sequence[int], sampling: Sampling, adapter: int = 0) -> None:
        """See `Backend`. ValueError by vLLM's own bounds, among them penalties in [-2, 2] and temperature ≤ 2."""
        if not ids:
            raise ValueError("the prompt has no tokens; at least one is needed")
        if key in self._keys:
            raise ValueError(f"the key {key} is in use")
        if adapter:
            raise ValueError("this runtime serves no adapters")
        try:
            parameters = self._parameters(sampling)
            self._engine.add_request(str(key), {"prompt_token_ids": [int(token) for token in ids]}, parameters)
        except self._api.client_error as error:  # its class for «the request is at fault», which is no ValueError
            raise ValueError(str(error)) from error
        self._keys[key] = sampling.top_logprobs

    def step(self) -> list[Step]:
        """See `Backend`."""
        if not self._engine.has_unfinished_requests():  # then the engine's step would wait for ever
            return []
        steps = [self._step(output) for output in self._engine.step() if int(output.request_id) in self._keys]
        for step in steps:
            if step.finish is not None:
                del self._keys[step.key]
        return [step for step in steps if step.ids or step.finish is not None]

    def cancel(self, key: int) -> None:
        """See `Backend`."""
        if key in self._keys:
            del self._keys[key]
            self._engine.abort_request([str(key)])

    def load(self) -> Load:
        """Up to max_running prompts count as running: the engine gives neither their number nor its cache's use."""
        running = min(len(self._keys), self._max_running)
        return Load(running=running, waiting=len(self._keys) - running)

    def log_likelihoods(self, ids: Sequence[int]) -> list[float]:
        """The natural log-probability of each token of a text but its first, given those before it, as served.

        Args:
            ids: [n] token ids, n ≥ 2, fewer than `max_length`. Nothing else may be in the engine.
        Returns: [n − 1] log-probabilities by the raw logits.
        Raises: ValueError when the engine is busy, or by its own bounds.
        """
        places = self._places(ids)
        return [float(place[token].logprob) for token, place in zip(ids[1:], places, strict=True)]

    def likeliest(self, ids: Sequence[int]) -> list[int]:
        """The likeliest token behind each place of a text but its last; see `log_likelihoods`.

        Returns: [n − 1] token ids.
        """
        return [int(max(place, key=lambda token: place[token].logprob)) for place in self._places(ids)]

    def _places(self, ids: Sequence[int]) -> list[Mapping[int, Any]]:
        """[n − 1] {token id: Logprob} of each place but the first: the text's own token, and the likeliest one.

        Source: vLLM's SamplingParams.prompt_logprobs and RequestOutput.prompt_logprobs; in delta mode they come once, with
        the first output. Where they are asked for, vLLM computes the whole prompt and takes nothing of its prefix cache.
        """
        if self._engine.has_unfinished_requests():
            raise ValueError("likelihoods are measured while no request runs; wait for the running ones")
        parameters = self._api.sampling_params(
            temperature=0.0,
            max_tokens=1,  # the least it takes; the token itself is not looked at
            ignore_eos=True,
            prompt_logprobs=1,
            detokenize=False,
            output_kind=self._api.delta,
        )
        found: list[Any] = []
        try:
            prompt = {"prompt_token_ids": [int(token) for token in ids]}
            self._engine.add_request(_MEASURED, prompt, parameters)
            while self._engine.has_unfinished_requests():
                for output in self._engine.step():
                    found += output.prompt_logprobs or ()
        except self._api.client_error as error:
            raise ValueError(str(error)) from error
        if len(found) != len(ids):
            raise ValueError(f"vLLM told likelihoods of {len(found)} tokens of a text of {len(ids)}")
        return found[1:]  # of the first token nothing is known: None

    def _parameters(self, sampling: Sampling) -> Any:
        chosen: dict[str, Any] = {"temperature": 0.0}  # vLLM's word for the likeliest token
        if sampling.do_sample:
            chosen = {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "seed": sampling.seed,
            }
        return self._api.sampling_params(
            **chosen,
            repetition_penalty=sampling.repetition_penalty,
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
            max_tokens=sampling.max_new_tokens,
            stop_token_ids=sorted(self._end_ids),
            ignore_eos=True,  # of config.json: end_ids decide alone
            logit_bias=dict(sampling.bias) or None,
            logprobs=sampling.top_logprobs if sampling.logprobs else None,  # and the chosen token's, by the raw logits
            detokenize=False,
            output_kind=self._api.delta,
        )

    def _step(self, output: Any) -> Step:
        """What a RequestOutput in delta mode says: new tokens only, the end token among them."""
        (found,) = output.outputs
        ids = [int(token) for token in found.token_ids]
        finish = _FINISHES.get(found.finish_reason, FAILED) if output.finished else None
        if finish == STOP and ids and ids[-1] in self._end_ids:
            ids.pop()
        # As long as the tokens with the end token: zip leaves the end token's out.
        logprobs = tuple(float(place[token].logprob) for token, place in zip(ids, found.logprobs or (), strict=False))
        key = int(output.request_id)
        asked = self._keys[key]  # vLLM tells the chosen token's beside so many
        places = found.logprobs[: len(ids)] if asked else ()
        told = ([(int(token), float(one.logprob)) for token, one in place.items()] for place in places)
        tops = tuple(sorted(top, key=lambda one: -one[1])[:asked] for top in told)
        return Step(key, ids, logprobs, finish, tops)


def _load_api(requirement: str) -> _Api:
    """vLLM's names, which it imports only when they are asked for: an ImportError may come with each of them."""
    vllm = require("vllm", requirement)
    try:
        parameters = importlib.import_module("vllm.sampling_params")
        return _Api(
            vllm.EngineArgs,
            vllm.LLMEngine,
            parameters.SamplingParams,
            parameters.RequestOutputKind.DELTA,
            importlib.import_module("vllm.exceptions").VLLMClientError,
        )
    except (ImportError, AttributeError, OSError) as error:
        raise UnsoundArchive(
            f"this archive needs {requirement}; what this host has does not load ({error}): "
            f'run `pip install "{requirement}"` for the Python that runs TorchServe'
        ) from error


def _need_device() -> None:
    import torch

    # Not is_available(): that one starts CUDA, after which vLLM could not fork its engine's process.
    if torch.cuda.device_count() == 0:
        raise UnsoundArchive(
            "this archive runs on vLLM, which needs a CUDA device, and torch sees none here: run the worker on a host with "
            "a GPU and its driver (nvidia-smi lists it), or build the archive with `device: cpu`"
        )


def _model_folder(folder: Path) -> Path:
    """`folder`, once it holds a model: a path that holds none would be looked up as a name on the hub."""
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise UnsoundArchive(f"{folder} holds no model for vLLM: it needs config.json and *.safetensors")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    return folder.resolve()
