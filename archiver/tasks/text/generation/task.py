"""text-generation: a prompt continued token by token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archiver.data.text.windows import CONTEXT, VALIDATION_WINDOWS, read_text, windows_of
from archiver.tasks.base import GENERATE, Metric, Task, engine_server, limit_line

if TYPE_CHECKING:
    import torch

    from archiver.models.facts import ModelFacts
    from archiver.models.source import ModelSource
    from archiver.spec import Recipe, ServeSpec

_STARTER = """
# Fill in your text and uncomment: then the model can be calibrated, and the gate can measure what it lost.
# data:
#   train: train.txt            # plain text, relative to this file; or hub://name[/config]:split, or embedded:cpython
#   validation: validation.txt  # what the gate is measured on: its first 200 windows at most
#   context: {context}                # tokens of one window
#   windows: auto               # as many as it takes to be sure; all: every one of the 200

compress:
  - quantize: {{method: weight-only, bits: 8}}

# gate:                         # a bound that is missed, or cannot be measured, means no archive
#   max_increase: {{perplexity: 0.02}}        # relative to the original model's, on data.validation
#   max_size_mb: 50             # of the archive
"""

_SERVE = """\
  batch_size: 32                # texts that are written at once; a new one joins at the next token
  max_queue: 128                # prompts that may wait for a place; beyond, 503
  deadline_s: 120               # a text ends here at the latest
  kv_cache: u8                  # or bf16, f16, f32: keys and values in memory
  # draft: ./smaller-model      # guesses tokens that this model checks; kept only if that measures faster
  # prompt_lookup: true         # guesses them from the prompt; likewise
  # adapters: {my-adapter: ./lora-folder}   # LoRA, as peft saves it; a request picks one by its name"""


def context_of(recipe: Recipe, facts: ModelFacts) -> int:
    """Tokens of one window: what the recipe says, else 256, or as many as the model has positions for."""
    return recipe.data.context or min(CONTEXT, facts.max_positions)


class TextGeneration(Task):
    """outputs [rows, length, vocabulary] at each place are about the token behind it; labels are the input ids."""

    name = "text-generation"
    auto_class = "AutoModelForCausalLM"
    architectures = ("ForCausalLM", "LMHeadModel")
    execution = GENERATE
    metrics = {
        "perplexity": Metric(higher_is_better=False),  # exp of the mean negative log-likelihood a predicted token
        "cross_entropy": Metric(higher_is_better=False),  # that mean, in nats
        "agreement": Metric(),  # share of next tokens (the likeliest one) equal to the original model's
    }
    headlines = ("perplexity", "agreement")
    fine = ("cross_entropy", "perplexity", "agreement")
    columns = ("text",)
    predicts_tokens = True
    plain_text = True
    batched = False  # a runtime's own batch, which texts join and leave token by token
    data_keys = ("context", "windows")
    serve_keys = (
        "max_length",
        "max_queue",
        "deadline_s",
        "kv_cache",
        "cache_mb",
        "draft",
        "adapters",
        "prompt_lookup",
        "assistant_tokens",
    )
    unit = "tokens"
    batches = "written in 8 streams at once"
    workload = "archiver.tasks.text.generation.workload:GenerationWorkload"
    handler = "handlers.tasks.text.generation:TextGenerationHandler"
    starter = _STARTER
    starter_serve = _SERVE

    def read(self, where: Path | str, recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[Any]:
        """One text, which must fill at least one window."""
        text = read_text(where, str(recipe.data.columns.get("text", "text")))
        context = context_of(recipe, facts)
        if 2 <= context <= facts.max_positions:
            windows_of(text, (source.path / "tokenizer.json").read_bytes(), context)
        return [text]

    def tokens(self, examples: Sequence[Any], recipe: Recipe, facts: ModelFacts, source: ModelSource) -> int | None:
        tokenizer = (source.path / "tokenizer.json").read_bytes()
        return sum(windows_of(text, tokenizer, context_of(recipe, facts)).size for text in examples)

    def measured_tokens(self, tokens: int, recipe: Recipe, facts: ModelFacts) -> int:
        """Of the windows that may be read; half of them, where a sample may do."""
        most = min(tokens, VALIDATION_WINDOWS * context_of(recipe, facts))
        return most if recipe.data.windows == "all" else most // 2

    def tokens_of_one(self, recipe: Recipe, facts: ModelFacts) -> int:
        return context_of(recipe, facts)

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        from archiver.compression.retrain.objectives import IGNORED, cross_entropy

        return cross_entropy(outputs, functional.pad(labels[:, 1:], (0, 1), value=IGNORED))

    def distance(
        self, outputs: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, temperature: float
    ) -> torch.Tensor:
        from archiver.compression.retrain.objectives import softened_divergence

        if mask is not None and not bool(mask.all()):
            outputs, teacher = outputs[mask.bool()], teacher[mask.bool()]
        return softened_divergence(outputs, teacher, temperature).mean()

    def check(self, recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[str]:
        from archiver.models.inputs.chat_template import read_chat_template

        read_chat_template(source.path)
        problems = []
        if recipe.data.context is not None and recipe.data.context > facts.max_positions:
            problems.append(
                f"data.context is {recipe.data.context}; {source.source} has positions for {facts.max_positions} tokens: "
                "set data.context to at most that"
            )
        if recipe.serve.draft is not None:
            problems += self._draft_problems(recipe.serve.draft, source, facts)
        return problems

    def _draft_problems(self, draft: Path, source: ModelSource, facts: ModelFacts) -> list[str]:
        """What keeps the model in the folder `draft` from guessing for this one."""
        from archiver.models.facts import inspect_model

        found = inspect_model(draft, self.auto_class, task=self.name)
        if found.vocab_size != facts.vocab_size:
            return [
                f"serve.draft {draft.name} has {found.vocab_size} tokens, the model {facts.vocab_size}: they must be equal"
            ]
        if (draft / "tokenizer.json").read_bytes() != (source.path / "tokenizer.json").read_bytes():
            return [f"serve.draft {draft.name}: its tokenizer.json is not the model's own; both need the same tokens"]
        return []

    def server_config(self, serve: ServeSpec) -> dict[str, Any]:
        return engine_server(serve)

    def summary(self, facts: ModelFacts) -> list[str]:
        ends = "token " + " or ".join(map(str, facts.end_token_ids)) if facts.end_token_ids else "no token of its own"
        return [f"a decoder with {facts.vocab_size} tokens; a text ends with {ends}"]

    def starter_body(self, facts: ModelFacts) -> str:
        return self.starter.format(context=min(CONTEXT, facts.max_positions))

    def starter_limits(self, facts: ModelFacts) -> str:
        return limit_line(min(512, facts.max_positions), "of a prompt and its continuation together")
