"""`init`: look at a model directory and write a commented recipe for it, which builds as it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path

from archiver.errors import UnsupportedModelError
from archiver.models.facts import ModelFacts
from archiver.models.source import resolve_model
from archiver.recipe.yaml_tree import Node, Problems, read_yaml
from archiver.tasks.base import TASKS
from archiver.tasks.loading import default_task, inspect_model


def write_recipe(model_dir: Path | str, task: str | None = None) -> str:
    """A recipe's YAML text for a model directory (or an embedded model's id), `model:` written as it was given.

    task: None for the one the model is made for
    raises UnsupportedModelError that lists why the model cannot be used
    """
    given = str(model_dir)
    if task is not None and task not in TASKS:
        raise UnsupportedModelError(f"task {task!r} is not supported; allowed: {', '.join(TASKS)}")
    if not given.startswith("embedded:") and not Path(given).is_dir():
        raise UnsupportedModelError(f"{given} is no directory: name one that holds config.json and model.safetensors")
    source = resolve_model(given if given.startswith("embedded:") else Path(given))
    task = task or default_task(source.path)
    facts, writes = inspect_model(source.path, task), task == "text-generation"
    name = _yaml_string(_name(source.source))
    body = {"text-classification": _CLASSIFICATION, "feature-extraction": _EMBEDDING, "text-generation": _LANGUAGE}[
        task
    ]
    return _HEAD.format(
        name=name,
        task=task,
        model=_yaml_string(given),
        summary=_summary(facts, writes),
        data=body.format(context=min(256, facts.max_positions)) if writes else body,
        max_length=_max_length(facts, writes),
        long="longer inputs are cut" if not writes else "of a prompt and its continuation together",
        runtime="auto                 # or openvino, "
        + ("onnxruntime, torch" if not writes else "torch; vllm on a host with a GPU"),
        batches=_SERVE_BATCHES if not writes else _SERVE_TEXT,
    )


def _name(source: str) -> str:
    """An archive's name made of a folder's: what is not allowed in one becomes a dash."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", source.rpartition("/")[2]).strip("._-")
    return name[:128] or "model"


def _yaml_string(text: str) -> str:
    """`text` bare where YAML reads it back as it is, else quoted."""
    problems = Problems()
    node = read_yaml(f"key: {text}", "key", Path(), problems)
    read = node.value.get("key") if node is not None and isinstance(node.value, dict) else None
    plain = not problems and isinstance(read, Node) and read.value == text
    return text if plain else json.dumps(text, ensure_ascii=False)


def _summary(facts: ModelFacts, writes: bool) -> str:
    lines = [
        f"{facts.architecture or facts.model_type}: {facts.num_parameters / 1e6:.1f} M parameters, "
        f"{facts.num_layers} layers of {facts.hidden_size}, {facts.weight_bytes / 1e6:.0f} MB of {facts.dtype} weights, "
        f"at most {facts.max_positions} tokens"
    ]
    if writes:
        lines.append(f"a language model with {facts.vocab_size} tokens; a text ends with {_ends(facts)}")
    elif facts.id2label:
        names = list(facts.id2label.values())
        # One line each, whatever a label holds: it stands in a comment.
        shown = ", ".join(json.dumps(name, ensure_ascii=True)[1:-1] for name in names[:8])
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        lines.append(f"{'labels, each scored by itself' if facts.multi_label else 'labels'}: {shown}{more}")
    else:
        ending = ", then L2 normalisation" if facts.pooling.normalize else ""
        origin = "modules.json" if facts.pooling.declared else "the default, as there is no modules.json"
        lines.append(f"pooling: {facts.pooling.mode}{ending} ({origin})")
    return "\n".join(f"# {line}" for line in lines)


def _ends(facts: ModelFacts) -> str:
    return "token " + " or ".join(map(str, facts.end_token_ids)) if facts.end_token_ids else "no token of its own"


def _max_length(facts: ModelFacts, writes: bool) -> int:
    """sentence-transformers' own limit where it states one; else 128, which covers most short texts; a decoder: 512."""
    if writes:
        return min(512, facts.max_positions)
    return max(4, min(facts.pooling.max_seq_length or 128, facts.max_positions))


_HEAD = """\
{summary}
name: {name}
version: "1.0"
task: {task}
model: {model}
{data}
serve:
  runtime: {runtime}
  device: cpu                   # or cuda
  workers: auto                 # with threads, from the cores the serving container has
{batches}
  max_length: {max_length}               # tokens; {long}
  max_inputs: 64                # most inputs in one request
  examples: 4                   # answered and stored in the archive, for verify and warm-up; or a file of texts
"""

_SERVE_BATCHES = """\
  batch_size: 32                # requests that one worker gets at once
  max_batch_delay_ms: 2         # a lone request waits this long for company"""

_SERVE_TEXT = """\
  batch_size: 32                # texts that are written at once; a new one joins at the next token
  max_queue: 128                # prompts that may wait for a place; beyond, 503
  deadline_s: 120               # a text ends here at the latest
  kv_cache: u8                  # or bf16, f16, f32: keys and values in memory
  # draft: ./smaller-model      # guesses tokens that this model checks; kept only if that measures faster
  # prompt_lookup: true         # guesses them from the prompt; likewise"""

_CLASSIFICATION = """
# Fill in your data and uncomment: then the model can be calibrated, and the gate can measure what it lost.
# data:
#   train: train.tsv            # .tsv, .csv, .jsonl or .txt, relative to this file; or hub://name[/config]:split
#   validation: dev.tsv         # what the gate is measured on
#   columns: {text: 0, label: 1}      # positions where the file has no header, else names; text_pair for pairs

compress:
  - quantize: {method: weight-only, bits: 8}
  # - quantize: {method: static-int8}  # faster; calibrated on data.train. Use it instead of weight-only

# gate:                         # a bound that is missed, or cannot be measured, means no archive
#   max_drop: {accuracy: 0.01}  # 0.01 is one point, against the original model on data.validation
#   min_speedup: 2.0            # against PyTorch eager fp32
#   max_size_mb: 50             # of the archive
"""

_EMBEDDING = """
# Fill in your data and uncomment: then the model can be calibrated, and the gate can measure what it lost.
# data:
#   train: embedded:cpython     # English text that Python ships; better: your own texts, one a line in a .txt
#   validation: embedded:cpython      # what the gate is measured on

compress:
  - quantize: {method: weight-only, bits: 8}
  # - quantize: {method: static-int8}  # calibrated on data.train. Use it instead of weight-only

# gate:                         # a bound that is missed, or cannot be measured, means no archive
#   min: {cosine: 0.99, recall@10: 0.95}      # against the original model's vectors, on data.validation
#   min_speedup: 2.0            # against PyTorch eager fp32
#   max_size_mb: 50             # of the archive
"""

_LANGUAGE = """
# Fill in your text and uncomment: then the model can be calibrated, and the gate can measure what it lost.
# data:
#   train: train.txt            # plain text, relative to this file; or hub://name[/config]:split, or embedded:cpython
#   validation: validation.txt  # what the gate is measured on: its first 200 windows
#   context: {context}                # tokens of one window

compress:
  - quantize: {{method: weight-only, bits: 8}}

# gate:                         # a bound that is missed, or cannot be measured, means no archive
#   max_increase: {{perplexity: 0.02}}        # relative to the original model's, on data.validation
#   max_size_mb: 50             # of the archive
"""
