"""What a model directory holds, found without loading it: config.json, the tokenizer and the safetensors headers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archiver.errors import RecipeError, UnsupportedModelError
from archiver.models.decoder_facts import DECODERS, read_decoder
from archiver.models.files import read_json, read_tensors, weight_files
from archiver.models.pooling import Pooling, read_pooling
from archiver.models.safetensors_header import TensorInfo
from archiver.models.tokenizer import check_vocabulary, read_vocabulary
from archiver.tasks.base import TASKS


@dataclass(frozen=True)
class Family:
    """What models of one model_type have in common.

    prefix: of the encoder's tensors in a model with a head; head: tensors of the classification head
    padded_positions: position ids begin behind padding_idx, so that many positions are no tokens' (RoBERTa)
    token_types: the encoder tells segments of a pair apart; pooler: the class takes add_pooling_layer
    """

    prefix: str
    head: tuple[str, ...]
    pad_token_id: int = 0
    padded_positions: bool = False
    token_types: bool = False
    pooler: bool = False


_OUT_PROJ = ("classifier.dense.weight", "classifier.out_proj.weight")
_ROBERTA = Family("roberta.", _OUT_PROJ, pad_token_id=1, padded_positions=True, pooler=True)
FAMILIES: dict[str, Family] = {
    "bert": Family("bert.", ("classifier.weight",), token_types=True, pooler=True),
    "distilbert": Family("distilbert.", ("pre_classifier.weight", "classifier.weight")),
    "electra": Family("electra.", _OUT_PROJ, token_types=True),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
}
PROBLEM_TYPES = (None, "single_label_classification", "multi_label_classification", "regression")
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class ModelFacts:
    """architecture: the class config.json names, or None; id2label: {} for a model without classification head
    num_parameters: floating point values in the weight files; weight_bytes: what they take there
    max_positions: the most tokens of one input; pad_token_id: what shorter inputs of a batch are filled with
    has_token_type_ids: the encoder needs token_type_ids for pairs; end_token_ids: those that end a decoder's text
    """

    model_type: str
    architecture: str | None
    num_parameters: int
    weight_bytes: int
    num_layers: int
    hidden_size: int
    vocab_size: int
    num_labels: int
    id2label: dict[int, str]
    problem_type: str | None
    max_positions: int
    pad_token_id: int
    has_token_type_ids: bool
    pooling: Pooling
    end_token_ids: tuple[int, ...] = ()

    @property
    def decoder(self) -> bool:
        """It predicts the next token: a model for text-generation, and for nothing else here."""
        return self.model_type in DECODERS

    @property
    def multi_label(self) -> bool:
        """Each label is scored by itself (sigmoid), not against the others (softmax)."""
        return self.problem_type == "multi_label_classification"


def inspect_model(path: Path, task: str | None = None) -> ModelFacts:
    """The facts of a model directory, for one task or (None) whatever it can do.

    raises UnsupportedModelError that lists every problem found
    """
    path = Path(path)
    problems: list[str] = []
    if not path.is_dir():
        raise UnsupportedModelError(f"model {path.name} is no directory: name one with config.json and its weights")
    config: dict[str, Any] = {}
    if (path / "config.json").is_file():
        config = read_json(path / "config.json", problems)
    else:
        problems.append("it has no config.json: name the directory that save_pretrained wrote")
    tensors = read_tensors(weight_files(path, problems), problems)
    decoder = str(config.get("model_type")) in DECODERS
    family = _check_config(config, problems) if config else None
    tokenizer = read_vocabulary(path, problems)
    pooling = read_pooling(path, problems) if task != "text-classification" and not decoder else Pooling()
    facts = None
    if decoder and tensors:
        facts = _decoder_facts(path, config, tensors, tokenizer, task, problems)
    elif family is not None and tensors:
        facts = _facts(config, family, tensors, tokenizer, pooling, task, problems)
    if problems or facts is None:
        raise UnsupportedModelError(f"model directory {path.absolute().name!r} cannot be used:", problems)
    return facts


def default_task(facts: ModelFacts) -> str:
    """The task a model is made for: by its family, then text-classification when it has such a head."""
    if facts.decoder:
        return "text-generation"
    return "text-classification" if facts.id2label else "feature-extraction"


def check_max_length(facts: ModelFacts, max_length: int) -> None:
    """raises RecipeError when inputs of `max_length` tokens would exceed the model's positions."""
    if max_length > facts.max_positions:
        raise RecipeError(
            f"serve.max_length is {max_length}, the model has {facts.max_positions} positions: "
            f"set serve.max_length to {facts.max_positions} or less"
        )


def _check_config(config: dict[str, Any], problems: list[str]) -> Family | None:
    """The encoder's family; None for a decoder, or with a problem for what is neither."""
    model_type = config.get("model_type")
    decoder = str(model_type) in DECODERS
    if config.get("auto_map"):
        problems.append(
            "config.json names remote code (auto_map), which is never run: use a model that transformers knows"
        )
    if config.get("quantization_config"):
        problems.append("it is quantized already (quantization_config): give the original fp32, fp16 or bf16 model")
    if config.get("add_cross_attention") and decoder:
        problems.append("config.json gives it cross-attention (add_cross_attention): only pure decoders are supported")
    if decoder:
        return None
    if config.get("is_decoder") or config.get("add_cross_attention") or config.get("is_encoder_decoder"):
        problems.append("config.json makes it a decoder (is_decoder, add_cross_attention): only encoders are supported")
    if config.get("position_embedding_type", "absolute") != "absolute":
        problems.append(
            f"position_embedding_type {config['position_embedding_type']!r} is not supported; allowed: absolute"
        )
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        allowed = ", ".join([*FAMILIES, *DECODERS])
        problems.append(f"model_type {model_type!r} is not supported; allowed: {allowed}")
    return family


def _facts(
    config: dict[str, Any],
    family: Family,
    tensors: dict[str, TensorInfo],
    tokenizer: dict[str, int],
    pooling: Pooling,
    task: str | None,
    problems: list[str],
) -> ModelFacts | None:
    floats = _floats(tensors, problems)
    words = _shape(tensors, family, "embeddings.word_embeddings.weight")
    places = _shape(tensors, family, "embeddings.position_embeddings.weight")
    if words is None or places is None:
        problems.append("its weights have no word and position embeddings: they are not those of this model_type")
        return None
    check_vocabulary(tokenizer, words[0], problems)
    pad = _integer(config, ("pad_token_id",), family.pad_token_id, problems)
    architecture = _architecture(config)
    problem_type = config.get("problem_type")
    if problem_type not in PROBLEM_TYPES:
        problems.append(
            f"problem_type {problem_type!r} is not supported; allowed: {', '.join(map(str, PROBLEM_TYPES))}"
        )
    # A model without the head has no labels, whatever id2label its config carries.
    has_head = all(name in tensors for name in family.head)
    id2label = _id2label(config, tensors[family.head[-1]], problems) if has_head else {}
    _check_task(task, has_head, family, architecture, config, len(id2label), problems)
    return ModelFacts(
        model_type=config["model_type"],
        architecture=architecture,
        num_parameters=sum(info.elements for info in floats),
        weight_bytes=sum(info.size for info in floats),
        num_layers=_integer(config, ("num_hidden_layers", "n_layers"), 0, problems),
        hidden_size=_integer(config, ("hidden_size", "dim"), places[1], problems),
        vocab_size=words[0],
        num_labels=len(id2label),
        id2label=id2label,
        problem_type=problem_type,
        max_positions=places[0] - pad - 1 if family.padded_positions else places[0],
        pad_token_id=pad,
        has_token_type_ids=family.token_types and _integer(config, ("type_vocab_size",), 2, problems) > 1,
        pooling=pooling,
    )


def _decoder_facts(
    path: Path,
    config: dict[str, Any],
    tensors: dict[str, TensorInfo],
    tokenizer: dict[str, int],
    task: str | None,
    problems: list[str],
) -> ModelFacts | None:
    floats = _floats(tensors, problems)
    found = read_decoder(path, config, tensors, problems)
    if task is not None and task != "text-generation":
        problems.append(
            f"model_type {config['model_type']} is a decoder, the task is {task!r}; allowed: text-generation"
        )
    if found is None:
        return None
    check_vocabulary(tokenizer, found["vocab_size"], problems)
    return ModelFacts(
        model_type=config["model_type"],
        architecture=_architecture(config),
        num_parameters=sum(info.elements for info in floats),
        weight_bytes=sum(info.size for info in floats),
        num_labels=0,
        id2label={},
        problem_type=None,
        has_token_type_ids=False,
        pooling=Pooling(),
        **found,
    )


def _architecture(config: dict[str, Any]) -> str | None:
    architectures = config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else None


def _floats(tensors: dict[str, TensorInfo], problems: list[str]) -> list[TensorInfo]:
    """The floating point tensors; integers among the others, which would be weights quantized already, are a problem."""
    quantized = sorted({info.dtype for info in tensors.values() if info.elements > 1} - {*FLOATS, "I64", "I32", "BOOL"})
    if quantized:
        problems.append(f"its weights hold {', '.join(quantized)} tensors; allowed: {', '.join(FLOATS)}")
    return [info for info in tensors.values() if info.dtype in FLOATS]


def _integer(config: dict[str, Any], keys: tuple[str, ...], default: int, problems: list[str]) -> int:
    """The first of the keys (families spell them differently) that config.json sets; null counts as not set."""
    for key in keys:
        value = config.get(key)
        if type(value) is int and value >= 0:
            return value
        if value is not None:
            problems.append(f"config.json: {key} {value!r} must be an integer from 0")
    return default


def _shape(tensors: dict[str, TensorInfo], family: Family, name: str) -> tuple[int, ...] | None:
    """The shape of an encoder's matrix, whether or not its name carries the family's prefix."""
    info = tensors.get(family.prefix + name) or tensors.get(name)
    return info.shape if info is not None and len(info.shape) == 2 else None


def _id2label(config: dict[str, Any], classifier: TensorInfo, problems: list[str]) -> dict[int, str]:
    """{id: name} for as many labels as the classifier has outputs; LABEL_n where the config names none."""
    outputs = classifier.shape[0] if classifier.shape else 0
    raw = config.get("id2label")
    if raw is None:
        return {index: f"LABEL_{index}" for index in range(outputs)}
    try:
        labels = {int(index): str(name) for index, name in raw.items()}
    except (AttributeError, ValueError):
        problems.append("config.json: id2label must map ids (0, 1, ...) to names")
        return {}
    if sorted(labels) != list(range(outputs)):
        problems.append(f"config.json: id2label has the ids {sorted(labels)[:10]}, the classifier {outputs} outputs")
    elif len(set(labels.values())) < len(labels):
        problems.append("config.json: id2label gives one name to several ids: give each its own")
    return dict(sorted(labels.items()))


def _check_task(
    task: str | None,
    has_head: bool,
    family: Family,
    architecture: str | None,
    config: dict[str, Any],
    num_labels: int,
    problems: list[str],
) -> None:
    if task is not None and task not in TASKS:
        problems.append(f"task {task!r} is not supported; allowed: {', '.join(TASKS)}")
    if task == "text-generation":
        allowed = ", ".join(DECODERS)
        problems.append(f"model_type {config['model_type']} is an encoder, text-generation needs one of {allowed}")
    if task != "text-classification":
        return
    if not has_head or (architecture is not None and not architecture.endswith("ForSequenceClassification")):
        wanted = " and ".join(family.head)
        problems.append(
            f"it has no head for text-classification ({wanted}; its architecture is {architecture}): give a "
            "model fine-tuned for it, or use task feature-extraction"
        )
    elif config.get("problem_type") == "regression" and num_labels > 1:
        problems.append(f"problem_type regression with {num_labels} outputs is not supported; allowed: 1 output")
