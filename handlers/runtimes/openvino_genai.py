"""Text generation on OpenVINO GenAI's continuous batching: paged attention, prefix caching, token ids in and out.

Its own tokenizer is not used: `tokenizers` in this process knows the same text, and the archive needs no second copy.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from handlers.generation.backend import FAILED, LENGTH, PROMPT_TOKENS_A_STEP, STOP, Load, Sampling, Step
from handlers.requirements import require
from handlers.storage.graph_weights import weights_of

# Only where a draft model guesses: the pipeline compares the two tokenizers before it starts.
TOKENIZER_FILES = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")


class OpenVinoBackend:
    """See `handlers.generation.backend.Backend`.

    spec: requirement, precision, kv_cache, cache_blocks, max_running, and what speeds up: draft (a folder) or prompt_lookup
    (true), with assistant_tokens guessed at once while assist_up_to texts run at most. prefix_caching: without, every token
    of a prompt is computed anew. exact_activations: they are not rounded where weights are integers.
    """

    name = "openvino"

    def __init__(
        self,
        folder: Path,
        spec: Mapping[str, Any],
        threads: int,
        end_ids: Collection[int],
        *,
        prefix_caching: bool = True,
        exact_activations: bool = False,
    ) -> None:
        ov: Any = require("openvino", spec["openvino"])
        self._tensor = ov.Tensor
        self._genai: Any = require("openvino_genai", spec["requirement"])
        self._end_ids = set(end_ids)
        self._spec = spec
        scheduler = self._genai.SchedulerConfig()
        scheduler.num_kv_blocks = spec["cache_blocks"]
        scheduler.max_num_seqs = spec["max_running"]
        scheduler.max_num_batched_tokens = PROMPT_TOKENS_A_STEP
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = self._caches_prefixes = prefix_caching
        settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": spec["precision"],
            "KV_CACHE_PRECISION": spec["kv_cache"],
            "ENABLE_CPU_PINNING": False,  # pinning would put every worker on core 0
        }
        settings |= {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0} if exact_activations else {}
        assisted: dict[str, Any] = {}
        if spec.get("draft"):
            assisted["draft_model"] = self._genai.draft_model(str(folder / spec["draft"]), "CPU", **settings)
        elif spec.get("prompt_lookup"):
            assisted["prompt_lookup"] = True
        with self.files(folder) as files:
            self._pipeline = self._genai.ContinuousBatchingPipeline(str(files), scheduler, "CPU", settings | assisted)
        self._handles: dict[int, Any] = {}
        self._told: set[int] = set()  # those whose log-likelihoods are asked for: the pipeline says 0.0 of the others

    @contextlib.contextmanager
    def files(self, folder: Path) -> Iterator[Path]:
        """The folder with the model's files as the pipeline reads them: by path alone, so packed weights are laid out.

        OpenVINO maps the file; it goes away when the pipeline does, the name goes at once.
        """
        weights = weights_of(folder, self._spec)
        if weights is None:
            yield folder
            return
        with tempfile.TemporaryDirectory(prefix="marpress-") as name:
            weights.tofile(Path(name, "openvino_model.bin"))
            for file in folder.glob("openvino_*"):
                shutil.copyfile(file, Path(name, file.name))
            shutil.copyfile(folder / "config.json", Path(name, "config.json"))
            yield Path(name)

    def add(self, key: int, ids: Sequence[int], sampling: Sampling) -> None:
        self._handles[key] = self._pipeline.add_request(key, self._ids(ids), self._config(sampling))
        if sampling.logprobs:
            self._told.add(key)

    def step(self) -> list[Step]:
        self._pipeline.step()
        steps = []
        for key, handle in list(self._handles.items()):
            if handle.can_read():
                step = self._read(key, handle)
            elif handle.get_status() == self._genai.GenerationStatus.IGNORED:
                step = Step(key, (), finish=FAILED)
            else:
                continue
            if step.finish is not None:
                del self._handles[key]
                self._told.discard(key)
            steps.append(step)
        return steps

    def cancel(self, key: int) -> None:
        handle = self._handles.pop(key, None)
        self._told.discard(key)
        if handle is not None:
            handle.cancel()

    def load(self) -> Load:
        found = self._pipeline.get_metrics()
        running = min(found.scheduled_requests, len(self._handles))
        return Load(running, len(self._handles) - running, found.cache_usage / 100)

    def log_likelihoods(self, ids: Sequence[int]) -> list[float]:
        """ln p of every token of `ids` behind its first, given those before it, by the very kernels that serve.

        ValueError with prefix caching: of what is in the cache already the pipeline gives no likelihoods, but whatever lies
        in that memory.
        """
        if self._caches_prefixes:
            raise ValueError("likelihoods of a prompt need a pipeline without prefix caching")
        config = self._config(Sampling(max_new_tokens=1, logprobs=True))
        config.max_new_tokens, config.echo = 0, True
        handle = self._pipeline.add_request(0, self._ids(ids), config)
        found: list[float] = []
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        for output in handle.read_all():
            found += output.generated_log_probs
        return found[1 : len(ids)]

    def cache_bytes(self) -> int:
        """What the KV cache takes now."""
        return int(self._pipeline.get_metrics().cache_size_in_bytes)

    def _read(self, key: int, handle: Any) -> Step:
        ids: list[int] = []
        logprobs: list[float] = []
        reason = self._genai.GenerationFinishReason.NONE
        while handle.can_read():
            for output in handle.read().values():
                ids += output.generated_ids
                logprobs += output.generated_log_probs if key in self._told else ()
                reason = output.finish_reason
        if reason == self._genai.GenerationFinishReason.STOP:
            if ids and ids[-1] in self._end_ids:
                ids, logprobs = ids[:-1], logprobs[:-1]
            return Step(key, ids, logprobs, STOP)
        return Step(key, ids, logprobs, LENGTH if reason == self._genai.GenerationFinishReason.LENGTH else None)

    def _ids(self, ids: Sequence[int]) -> Any:
        return self._tensor(np.array([list(ids)], np.int64))

    def _config(self, sampling: Sampling) -> Any:
        config = self._genai.GenerationConfig(max_new_tokens=sampling.max_new_tokens)
        # Without an end token the pipeline refuses every request: any token serves where none is to be heeded.
        config.set_eos_token_id(min(self._end_ids, default=0))
        config.stop_token_ids = self._end_ids or {0}
        config.ignore_eos = not self._end_ids
        if sampling.do_sample:
            config.do_sample = True
            config.temperature, config.top_p, config.rng_seed = sampling.temperature, sampling.top_p, sampling.seed
            if sampling.top_k:
                config.top_k = sampling.top_k
        config.repetition_penalty = sampling.repetition_penalty
        config.frequency_penalty, config.presence_penalty = sampling.frequency_penalty, sampling.presence_penalty
        config.logprobs = int(sampling.logprobs)
        if self._spec.get("draft") or self._spec.get("prompt_lookup"):
            # The pipeline takes no 0. Where guessing costs more than it saves, one guessed token costs least.
            few = len(self._handles) < self._spec["assist_up_to"]
            config.num_assistant_tokens = self._spec["assistant_tokens"] if few else 1
        if self._spec.get("prompt_lookup"):
            config.max_ngram_size = 3
        return config
