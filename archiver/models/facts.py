"""What a model directory is, found without reading its weights: by config.json, the module tree and the tensors' names.

No list of model types decides what is taken: transformers' auto class for the task knows the type, and the weight files
hold what that class needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archiver.models.config import CAUSAL, is_causal, model_class, read_config
from archiver.models.files import ModelDirectory, architecture_of, look_into, read_json, unusable
from archiver.models.inputs.pooling import Pooling, read_pooling
from archiver.models.inputs.tokenizer import check_vocabulary, read_vocabulary
from archiver.models.tensors import FLOATS, LEGACY_BUFFERS, TensorInfo, main_float

# Tokens, where neither a table of positions nor config.json bounds a text (ALiBi, recurrent models).
UNBOUNDED = 1_048_576
_BOUNDS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "n_ctx",
    "seq_length",
)  # families differ in the name


@dataclass(frozen=True)
class ModelFacts:
    """A model directory's sizes, tokens and labels.

    architecture: the class config.json names, or None
    num_parameters: floating point values in the weight files; weight_bytes: what they take there
    dtype: the type that most of these bytes have: "float32", "bfloat16", "float16" or "float64"
    vocab_size: rows of the token embeddings; 0 where the model takes no token ids
    id2label: {} where no classification head is wanted; problem_type: what the head was trained for, as config.json says
    max_positions: the most tokens of one input; UNBOUNDED where nothing bounds them
    pad_token_id: what shorter inputs of a batch are filled with
    causal: each token sees those before it alone
    end_token_ids: those that end a causal model's text
    """

    model_type: str
    architecture: str | None
    num_parameters: int
    weight_bytes: int
    dtype: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    id2label: dict[int, str]
    problem_type: str | None
    max_positions: int
    pad_token_id: int
    causal: bool
    pooling: Pooling
    end_token_ids: tuple[int, ...] = ()

    @property
    def num_labels(self) -> int:
        """Outputs of the classification head."""
        return len(self.id2label)

    @property
    def multi_label(self) -> bool:
        """Each label is scored by itself (sigmoid), not against the others (softmax)."""
        return self.problem_type == "multi_label_classification"


def inspect_model(
    path: Path,
    auto_class: str = "AutoModel",
    *,
    base_only: bool | None = None,
    task: str | None = None,
    input_name: str = "input_ids",
) -> ModelFacts:
    """The facts of a model directory as one of transformers' auto classes loads it.

    Args:
        path: the directory.
        auto_class: the class's name, as "AutoModelForSequenceClassification".
        base_only: the model without head and pooler is wanted. Default: for AutoModel.
        task: what messages call the purpose. Default: the auto class.
        input_name: the model's main input; with "input_ids" a tokenizer is needed.
    Raises: UnsupportedModelError that lists every problem found.
    """
    base_only = auto_class == "AutoModel" if base_only is None else base_only
    path, problems = Path(path), list[str]()
    directory = look_into(path, problems)
    tokenizer = read_vocabulary(path, problems) if input_name == "input_ids" else {}
    _check_types(directory.tensors, problems)
    facts = None
    if directory.config and directory.tensors:
        purpose = task or auto_class
        facts = _facts(directory, auto_class, base_only, purpose, input_name, tokenizer, problems)
    if problems or facts is None:
        raise unusable(path, problems)
    return facts


def _facts(
    directory: ModelDirectory,
    auto_class: str,
    base_only: bool,
    purpose: str,
    input_name: str,
    tokenizer: dict[str, int],
    problems: list[str],
) -> ModelFacts | None:
    raw, path = directory.config, directory.path
    labelled = "Classification" in auto_class and not base_only
    labels = _id2label(raw, problems) if labelled else {}
    known = len(problems)
    config = read_config(path, raw, auto_class, problems)
    cls = None
    if config is not None:
        cls, config = model_class(config, auto_class, problems, input_name, directory.tensors)
    if cls is None or len(problems) > known:
        return None
    from archiver.models.checkpoint import match_checkpoint, model_options

    try:
        options = model_options(cls, config, base_only, input_name, directory.tensors)
        checkpoint = match_checkpoint(cls, config, directory.tensors, options=options)
    except ValueError as error:
        problems.append(f"transformers cannot make {cls.__name__} from config.json and these weights: {error}")
        return None
    model, causal = checkpoint.model, is_causal(checkpoint.model)
    if model.main_input_name != input_name:
        problems.append(
            f"{cls.__name__} takes {model.main_input_name}; {purpose} needs a model that takes {input_name}"
        )
        return None
    if auto_class == CAUSAL and not causal:
        problems.append(
            f"model_type {config.model_type!r} is an encoder, whose tokens see those behind them too: {purpose} needs a "
            "model with causal attention"
        )
        return None
    if not base_only:
        _check_head(cls.__name__, raw, checkpoint.head, purpose, problems)
    problems += checkpoint.problems
    floats = [info for info in directory.tensors.values() if info.dtype in FLOATS]
    text, rows = config.get_text_config(), _embedding_rows(model)
    if input_name == "input_ids" and not rows:
        problems.append(f"{cls.__name__} has no table of token embeddings: such models are not supported")
        return None
    check_vocabulary(tokenizer, rows, problems)
    ends = end_tokens(path, getattr(text, "eos_token_id", None), problems) if causal else ()
    if labelled and "id2label" not in raw:
        labels = dict(config.id2label)
    if labelled and config.problem_type == "regression" and len(labels) > 1:
        problems.append(f"problem_type regression with {len(labels)} outputs is not supported; allowed: 1 output")
    return ModelFacts(
        model_type=config.model_type,
        architecture=architecture_of(raw),
        num_parameters=sum(info.elements for info in floats),
        weight_bytes=sum(info.size for info in floats),
        dtype=main_float(directory.tensors),
        num_layers=int(getattr(text, "num_hidden_layers", None) or 0),
        hidden_size=int(getattr(text, "hidden_size", None) or 0),
        vocab_size=rows,
        id2label=labels,
        problem_type=config.problem_type,
        max_positions=_max_positions(text, model, problems),
        pad_token_id=_pad_token(path, getattr(text, "pad_token_id", None), tokenizer, ends, rows, problems),
        causal=causal,
        pooling=read_pooling(path, causal=causal, problems=problems) if base_only else Pooling(),
        end_token_ids=tuple(token for token in ends if token < rows),
    )


def _check_types(tensors: Mapping[str, TensorInfo], problems: list[str]) -> None:
    """Integers, other than masks and positions that old checkpoints carry, are weights quantized already."""
    types = {info.dtype for name, info in tensors.items() if info.elements > 1 and not name.endswith(LEGACY_BUFFERS)}
    if quantized := sorted(types - {*FLOATS, "I64", "I32", "BOOL"}):
        problems.append(f"its weights hold {', '.join(quantized)} tensors; allowed: {', '.join(FLOATS)}")


def _check_head(cls: str, raw: Mapping[str, Any], missing: Sequence[str], purpose: str, problems: list[str]) -> None:
    """The head's weights are there, and those of the class that config.json names: heads of two tasks may look alike."""
    architecture = architecture_of(raw)
    ours, theirs = _head_of(cls), _head_of(architecture or "")
    if missing or (theirs and theirs != ours):
        shown = ", ".join(missing[:4]) + (" …" if len(missing) > 4 else "") or cls
        problems.append(
            f"it has no head for {purpose} ({shown}; its architecture is {architecture}): give a model "
            "fine-tuned for it, or use another task"
        )


def _head_of(architecture: str) -> str:
    """ "SequenceClassification" of BertForSequenceClassification; "" for a class without head."""
    return "CausalLM" if architecture.endswith("LMHeadModel") else architecture.partition("For")[2]


def _embedding_rows(model: Any) -> int:
    """Rows of the token embeddings; 0 where the model's inputs are no tokens."""
    try:
        weight = getattr(model.get_input_embeddings(), "weight", None)
    except NotImplementedError:  # a model that hashes characters has no table
        return 0
    return int(weight.shape[0]) if weight is not None and weight.dim() == 2 else 0


def _max_positions(config: Any, model: Any, problems: list[str]) -> int:
    """What config.json bounds a text to; fewer where a table's first positions, up to padding_idx, are no token's."""
    import torch

    # XLNet says -1 for no bound.
    stated = next((value for name in _BOUNDS if (value := getattr(config, name, None)) not in (None, -1)), UNBOUNDED)
    if type(stated) is not int or stated < 2:
        problems.append(f"config.json: max_position_embeddings is {stated!r}; allowed: a whole number from 2")
        return 0
    tables = [
        module.num_embeddings - module.padding_idx - 1
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding)
        and module.padding_idx is not None
        and "position" in name.rpartition(".")[2]
    ]
    return min([stated, *tables])


def _pad_token(
    path: Path, stated: Any, tokenizer: dict[str, int], ends: Sequence[int], rows: int, problems: list[str]
) -> int:
    """config.json's padding token; else the tokenizer's; else one that ends a text; else 0: padding is masked."""
    file = path / "tokenizer_config.json"
    token = read_json(file, problems).get("pad_token") if file.is_file() else None
    name = token.get("content") if isinstance(token, dict) else token
    candidates = [stated, tokenizer.get(str(name)), *ends]
    return next((found for found in candidates if type(found) is int and 0 <= found < rows), 0)


def end_tokens(path: Path, stated: Any, problems: list[str]) -> tuple[int, ...]:
    """The ids that end a text: generation_config.json's where it names some (chat models end turns), else config's.

    Args:
        stated: eos_token_id of config.json, a number, a list or None.
    """
    found, file = stated, path / "generation_config.json"
    if file.is_file():
        found = read_json(file, problems).get("eos_token_id", found)
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(token) is int and token >= 0 for token in ids):
        problems.append(f"eos_token_id is {found!r}; allowed: a token's id, or a list of ids")
        return ()
    return tuple(ids)


def _id2label(config: Mapping[str, Any], problems: list[str]) -> dict[int, str]:
    """{id: name} as config.json has it, every id from 0 and every name once; {} where it names none."""
    raw = config.get("id2label")
    if raw is None:
        return {}
    try:
        labels = {int(index): str(name) for index, name in raw.items()}
    except (AttributeError, ValueError):
        problems.append("config.json: id2label must map ids (0, 1, ...) to names")
        return {}
    if sorted(labels) != list(range(len(labels))):
        problems.append(f"config.json: id2label has the ids {sorted(labels)[:10]}; allowed: 0, 1, … without a gap")
    elif len(set(labels.values())) < len(labels):
        problems.append("config.json: id2label gives one name to several ids: give each its own")
    return dict(sorted(labels.items()))
