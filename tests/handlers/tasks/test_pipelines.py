"""Answers of fill-mask and zero-shot-classification are those of transformers' pipelines, on the same tiny models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from archiver.models.load import load_model
from handlers.architecture.outputs.encoder import EncoderWithHead
from handlers.architecture.outputs.masked import MaskedModel
from handlers.base import BatchHandler
from handlers.errors import BadRequest
from handlers.inputs.text import Encoder, Text
from handlers.inputs.texts.candidates import Candidates, CandidateText
from handlers.inputs.texts.masked import MaskedText
from handlers.tasks.text.fill_mask import FillMaskHandler, best_words
from handlers.tasks.text.zero_shot_classification import ZeroShotClassificationHandler, scored

BATCHING = {"token_budget": 512, "max_rows": 32, "run_cost": 48}
NLI = {0: "contradiction", 1: "neutral", 2: "entailment"}
TEXTS = ["this film is very good", "a dull and boring story"]
LABELS = ["good", "music", "the cat and the dog", "film"]


class InTorch:
    """A session over a torch module."""

    name = "torch"

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = self.module(**{k: torch.from_numpy(v) for k, v in arrays.items()}).numpy()
            return found


def opened(handler: BatchHandler[Any], kind: Any, module: torch.nn.Module, **serving: Any) -> Any:
    handler.serving = {"batching": BATCHING} | serving
    handler.input = kind
    handler.session = InTorch(module)
    return handler


def filler(path: Path) -> tuple[FillMaskHandler, Any]:
    """(our handler, transformers' pipeline) of a model directory."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    encoder = Encoder(path / "tokenizer.json", max_length=32, pad_id=tokenizer.pad_token_id)
    model = load_model(path, "AutoModelForMaskedLM")
    handler = opened(
        FillMaskHandler(),
        MaskedText(Text(encoder), tokenizer.mask_token),
        MaskedModel(model),
        mask_token=tokenizer.mask_token,
        clean_up=False,
    )
    return handler, transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")


def same(ours: Any, theirs: Any) -> None:
    """Equal in form, texts and order; numbers within 1e-6."""
    if isinstance(theirs, list):
        assert isinstance(ours, list) and len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            same(mine, other)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs) or set(ours) == set(theirs)
        for key, value in theirs.items():
            same(ours[key], value)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, abs=1e-6)
    else:
        assert ours == theirs


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "albert", "electra"])
@pytest.mark.parametrize(
    ("words", "parameters"),
    [
        (("the film is {} good",), {}),
        (("the {} is {} , very {}!",), {"top_k": 3}),
        (("the {} plays", "a {} {} story"), {"top_k": 2}),
        (("the {} plays",), {"targets": ["cat", "dog", "film", "cat"]}),
        (("the {} plays",), {"targets": "catfilm", "top_k": 4}),
    ],
)
def test_words_are_the_pipelines(tiny_model: Any, kind: str, words: Sequence[str], parameters: dict[str, Any]) -> None:
    handler, pipeline = filler(tiny_model(kind, "fill-mask"))
    token = handler.input.mask_token
    texts = [text.replace("{}", token) for text in words]
    theirs = [pipeline(text, **parameters) for text in texts]  # one by one: it does not pad
    same(handler.respond(texts, parameters), theirs)


def test_more_masks_than_go_into_one_row(tiny_model: Any) -> None:
    handler, pipeline = filler(tiny_model("bert", "fill-mask"))
    text = "[MASK] the [MASK] cat [MASK] [MASK] is [MASK] not [MASK]"
    same(handler.respond([text]), [pipeline(text)])


def test_targets_of_which_nothing_is_left(tiny_model: Any) -> None:
    handler, _ = filler(tiny_model("bert", "fill-mask"))
    with pytest.raises(BadRequest, match="parameter 'targets' has '\\\\x00', of which the tokenizer makes no token"):
        handler.respond(["the [MASK]"], {"targets": ["cat", "\x00"]})


def test_the_best_words_by_hand() -> None:
    shares = np.array([0.1, 0.3, 0.2, 0.3, 0.1])
    assert best_words(shares, 3, None).tolist() == [[1, 0.3], [3, 0.3], [2, 0.2]]  # of equal ones the lower id
    assert best_words(shares, 9, None)[:, 0].tolist() == [1, 3, 2, 0, 4]
    assert best_words(shares, 2, (4, 2, 0)).tolist() == [[2, 0.2], [0, 0.1]]
    assert np.isnan(best_words(np.full(4, np.nan), 2, None)[:, 1]).all()


def test_answers_are_compared_by_word() -> None:
    """A word that another has pushed out differs by as much as is known."""
    handler = FillMaskHandler()
    stored = [{"token": 7, "score": 0.5}, {"token": 8, "score": 0.2}]
    assert handler.compare(stored, [{"token": 8, "score": 0.25}, {"token": 7, "score": 0.45}]) == pytest.approx(0.1)
    assert handler.compare(stored, [{"token": 7, "score": 0.5}, {"token": 9, "score": 0.2}]) == 0
    assert handler.compare(stored, [{"token": 7, "score": 0.5}, {"token": 9, "score": 0.1}]) == pytest.approx(0.2)
    assert handler.compare(stored, [stored, stored]) == float("inf")
    assert handler.compare(stored, []) == float("inf")


def classifier(path: Path) -> tuple[ZeroShotClassificationHandler, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # as BertTokenizer has them
    encoder = Encoder(path / "tokenizer.json", max_length=64, pad_id=tokenizer.pad_token_id, cut="only_first")
    model = load_model(path, "AutoModelForSequenceClassification")
    entailment = next(i for i, name in model.config.id2label.items() if name.lower().startswith("entail"))
    handler = opened(
        ZeroShotClassificationHandler(), CandidateText(encoder), EncoderWithHead(model), entailment=entailment
    )
    return handler, transformers.pipeline("zero-shot-classification", model=model, tokenizer=tokenizer, device="cpu")


@pytest.mark.parametrize("names", [NLI, {0: "ENTAILMENT", 1: "not_entailment"}])
@pytest.mark.parametrize("labels", [LABELS, ["good"], "good, music"])
@pytest.mark.parametrize("more", [{}, {"multi_label": True}, {"hypothesis_template": "the story is {} ."}])
def test_labels_are_the_pipelines(tiny_model: Any, names: dict[int, str], labels: Any, more: dict[str, Any]) -> None:
    ids = {name: index for index, name in names.items()}
    handler, pipeline = classifier(tiny_model("bert", "text-classification", id2label=names, label2id=ids))
    parameters = {"candidate_labels": labels} | more
    theirs = pipeline(TEXTS, **parameters)
    same(handler.respond([Candidates(tuple(TEXTS), "sequences")], parameters), [theirs])
    same(handler.respond([Candidates((TEXTS[0],), "sequence")], parameters), [pipeline(TEXTS[0], **parameters)])
    ours = handler.respond([Candidates((text,)) for text in TEXTS], parameters)
    pairs = [zip(one["labels"], one["scores"], strict=True) for one in theirs]
    same(ours, [[{"label": label, "score": score} for label, score in each] for each in pairs])


def test_scores_by_hand() -> None:
    """Entailment's logits 0 and ln 3 against each other: 1/4, 3/4; each against contradiction's ln 3 and 0: 1/4, 3/4."""
    logits = np.array([[np.log(3), 9.0, 0.0], [0.0, 9.0, np.log(3)]])
    for several in (False, True):
        found = scored(logits, ["a", "b"], 2, several)
        assert [label for label, _ in found] == ["b", "a"]
        assert [score for _, score in found] == pytest.approx([0.75, 0.25])
    assert scored(logits[:1], ["a"], 2, False) == [("a", pytest.approx(0.25))]
