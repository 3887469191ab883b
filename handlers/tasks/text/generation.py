"""text-generation: prompts continued together, each joining the running batch at the next token, leaving at its own end."""

import gc
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from handlers.errors import BadRequest
from handlers.generation.backend import PROMPT_TOKENS_A_STEP
from handlers.generation.chat import ChatTemplate
from handlers.generation.engine import Job
from handlers.generation.grammar import Grammars
from handlers.inputs.base import MAX_BODY
from handlers.inputs.checks import Parameter, checked_parameters
from handlers.inputs.text import Encoder, Text, TextInput
from handlers.protocols.continuation import GenerationRequest, Renderer, Sampling
from handlers.protocols.forms import path_of
from handlers.protocols.generation import ALLOWED, PATHS, read_request
from handlers.protocols.huggingface import generation as hf_generation
from handlers.protocols.openai.calls import form_of
from handlers.protocols.sampling import SEEDS
from handlers.storage.adapters import NONE
from handlers.tasks.engine import Asked, RequestHandler, in_its_form, random_seed

WARM_SECONDS = 3.0  # most that a warm-up takes


class TextGenerationHandler(RequestHandler[TextInput]):
    """Continues texts. serving: max_length bounds prompt and continuation together; end_ids end a text; deadline_s and
    max_queue bound how long a request runs and how many wait."""

    parameters: ClassVar[dict[str, Parameter]] = hf_generation.PARAMETERS
    paths: ClassVar[Mapping[str, Any]] = PATHS
    input: Text

    def make_input(self, folder: Path) -> Text:
        return Text(Encoder.open(folder, self.serving, cuts=False))

    def load(self, folder: Path, threads: int) -> None:
        self._loaded = (folder, threads)
        serving = self.serving
        chat = serving.get("chat")
        self._chat = ChatTemplate(chat["template"], chat["tokens"]).render if chat else None
        self._calls = form_of(chat["template"]) if chat else None
        self._grammars = Grammars(folder, serving["end_ids"])
        backend = self.runtime(folder, serving["session"], threads, serving["end_ids"])
        self.start(backend, self.input.encoder.tokenizer, max_running=serving["session"]["max_running"])

    def open(self, folder: Path, *, threads: int, trust_files: bool = False) -> None:
        super().open(folder, threads=threads, trust_files=trust_files)
        if not trust_files:
            self.warm_up()

    @contextmanager
    def unloaded(self) -> Iterator[None]:
        """Inside, the model is not in memory; afterwards it is loaded again."""
        self.engine.close()
        del self.engine, self.backend
        gc.collect()
        try:
            yield
        finally:
            self.load(*self._loaded)

    def warm_up(self, seconds: float = WARM_SECONDS) -> None:
        """One step over each number of tokens that a step can have, as far as the time goes, the sizes spread evenly.

        A runtime prepares code and memory for each size that it meets anew: the first requests would wait for that, and the
        worker's memory would go on growing while it serves (by some 30 MB on a small model).
        """
        until = time.monotonic() + seconds
        rng, ids = random.Random(0), self.input.encoder.tokenizer.get_vocab_size()
        most = self.serving["max_length"] - 1
        for size in _spread(PROMPT_TOKENS_A_STEP):
            parts = [min(most, size - start) for start in range(0, size, most)]
            if len(parts) <= self.serving["session"]["max_running"]:
                prompts = [[rng.randrange(ids) for _ in range(part)] for part in parts]
                # A pass in which a text has an adapter, whichever, is another graph.
                for adapter in (NONE, NONE + 1) if self.adapters else (NONE,):
                    self.engine.generate([Job(prompt, Sampling(1), adapter=adapter) for prompt in prompts])
            if time.monotonic() >= until:
                break

    # ---- in this process ----------------------------------------------------------------------------------------------

    def respond(self, inputs: Sequence[TextInput], parameters: Mapping[str, Any] | None = None) -> list[Any]:
        given = checked_parameters(dict(parameters or {}), self.parameters)
        request, renderer = hf_generation.request_for(
            [item.text for item in inputs], given, single=False, random_seed=random_seed, adapters=self.adapters
        )
        answers: list[Any] = self.run_here(self._asked(request, renderer))
        return answers

    @property
    def full_parameters(self) -> dict[str, Any]:
        """As many tokens as the archive says: up to where the next one could be another on another host."""
        return {"max_new_tokens": self.serving["example_tokens"], "return_full_text": False}

    def compare(self, stored: Any, found: Any) -> float:
        """0 for the same text, else inf."""
        return 0.0 if stored == found else float("inf")

    def continuation(self, ids: Sequence[int], max_new_tokens: int, adapter: int = 0) -> list[int]:
        """The likeliest tokens behind the token ids `ids`, without the end token."""
        job = Job(ids, Sampling(max_new_tokens), adapter=adapter)
        self.engine.generate([job])
        return job.ids

    # ---- a request ----------------------------------------------------------------------------------------------------

    def read(self, row: Mapping[str, Any], headers: Mapping[str, Any]) -> Asked:
        document, form = self.document(row, headers, ALLOWED, MAX_BODY)
        with in_its_form(form):
            request, renderer = read_request(
                document,
                path_of(headers),
                max_inputs=self.serving["max_inputs"],
                chat=self._chat,
                calls=self._calls,
                model=self.model_name,
                random_seed=random_seed,
                spell=self._spell,
                adapters=self.adapters,
            )
            return replace(self._asked(request, renderer), form=form)

    def _asked(self, request: GenerationRequest, renderer: Renderer) -> Asked:
        jobs, grammar = self._jobs(request), request.grammar
        if grammar is None:
            return Asked(jobs, renderer, request.stream)
        if not self.backend.constrains:
            raise BadRequest(
                f"the runtime {self.backend.name} keeps no text to a grammar or to calls: ask for free text"
            )

        def constrain() -> None:
            constraint = self._grammars.compiled(grammar)
            for job in jobs:
                job.sampling = replace(job.sampling, constraint=constraint)

        return Asked(jobs, renderer, request.stream, prepare=constrain)

    def _jobs(self, request: GenerationRequest) -> list[Job]:
        deadline = self.deadline(request.max_time)
        self._check_tokens([token for token, _ in request.sampling.bias], "'logit_bias'")
        jobs = []
        for index, ids in enumerate(self._ids(request)):
            asked = request.sampling.max_new_tokens
            count = self._new_tokens(request.places[index], ids, asked, asked or request.default_new_tokens)
            seed = (request.sampling.seed + index) % SEEDS if request.sampling.do_sample else 0
            sampling = replace(request.sampling, max_new_tokens=count, seed=seed)
            special, adapter = request.keep_special, request.adapter
            jobs.append(Job(ids, sampling, request.stops, deadline, keep_special=special, adapter=adapter))
        return jobs

    def _ids(self, request: GenerationRequest) -> list[Sequence[int]]:
        """The token ids of each prompt; one that is sent several times is encoded once."""
        texts = list(dict.fromkeys(prompt for prompt in request.prompts if isinstance(prompt, str)))
        encoded = self.input.encoder.encode(
            [TextInput(text) for text in texts], truncate=False, special=request.special_tokens
        )
        of = {text: item.ids for text, item in zip(texts, encoded, strict=True)}
        for prompt, where in zip(request.prompts, request.places, strict=True):
            if not isinstance(prompt, str):
                self._check_tokens(prompt, where)
        return [of[prompt] if isinstance(prompt, str) else list(prompt) for prompt in request.prompts]

    def _check_tokens(self, ids: Sequence[int], where: str) -> None:
        most = self.input.encoder.tokenizer.get_vocab_size()
        if (wrong := next((one for one in ids if one >= most), None)) is not None:
            raise BadRequest(f"{where} has the token id {wrong}; this model has tokens from 0 to {most - 1}")

    def _spell(self, token: int) -> str:
        return str(self.input.encoder.tokenizer.decode([token], skip_special_tokens=False))

    def _new_tokens(self, where: str, ids: Sequence[int], asked: int, wanted: int | None) -> int:
        """How many tokens may be written behind `ids`; BadRequest with the numbers where that is too much."""
        limit: int = self.serving["max_length"]
        if not ids:
            raise BadRequest(f"{where} gives no tokens; at least one is needed")
        if len(ids) >= limit:
            raise BadRequest(
                f"{where} has {len(ids)} tokens; prompt and continuation together may have {limit}, "
                f"so that a prompt has at most {limit - 1}"
            )
        if asked and len(ids) + asked > limit:
            raise BadRequest(
                f"{where} has {len(ids)} tokens and {asked} new ones are asked for; together at most {limit} are "
                f"allowed: ask for {limit - len(ids)} or less"
            )
        return min(wanted or limit, limit - len(ids))


def _spread(count: int) -> list[int]:
    """1 … count, so ordered that any beginning of the list is spread over all of it (by reversed bits)."""
    width = count.bit_length()
    order = sorted(range(1 << width), key=lambda number: int(f"{number:0{width}b}"[::-1], 2))
    return [number for number in order if 1 <= number <= count]
