"""token-classification and question-answering: what is learnt, what is measured, and archives of every runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from text_spans import LABELS, write_recipe

from archiver.data.text.questions import Asked
from archiver.data.text.tagged import Tagged
from archiver.packaging.verify import verify
from archiver.pipeline import build as pipeline
from archiver.pipeline.check import check
from archiver.progress import Progress
from archiver.recipe.load import load_recipe
from archiver.recipe.starter import write_recipe as write_starter
from archiver.tasks import TASKS
from archiver.tasks.text.token_classification import IGNORED, first_tokens
from handlers.inputs.texts.windows import Window

NER, QA = TASKS["token-classification"], TASKS["question-answering"]
KINDS = {"token-classification": {"id2label": LABELS}, "question-answering": {}}


def window(offsets: list[tuple[int, int]], own: range, first: int = 0) -> Window:
    """[CLS], the tokens of these characters, [SEP]."""
    text = range(1, 1 + len(offsets))
    around = [(0, 0), *offsets, (0, 0)]
    return Window(list(range(len(around))), [0] * len(around), around, [None] * len(around), text, own, first, 0)


def test_first_tokens_of_words() -> None:
    # "Zoë's film", a byte-level " film", and a word of which nothing is left.
    words = [(0, 5), (6, 10), (11, 12), (13, 15)]
    offsets = [(0, 3), (3, 4), (4, 5), (5, 10), (12, 14), (14, 15)]
    assert first_tokens(offsets, words) == [0, 3, None, 4]
    assert first_tokens([], words[:1]) == [None]


def test_words_are_learnt_once_by_their_first_token() -> None:
    example = Tagged("ab cd ef", ((0, 2), (3, 5), (6, 8)), (1, 2, 0))
    first = window([(0, 1), (1, 2), (3, 5)], range(1, 3))
    second = window([(1, 2), (3, 5), (6, 8)], range(2, 4), 1)
    targets = NER.targets(cast(Any, None), [example], [[first, second]])  # type: ignore[attr-defined]
    assert [target.tolist() for target in targets] == [
        [IGNORED, 1, IGNORED, IGNORED, IGNORED],
        [IGNORED, IGNORED, 2, 0, IGNORED],
    ]
    batch = NER.collate_targets([targets[0], targets[1][:3]], 6)  # type: ignore[attr-defined]
    assert batch.tolist() == [[IGNORED, 1, *[IGNORED] * 4], [IGNORED, IGNORED, 2, *[IGNORED] * 3]]
    assert NER.targets(cast(Any, None), [Tagged("ab", ((0, 2),), None)], [[first]]) is None  # type: ignore[attr-defined]


def test_the_loss_is_a_mean_over_words() -> None:
    outputs = torch.log(torch.tensor([[[0.5, 0.5], [0.25, 0.75], [0.5, 0.5]]]))
    labels = torch.tensor([[0, 1, IGNORED]])
    assert float(NER.loss(outputs, labels)) == pytest.approx(-(np.log(0.5) + np.log(0.75)) / 2)
    assert float(NER.loss(outputs, torch.full((1, 3), IGNORED))) == 0.0
    teacher = outputs.clone()
    teacher[0, 2] = torch.tensor([9.0, -9.0])  # padding
    mask = torch.tensor([[1, 1, 0]])
    assert float(NER.distance(outputs, teacher, mask, 2.0)) == pytest.approx(0)
    assert float(NER.distance(outputs, teacher, None, 2.0)) > 0.1


def test_an_answer_is_learnt_where_it_stands_whole() -> None:
    context = "ab cd ef"
    first, second = window([(0, 2), (3, 5)], range(1, 3)), window([(3, 5), (6, 8)], range(2, 3), 1)
    cases = {("cd", 3): [[2, 2], [1, 1]], ("cd ef", 3): [[0, 0], [1, 2]], ("ab", 0): [[1, 1], [0, 0]]}
    for answer, expected in cases.items():
        targets = QA.targets(cast(Any, None), [Asked("?", context, (answer,))], [[first, second]])  # type: ignore[attr-defined]
        assert [target.tolist() for target in targets] == expected
    impossible = QA.targets(cast(Any, None), [Asked("?", context, ())], [[first]])  # type: ignore[attr-defined]
    assert impossible[0].tolist() == [0, 0]
    assert QA.targets(cast(Any, None), [Asked("?", context, None)], [[first]]) is None  # type: ignore[attr-defined]


def test_the_loss_of_an_answer_is_the_mean_of_both_ends() -> None:
    outputs = torch.log(torch.tensor([[[0.5, 0.1], [0.25, 0.8], [0.25, 0.1]]]))
    assert float(QA.loss(outputs, torch.tensor([[0, 1]]))) == pytest.approx(-(np.log(0.5) + np.log(0.8)) / 2)
    teacher = outputs.clone()
    teacher[0, 2] = 5.0
    assert float(QA.distance(outputs, teacher, torch.tensor([[1, 1, 0]]), 1.0)) == pytest.approx(0, abs=1e-6)
    assert float(QA.distance(outputs, teacher, None, 1.0)) > 0.1


@pytest.mark.parametrize("task", KINDS)
def test_a_starter_recipe_is_written_for_the_models_own_task(
    tiny_model: Callable[..., Path], tmp_path: Path, task: str
) -> None:
    text = write_starter(tiny_model("bert", task, **KINDS[task]))
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.task == task and recipe.serve.max_length == 64
    assert "windows that overlap" in text and ("labels: O, B-X, I-X" in text) == (task == "token-classification")
    validation = check(recipe).validation  # the text that Python ships
    assert len(validation) > 20


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_metrics_of_the_original_agree_with_transformers(
    tiny_model: Callable[..., Path], tmp_path: Path, task: str, kind: str
) -> None:
    import transformers

    folder = tiny_model(kind, task, **KINDS[task])
    workload = check(load_recipe(write_recipe(tmp_path, task, folder, []))).load()
    assert workload.original_metrics["agreement"] == 1.0
    model: Any = getattr(transformers, TASKS[task].auto_class).from_pretrained(folder).eval()
    found = workload.reference[0]
    with torch.inference_mode():
        types = {"token_type_ids": torch.tensor([found.items[0].type_ids])} if kind == "bert" else {}
        output = model(torch.tensor([found.items[0].ids]), **types)
    expected = (
        output.logits if task == "token-classification" else torch.stack([output.start_logits, output.end_logits], -1)
    )
    tokens = len(found.items[0].ids)
    assert np.abs(found.outputs[0][:tokens] - expected[0].numpy()).max() < 1e-4
    assert any(len(one.items) > 1 for one in workload.reference)


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize(
    ("runtime", "compress"),
    [
        ("openvino", [{"quantize": {"method": "static-int8"}}]),
        ("onnxruntime", [{"quantize": {"method": "weight-only", "bits": 8}}]),
        (
            "torch",
            [
                {"prune": {"method": "structured", "heads": 0.5, "neurons": 0.5, "importance": "taylor"}},
                {"retrain": {"epochs": 1}},
            ],
        ),
    ],
    ids=["openvino", "onnxruntime", "torch"],
)
def test_an_archive_is_built_and_verified(
    tiny_model: Callable[..., Path], tmp_path: Path, task: str, runtime: str, compress: list[dict[str, Any]]
) -> None:
    folder = tiny_model("bert", task, **KINDS[task])
    recipe = load_recipe(write_recipe(tmp_path, task, folder, compress, runtime=runtime))
    path = pipeline.build(recipe, tmp_path / "store", Progress(quiet=True)).path
    assert verify(path) == []


def test_what_lies_wrong_in_the_data_is_told_before_work(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    from archiver.errors import RecipeError

    folder = tiny_model("bert", "token-classification", **KINDS["token-classification"])
    path = write_recipe(tmp_path, "token-classification", folder, [])
    (tmp_path / "tags.conll").write_text("good\tB-Y\n")
    with pytest.raises(
        RecipeError, match="data.validation: tags.conll has 1 mistake(.|\n)*tags.conll:1: the tag str 'B-Y'"
    ):
        check(load_recipe(path))


def test_data_without_tags_measures_agreement_alone(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_model("bert", "token-classification", **KINDS["token-classification"])
    recipe = load_recipe(write_recipe(tmp_path, "token-classification", folder, []))
    checked = check(recipe)
    measured = SimpleNamespace(
        facts=checked.facts, examples=[Tagged(one.text, one.words, None) for one in checked.validation]
    )
    workload = checked.load()
    measured.found = measured.reference = workload.reference
    assert NER.metrics_of(measured) == {"agreement": 1.0}  # type: ignore[attr-defined]
