"""What the tasks around a text measure, learn and refuse, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from archiver.data.examples import Example
from archiver.data.text.masks import MaskedExample
from archiver.data.text.ranking import RankingExample
from archiver.errors import DataError, UnsupportedModelError
from archiver.tasks import TASKS
from archiver.tasks.forward import Measured
from archiver.tasks.text.fill_mask import mask_token
from handlers.base import Found
from handlers.inputs.texts.against import Against
from handlers.inputs.texts.candidates import Candidates
from handlers.inputs.texts.masked import PLACES, Masked

SOURCE: Any = SimpleNamespace(source="tiny")
NLI = {0: "entailment", 1: "neutral", 2: "contradiction"}


def facts(**more: Any) -> Any:
    known = {"num_labels": 1, "multi_label": False, "id2label": {0: "LABEL_0"}}
    return SimpleNamespace(**known | more)


def found(*outputs: list[Any], values: list[Any] | None = None) -> list[Found[Any]]:
    made = values or [None] * len(outputs)
    return [
        Found(value, [None] * len(rows), [np.array(row, np.float32) for row in rows])
        for value, rows in zip(made, outputs, strict=True)
    ]


def measured(task: str, now: Any, before: Any, examples: Any, **more: Any) -> dict[str, float]:
    return TASKS[task].metrics_of(Measured(now, before, examples, facts(**more), None, None))  # type: ignore[attr-defined, arg-type]


def test_a_ranking_is_measured_by_its_labels_and_the_originals_order() -> None:
    examples = [RankingExample("q", ("a", "b", "c"), (0.0, 2.0, 0.0))]
    metrics = measured("text-ranking", found([[1], [0], [2]]), found([[2], [3], [1]]), examples)
    assert metrics == {"agreement": 0.0, "ndcg@10": 0.5, "mrr@10": pytest.approx(1 / 3, abs=1e-6), "hit@10": 1.0}


def test_a_ranking_learns_shares_of_the_highest_label() -> None:
    task: Any = TASKS["text-ranking"]
    labelled = [RankingExample("q", ("a", "b"), (4.0, 1.0)), RankingExample("r", ("c",), (0.0,))]
    assert task.targets(None, labelled, []) == [1.0, 0.25, 0.0]
    assert task.targets(None, [*labelled, RankingExample("s", ("d",))], []) is None
    two, labels = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([1.0, 0.0])
    torch.testing.assert_close(task.loss(two, labels), task.loss(two[:, 1:] - two[:, :1], labels))
    assert float(task.loss(torch.zeros(2, 1), labels)) == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    ("task", "more", "said"),
    [
        ("text-ranking", {"num_labels": 3}, "tiny has 3 labels; text-ranking needs one"),
        ("text-ranking", {"num_labels": 2, "multi_label": True}, "tiny has 2 labels"),
        ("zero-shot-classification", {"num_labels": 2, "id2label": {0: "no", 1: "yes"}}, 'begins with "entail"'),
    ],
)
def test_models_that_do_not_suit(task: str, more: dict[str, Any], said: str) -> None:
    (problem,) = TASKS[task].check(None, SOURCE, facts(**more))  # type: ignore[arg-type]
    assert said in problem


def test_models_that_suit() -> None:
    suiting = [("text-ranking", facts()), ("text-ranking", facts(num_labels=2))]
    suiting.append(("zero-shot-classification", facts(num_labels=3, id2label=NLI)))
    assert [TASKS[task].check(None, SOURCE, known) for task, known in suiting] == [[], [], []]  # type: ignore[arg-type]


def test_texts_are_measured_among_all_labels_of_the_file() -> None:
    """Entailment is class 0: of the first text "b" is the likelier, of the second "a"."""
    examples = [Example("x", label="a"), Example("y", label="b")]
    task: Any = TASKS["zero-shot-classification"]
    assert task.values(examples) == [Candidates(("x",), labels=("a", "b")), Candidates(("y",), labels=("a", "b"))]
    now = found([[0, 9, 9], [2, 0, 0]], [[3, 0, 0], [1, 9, 9]])
    before = found([[5, 0, 0], [2, 0, 0]], [[3, 0, 0], [1, 0, 0]])
    metrics = measured("zero-shot-classification", now, before, examples, id2label=NLI, num_labels=3)
    assert (metrics["accuracy"], metrics["agreement"]) == (0.0, 0.5)
    assert task.targets(None, examples, []) is None


def test_premises_are_measured_and_learnt_by_the_models_own_labels() -> None:
    examples = [Example("x", "h", 0), Example("y", "h", 2)]
    task: Any = TASKS["zero-shot-classification"]
    assert task.values(examples)[0] == Candidates(("x",), labels=("h",), template="{}")
    now = found([[1, 0, 0]], [[1, 0, 0]])
    assert measured("zero-shot-classification", now, now, examples, id2label=NLI, num_labels=3)["accuracy"] == 0.5
    workload: Any = SimpleNamespace(facts=facts(num_labels=3))
    assert task.targets(workload, examples, []) == [0, 2]


def test_texts_with_and_without_hypotheses_are_refused(tmp_path: Any) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "b"}\n{"text": "a", "text_pair": "c", "label": 1}\n')
    recipe: Any = SimpleNamespace(data=SimpleNamespace(columns={}))
    with pytest.raises(DataError, match=r"a\.jsonl has rows with text_pair and rows without"):
        TASKS["zero-shot-classification"].read(tmp_path / "a.jsonl", recipe, SOURCE, facts(num_labels=3, id2label=NLI))


def test_similar_sentences_by_pairs_and_by_eight() -> None:
    task: Any = TASKS["sentence-similarity"]
    pairs = [Example("a", "b", 1.0), Example("c", "d", 2.0), Example("a", "e", 3.0)]
    assert task.values(pairs) == [Against("a", ("b", "e")), Against("c", ("d",))]
    singles = [Example(str(i)) for i in range(9)]
    assert task.values(singles) == [Against("0", tuple("1234567")), Against("8", ("8",))]
    values = task.values(pairs)
    now = found([[1, 0], [0, 1], [1, 0]], [[1, 0], [1, 1]], values=values)
    assert measured("sentence-similarity", now, now, pairs)["spearman"] == 1.0


def test_masked_words_are_measured_by_spelling() -> None:
    """Two masks in one text, one in another: ids differ between the vocabularies, words count."""

    def reader(*words: str) -> Any:
        tokenizer = SimpleNamespace(id_to_token=lambda index: words[index])
        return SimpleNamespace(
            input=SimpleNamespace(text=SimpleNamespace(encoder=SimpleNamespace(tokenizer=tokenizer)))
        )

    examples = [MaskedExample("", ("cat", "dog")), MaskedExample("", ("man",))]
    now = found([[[[0, 0.5], [1, 0.2]], [[0, 0.5], [1, 0.2]]]], [[[[2, 0.9], [0, 0.1]]]])
    before = found([[[[1, 0.5], [0, 0.2]], [[2, 0.5], [1, 0.2]]]], [[[[0, 0.9], [1, 0.1]]]])
    task: Any = TASKS["fill-mask"]
    one, other = reader("cat", "dog", "man"), reader("man", "cat", "dog")
    metrics = task.metrics_of(Measured(now, before, examples, facts(), one, other))
    assert metrics == {
        "agreement": pytest.approx(2 / 3, abs=1e-6),
        "accuracy": pytest.approx(2 / 3, abs=1e-6),
        "top5": 1.0,
    }


def test_masked_words_are_learnt_where_the_masks_stand(tiny_model: Any) -> None:
    task: Any = TASKS["fill-mask"]
    ids = {"cat": 5, "dog": 6}
    task_encoder = SimpleNamespace(tokenizer=SimpleNamespace(token_to_id=ids.get))
    kind: Any = type(task)
    own: Any = kind()
    own.encoder = lambda workload, original: task_encoder
    items = [[Masked(None, (3, 4))], [Masked(None, (1,))]]  # type: ignore[arg-type]
    targets = own.targets(None, [MaskedExample("", ("cat", "lost")), MaskedExample("", ("dog",))], items)
    assert [row.tolist() for row in targets] == [[5, -100], [6]]
    batch = own.collate_targets(targets, 9)
    assert batch.tolist() == [[5, -100] * (PLACES // 2), [6] * PLACES]
    assert own.collate_targets(targets[1:], 9).tolist() == [[6]]
    assert float(own.loss(torch.zeros(2, PLACES, 7), batch)) == pytest.approx(np.log(7))
    assert float(own.loss(torch.zeros(1, 1, 7), torch.tensor([[-100]]))) == 0.0


def test_a_model_without_mask_token(tiny_model: Any, tmp_path: Any) -> None:
    path = tiny_model("bert", "fill-mask")
    assert mask_token(SimpleNamespace(path=path, source="tiny")) == "[MASK]"  # type: ignore[arg-type]
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    with pytest.raises(UnsupportedModelError, match="tiny has no mask token"):
        mask_token(SimpleNamespace(path=tmp_path, source="tiny"))  # type: ignore[arg-type]
