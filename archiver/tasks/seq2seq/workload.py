"""A recipe's encoder-decoder and its pairs of texts: what it learns from, how good what it writes is, what is served."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from archiver.data.text.pairs import Pair, read_pairs
from archiver.evaluation.speed import Speed
from archiver.tasks.base import load_object
from archiver.tasks.seq2seq.tasks import Seq2SeqTask
from archiver.tasks.workload import MAX_EXAMPLES, TOLERANCE_FP32, TOLERANCE_INT8, Arrays, Batch, Workload
from handlers.inputs.text import Encoded, Encoder, Text, TextInput

if TYPE_CHECKING:
    import torch

    from archiver.architecture.tracing import SourceExample
    from archiver.models.facts import ModelFacts
    from archiver.models.source import ModelSource
    from archiver.spec import Recipe

MEASURED = 200  # validation examples that are answered for the metrics, the first ones
_POOL = 50  # batches are cut from pools of this many, sorted by length
# Speed as served: so many texts at once, each written to so many tokens.
TEXTS, WRITTEN, BATCHES, ROUNDS = 16, 32, 2, 3


@dataclass
class Seq2SeqWorkload(Workload):
    """A workload whose module gives logits for a given target.

    Attributes:
        train: training pairs. rules: how the model writes, as `generation_rules` gives them.
    """

    task: Seq2SeqTask
    train: list[Pair] = field(default_factory=list)
    rules: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        task: Seq2SeqTask,
        recipe: Recipe,
        source: ModelSource,
        facts: ModelFacts,
        validation: list[Any],
        train: list[Any],
    ) -> Self:
        """Load the model and read how it writes."""
        from archiver.models.inputs.generation import generation_rules, target_places
        from archiver.models.load import load_model
        from handlers.architecture.outputs.seq2seq import Seq2Seq

        model: Any = load_model(source, task.auto_class)
        rules = generation_rules(model, target_places(model) - 1)
        heads = getattr(model.generation_config, "alignment_heads", None) or ()
        module = Seq2Seq(model, task.input_name, heads).eval()
        return cls(task, recipe, source, facts, validation, model, module, copy.deepcopy(module), train, rules)

    @property
    def values(self) -> list[TextInput]:
        """What requests would send to have the first validation examples answered."""
        return [TextInput(pair.source) for pair in self.examples[:MEASURED]]

    def writer(self, module: torch.nn.Module, serving: Mapping[str, Any] | None = None) -> Any:
        """The task's handler over a torch module in this process: it reads and writes as the served one."""
        from handlers.runtimes.torch_seq2seq import TorchSeq2Seq

        made: Any = load_object(self.task.handler)
        inner: Any = module
        handler = type("Here", (made,), {"runtime": lambda *_: TorchSeq2Seq.of_model(inner.model)})()
        session = {"int8": False}
        handler.serving = {"session": session, "max_inputs": MEASURED, **self.serving(session)}
        handler.input = Text(self.encoder)
        handler.load(Path(), 1)
        return handler

    @property
    def encoder(self) -> Encoder:
        """The source's tokenizer, as requests meet it."""
        return Encoder(self.tokenizer_json, max_length=self.recipe.serve.max_length, pad_id=self.pad_id)

    # ---- quality ------------------------------------------------------------------------------------------------------

    def _texts(self, handler: Any) -> list[str]:
        return [answer[self.task.answer] for answer in handler.respond(self.values, {"do_sample": False})]

    def _written_by(self, module: torch.nn.Module) -> list[str]:
        handler = self.writer(module)
        try:
            return self._texts(handler)
        finally:
            handler.engine.close()

    def _metrics(self, texts: list[str]) -> dict[str, float]:
        from archiver.evaluation.metrics.seq2seq import seq2seq_metrics

        return seq2seq_metrics(texts, self._original_texts, [pair.target for pair in self.examples[:MEASURED]])

    @cached_property
    def _original_texts(self) -> list[str]:
        return self._written_by(self.original)

    def measure(self) -> dict[str, float]:
        return self._metrics(self._written_by(self.module))

    @cached_property
    def original_metrics(self) -> dict[str, float]:
        return self._metrics(self._original_texts)

    def measure_served(self, handler: Any, way: Any, folder: Path) -> dict[str, float]:
        return self._metrics(self._texts(handler))

    @property
    def extent(self) -> dict[str, int]:
        return {"examples": len(self.values), "max_length": self.recipe.serve.max_length}

    # ---- data ---------------------------------------------------------------------------------------------------------

    def calibration_batches(self, samples: int) -> list[Batch]:
        pairs = self.train[:samples]
        return [self._batch([item], [target]) for item, target in zip(*self._encoded(pairs), strict=True)]

    def training_batches(self, batch_size: int, seed: int) -> list[Batch]:
        import torch

        items, targets = self._encoded(self.train)
        order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist()
        batches: list[Batch] = []
        for start in range(0, len(order), batch_size * _POOL):
            pool = sorted(order[start : start + batch_size * _POOL], key=lambda i: len(items[i].ids))
            for first in range(0, len(pool), batch_size):
                members = pool[first : first + batch_size]
                batches.append(self._batch([items[i] for i in members], [targets[i] for i in members]))
        return batches

    def _encoded(self, pairs: Sequence[Pair]) -> tuple[list[Encoded], list[list[int]]]:
        """Sources, and targets as the decoder should write them: with the end token, in the places that it has."""
        encoder, most = self.encoder, self.max_target
        targets = [found.ids[:most] for found in encoder.encode([TextInput(pair.target or "") for pair in pairs])]
        return encoder.encode([TextInput(pair.source) for pair in pairs]), targets

    def _batch(self, items: Sequence[Encoded], targets: Sequence[list[int]]) -> dict[str, torch.Tensor]:
        import torch

        arrays = self.encoder.pad(items, max(len(item.ids) for item in items))
        start, longest = self.rules["start"], max(map(len, targets))
        shape = (len(items), len(start) + longest - 1)
        given = np.full(shape, self.pad_id, np.int64)
        labels, real = np.full(shape, -100, np.int64), np.zeros(shape, np.int64)
        for row, target in enumerate(targets):
            count = len(start) - 1 + len(target)
            given[row, :count] = [*start, *target[:-1]]
            labels[row, len(start) - 1 : count] = target
            real[row, :count] = 1
        decoder = {"decoder_input_ids": given, "decoder_attention_mask": real, "labels": labels}
        batch = {name: arrays[name] for name in ("input_ids", "attention_mask")} | decoder
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    @cached_property
    def train_digest(self) -> str:
        return hashlib.sha256(repr(self.train).encode()).hexdigest()

    # ---- speed --------------------------------------------------------------------------------------------------------

    def speed_batches(self) -> list[Arrays]:
        return self._speed_batches()

    def original_speed_batches(self) -> list[Arrays]:
        return self._speed_batches()

    def _speed_batches(self) -> list[Arrays]:
        items = sorted(self.encoder.encode(self.values), key=lambda item: len(item.ids))
        groups = [items[start : start + TEXTS] for start in range(0, len(items), TEXTS)][
            :: -(-len(items) // TEXTS // BATCHES) or 1
        ]
        found: list[Arrays] = []
        for group in groups[:BATCHES]:
            batch = self._batch(group, [item.ids[: self.max_target] for item in group])
            found.append({name: value.numpy() for name, value in batch.items() if name != "labels"})
        return found

    def items_of(self, batch: Any) -> int:
        return int(batch["decoder_attention_mask"].sum())

    def speed(self, handler: Any) -> Speed:
        """Tokens written per second against transformers' generate on the fp32 original, in turns in one run."""
        import torch

        from handlers.generation.seq2seq.backend import SourceJob
        from handlers.generation.seq2seq.rules import Rules
        from handlers.protocols.continuation import Sampling
        from handlers.tasks.text.seq2seq import rules_from

        written = min(WRITTEN, self.max_target)
        fixed = {"max_new_tokens": written, "min_new_tokens": written, "num_beams": 1, "do_sample": False}
        rules = rules_from(self.rules | fixed | {"last": []}, Rules)
        batches = self._speed_batches()

        def original(model: Any, batch: Arrays) -> None:
            ids, mask = (torch.from_numpy(batch[name]).to(model.device) for name in ("input_ids", "attention_mask"))
            with torch.inference_mode():
                model.generate(ids, attention_mask=mask, forced_eos_token_id=None, **fixed)

        def served(batch: Arrays) -> None:
            rows = [
                row[real > 0].tolist() for row, real in zip(batch["input_ids"], batch["attention_mask"], strict=True)
            ]
            jobs = [SourceJob((), Sampling(written), item=Encoded(ids, [0] * len(ids)), rules=rules) for ids in rows]
            handler.engine.generate(jobs)

        seconds: dict[str, list[float]] = {"original": [], "served": []}
        with self.timed_original() as module:
            sides = (("original", partial(original, module.get_submodule("model"))), ("served", served))
            for turn in range(ROUNDS + 1):
                for name, run in sides:
                    started = time.perf_counter()
                    for batch in batches:
                        run(batch)
                    if turn:
                        seconds[name].append(time.perf_counter() - started)
        tokens = written * sum(len(batch["input_ids"]) for batch in batches)
        return Speed(tokens / median(seconds["original"]), tokens / median(seconds["served"]))

    # ---- the archive --------------------------------------------------------------------------------------------------

    @property
    def max_target(self) -> int:
        """Most tokens of an answer."""
        from archiver.models.inputs.generation import target_places

        return target_places(self.model) - len(self.rules["start"])

    def tracing_example(self) -> SourceExample:
        """What the exporters trace the model with: two sources of different lengths."""
        import torch

        from archiver.architecture.tracing import SourceExample

        rows = self.facts.vocab_size
        ids = torch.randint(0, rows, (2, 7), generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(ids)
        mask[1, 4:] = 0
        return SourceExample({"input_ids": ids.masked_fill(mask == 0, self.pad_id), "attention_mask": mask})

    def write_inputs(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_bytes(self.tokenizer_json)

    def serving(self, session: Mapping[str, Any]) -> dict[str, Any]:
        from archiver.models.inputs.languages import language_tokens

        serve = self.recipe.serve
        return {
            "max_length": serve.max_length,
            "max_target": self.max_target,
            "max_running": serve.batch_size,
            "max_queue": serve.max_queue,
            "deadline_s": serve.deadline_s,
            "pad_id": self.pad_id,
            "answer": self.task.answer,
            "generation": self.rules,
            "languages": language_tokens(self.tokenizer_json),
            "tolerance": TOLERANCE_INT8 if session["int8"] else TOLERANCE_FP32,
            "example_tokens": 16,
        }

    def choose_examples(self, handler: Any) -> tuple[list[TextInput], dict[str, Any]]:
        """Sources whose answer no rounding changes, as far as it is stored: see `decided`."""
        from archiver.tasks.seq2seq.examples import choose_sources

        wanted = self.recipe.serve.examples
        values, count = self.values, MAX_EXAMPLES
        if isinstance(wanted, Path):
            values = [TextInput(pair.source) for pair in read_pairs(wanted)][:MAX_EXAMPLES]
        else:
            count = wanted
        sources, tokens = choose_sources(handler, self.model, values, count)
        return sources, {"example_tokens": tokens}
