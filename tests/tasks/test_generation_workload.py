"""A language model's data and its measure: windows of one stream of text, and perplexity over them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from greedy import greedy_steps
from safetensors.torch import save_file
from task_models import inspect_model

from archiver.data.files import Row
from archiver.data.text.windows import cut_windows, read_text, windows_of
from archiver.errors import DataError
from archiver.evaluation.comparison import spread_order
from archiver.evaluation.metrics.perplexity import Predictions, language_metrics, predict_windows
from archiver.models.source import resolve_model
from archiver.spec import DataSpec, GateSpec, Recipe
from archiver.tasks import TASKS
from archiver.tasks.text.generation.examples import likeliest_behind
from archiver.tasks.text.generation.task import context_of
from archiver.tasks.text.generation.windows import OriginalAnswers, compare_windows
from archiver.tasks.text.generation.workload import GenerationWorkload, _streamed

TASK = "text-generation"


class Bigram(torch.nn.Module):
    """Three tokens; behind each token the same logits, whatever stands before."""

    def __init__(self, table: list[list[float]]) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.tensor(table))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.table[input_ids]


def test_perplexity_by_hand() -> None:
    # Behind 0: p = (1/2, 1/4, 1/4); behind 1: (1/4, 1/4, 1/2); behind 2: all alike.
    model = Bigram(np.log([[2, 1, 1], [1, 1, 2], [1, 1, 1]]).tolist())
    windows = np.array([[0, 0, 1], [1, 2, 0]])
    found = predict_windows(model, windows)
    each = [(math.log(2) + math.log(4)) / 2, (math.log(2) + math.log(3)) / 2]
    nll = sum(each) / 2
    assert found.nll.tolist() == pytest.approx(each, abs=1e-6)
    assert found.best.tolist() == [[0, 0], [2, 0]]
    metrics = language_metrics(found, np.array([[0, 1], [2, 0]]))
    assert metrics["perplexity"] == pytest.approx(math.exp(nll), abs=1e-4)
    assert metrics["cross_entropy"] == pytest.approx(nll, abs=1e-6)
    assert metrics["agreement"] == 0.75


def test_no_number_is_no_measure() -> None:
    with pytest.raises(DataError, match="not finite"):
        predict_windows(Bigram([[float("nan")] * 3] * 3), np.array([[0, 1]]))


def test_many_windows_in_batches_are_the_same_as_one_by_one() -> None:
    model = Bigram(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).tolist())
    windows = np.random.default_rng(0).integers(0, 3, (21, 5))
    together = predict_windows(model, windows)
    alone = [predict_windows(model, window[None]) for window in windows]
    np.testing.assert_allclose(together.nll, np.concatenate([one.nll for one in alone]), atol=1e-6)
    np.testing.assert_array_equal(together.best, np.concatenate([one.best for one in alone]))


def test_windows_are_the_stream_cut_without_special_tokens(tiny_model) -> None:
    from tokenizers import Tokenizer

    content = (tiny_model("llama", TASK) / "tokenizer.json").read_bytes()
    text = "this film is very good\n\na dull story\n" * 20
    ids = Tokenizer.from_buffer(content).encode(text).ids
    assert ids[0] == 0  # <s>, which the windows must not have
    windows = cut_windows(text, content, 16)
    assert windows.shape == ((len(ids) - 1) // 16, 16)
    assert windows.reshape(-1).tolist() == ids[1 : 1 + windows.size]
    with pytest.raises(DataError, match=r"shorter than one window of data.context 4096 tokens"):
        windows_of(text, content, 4096)


def test_texts(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\n\n  zwei ü\n".encode())
    assert read_text(tmp_path / "a.txt") == "one\n\n  zwei ü\n"
    (tmp_path / "b.txt").write_bytes(b"one \xff")
    with pytest.raises(DataError, match=r"b.txt: byte 4 is not UTF-8"):
        read_text(tmp_path / "b.txt")
    (tmp_path / "c.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"c.txt is empty"):
        read_text(tmp_path / "c.txt")
    with pytest.raises(DataError, match=r"suffix '.tsv'; a language model's data is plain text"):
        read_text(tmp_path / "d.tsv")
    assert read_text("embedded:cpython:validation").count("\n") == 1199
    rows = [Row(1, {"text": " = Title = \n"}), Row(2, {"text": ""}), Row(3, {"text": "word"})]
    monkeypatch.setattr("archiver.data.text.windows.read_hub_rows", lambda source, columns: rows)
    assert read_text("hub://org/set:train") == " = Title = \n\nword"


@pytest.fixture
def workload(tiny_model, sentences) -> GenerationWorkload:
    path = tiny_model("llama", TASK)
    recipe = Recipe("x", "1", TASK, path, DataSpec(context=16))
    text = "\n".join(sentences) * 4
    return TASKS[TASK].load(recipe, resolve_model(path), inspect_model(path, TASK), [text], [text])


def test_subject(workload) -> None:
    assert workload.original_metrics == workload.measure()
    assert workload.original_metrics["agreement"] == 1.0
    count = len(windows_of(workload.train, workload.tokenizer_bytes, 16))
    batches = workload.training_batches(4, seed=1)
    assert sum(len(batch["input_ids"]) for batch in batches) == count
    assert all(batch["labels"] is batch["input_ids"] and batch["attention_mask"].all() for batch in batches)
    assert all(
        (a["labels"] == b["labels"]).all() for a, b in zip(batches, workload.training_batches(4, 1), strict=True)
    )
    first, second = (list(map(str, torch.cat([b["labels"] for b in workload.training_batches(4, s)]))) for s in (1, 2))
    assert first != second and sorted(first) == sorted(second)
    calibration = workload.calibration_batches(3)
    assert [batch["input_ids"].shape for batch in calibration] == [(1, 16)] * 3
    assert (
        calibration[0]["input_ids"][0].tolist() == windows_of(workload.train, workload.tokenizer_bytes, 16)[0].tolist()
    )
    (batch,) = workload.speed_batches()
    assert workload.items_of(batch) == batch["input_ids"].size and workload.task.unit == "tokens"
    assert workload.run_of(workload.original)(batch).shape == (*batch["input_ids"].shape, 400)
    assert workload.extent == {"examples": min(count, 200), "context": 16}


class Counting:
    """A model of windows [n, 3] → Predictions, which remembers how many windows it was asked for."""

    def __init__(self, nll: Callable[[np.ndarray], np.ndarray]) -> None:
        self.nll, self.asked = nll, list[int]()

    def __call__(self, windows: np.ndarray) -> Predictions:
        self.asked.append(len(windows))
        return Predictions(self.nll(windows[:, 0]), windows[:, 1:])


@pytest.mark.parametrize(
    ("bound", "asked"),
    [
        # Each window loses 0.05 or 0.15: perplexity grows by 10.5 %, which 20 windows tell from 2 % (± 3.3 %) …
        (0.02, [20]),
        # … 80 from 12 % (± 1.2 %), and no number of them from what it is.
        (0.12, [20, 20, 40]),
        (math.expm1(0.1), [20, 20, 40, 80, 40]),
    ],
)
def test_a_growing_sample_ends_when_the_verdict_is_sure(bound, asked) -> None:
    # As many of either kind in every sample, so that its mean is known; which window is which follows no rhythm.
    lost = np.full(200, 0.15)
    for start, end in ((0, 20), (20, 40), (40, 80), (80, 160), (160, 200)):
        lost[spread_order(200)[start:end:2]] = 0.05
    read = sum(asked)

    def loss(places: np.ndarray) -> np.ndarray:
        return lost[places]

    windows = np.arange(600).reshape(200, 3)
    windows[:, 0] = np.arange(200)
    original = Counting(lambda n: 2.0 + 0.01 * n)
    model = Counting(lambda n: 2.0 + 0.01 * n + loss(n))
    answers = OriginalAnswers(original, windows)
    gate = GateSpec(max_increase={"perplexity": bound})
    found = compare_windows(model, windows, answers, [gate], whole=False)
    assert found.extent["examples"] == read and model.asked == original.asked == asked
    if read < 200:
        assert found.extent["of"] == 200
        chosen = spread_order(200)[:read]
        assert found.metrics["cross_entropy"] == pytest.approx((2 + 0.01 * chosen + loss(chosen)).mean(), abs=1e-6)
        assert found.original["cross_entropy"] == pytest.approx((2 + 0.01 * chosen).mean(), abs=1e-6)
    # Asked again, over all windows: the original reads those alone that it has not read yet, the model all.
    whole = compare_windows(model, windows, answers, [gate], whole=True)
    assert whole.extent == {"examples": 200, "context": 3}
    assert sum(original.asked) == 200 and sum(model.asked) == 200 + read
    assert whole.original["cross_entropy"] == pytest.approx(2 + 0.01 * 99.5, abs=1e-6)


def test_a_recipe_may_ask_for_all_windows(workload) -> None:
    text = workload.text * 6
    count = len(windows_of(text, workload.tokenizer_bytes, 16)[:200])
    assert count > 20
    sampled = replace(workload, text=text)
    assert sampled.compare([]).extent == {
        "examples": 20,
        "of": count,
        "context": 16,
    }  # nothing has changed: sure at once
    whole = replace(workload, text=text, recipe=replace(workload.recipe, data=DataSpec(context=16, windows="all")))
    found = whole.compare([])
    assert found.extent == {"examples": count, "context": 16} and found.metrics == whole.measure() == found.original


def test_the_original_is_in_memory_once(workload) -> None:
    """Its weights stay in the files; it is timed as the model itself while no stage has changed one."""
    assert sum(parameter.numel() for parameter in workload.original.parameters()) == 0
    with workload.original_in_memory() as original:
        assert original is workload.module
    before = workload.original_metrics
    with torch.no_grad():
        workload.model.lm_head.weight.zero_()
    with workload.original_in_memory() as original:
        assert original is workload.original
        assert sum(parameter.numel() for parameter in original.parameters()) > 0
        windows = workload.windows(workload.tokenizer_bytes)
        nll = predict_windows(original, windows).nll.mean()
    assert nll == pytest.approx(before["cross_entropy"], abs=1e-5)
    assert sum(parameter.numel() for parameter in workload.original.parameters()) == 0


def test_the_likeliest_tokens_in_one_pass_are_those_one_by_one(workload) -> None:
    ids = [5, 6, 7]
    steps = greedy_steps(workload.model, ids)
    one_by_one = [next(steps) for _ in range(6)]
    found = likeliest_behind(workload.model, ids, [token for token, _ in one_by_one[:5]])
    assert [token for token, _ in found] == [token for token, _ in one_by_one]
    assert [margin for _, margin in found] == pytest.approx([margin for _, margin in one_by_one], abs=1e-5)
    with torch.no_grad():
        workload.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ArithmeticError, match="not finite"):
        likeliest_behind(workload.model, ids, [])


class Peeking(torch.nn.Module):
    """A model that looks at a weight while the module that has it does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.lm_head = torch.nn.Linear(4, 4, bias=False)

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.lm_head.weight[input_ids])


def test_a_model_that_cannot_be_streamed_stays_in_memory(tmp_path) -> None:
    model = Peeking()
    (tmp_path / "config.json").write_text("{}")
    save_file({"lm_head.weight": model.lm_head.weight.detach()}, tmp_path / "model.safetensors")
    assert _streamed(model, tmp_path) is None


def test_measure_sees_the_change(workload) -> None:
    with torch.no_grad():
        workload.model.lm_head.weight.zero_()  # every one of 400 tokens is as likely as the others
    after = workload.measure()
    assert after["perplexity"] == pytest.approx(400, abs=0.01)
    assert after["agreement"] < 0.2


def test_padding_on_either_side_changes_no_answer(workload) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    right = torch.tensor([[5, 6, 7, 8, 1, 1]]), torch.tensor([[1, 1, 1, 1, 0, 0]])
    left = torch.tensor([[1, 1, 5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 1, 1, 1]])
    with torch.no_grad():
        alone = workload.module(ids)[0]
        torch.testing.assert_close(workload.module(*right)[0, :4], alone, rtol=0, atol=1e-4)
        torch.testing.assert_close(workload.module(*left)[0, 2:], alone, rtol=0, atol=1e-4)


def test_tokens_that_are_gone_still_agree(workload) -> None:
    """Only the last ids are gone, and no text has them: every number stays."""
    from archiver.state.constraints import state_of

    before = workload.original_metrics
    used = int(max(workload.windows(workload.tokenizer_bytes).max(), predict_windows(
        workload.original, workload.windows(workload.tokenizer_bytes)
    ).best.max())) + 1  # fmt: skip
    order = torch.arange(used)
    state = state_of(workload.model)
    state.old_ids, state.tokenizer_json = order, workload.tokenizer_bytes
    assert workload.measure()["agreement"] == before["agreement"] == 1.0
    assert workload.pad_id == 1 and workload.end_ids == [2]


def test_context_defaults_to_what_the_model_has() -> None:
    facts = SimpleNamespace(max_positions=64)
    assert context_of(Recipe("x", "1", TASK, "m"), facts) == 64
    assert context_of(Recipe("x", "1", TASK, "m", DataSpec(context=8)), facts) == 8
    assert context_of(Recipe("x", "1", TASK, "m"), SimpleNamespace(max_positions=512)) == 256


def test_the_reference_perplexity(shared) -> None:
    """The model card says 29.70 over 200 windows, which takes a minute; here four of them, against transformers' loss."""
    path = shared / "models" / "docs-lm"
    recipe = Recipe("x", "1", TASK, path)
    text = read_text(shared / "data" / "docs" / "validation.txt")
    workload = TASKS[TASK].load(recipe, resolve_model(path), inspect_model(path, TASK), [text], [])
    windows = workload.windows(workload.tokenizer_bytes)
    assert windows.shape == (200, 256)
    losses = []
    for window in windows[:4]:
        ids = torch.tensor(window)[None]
        with torch.no_grad():
            losses.append(float(workload.model(ids, labels=ids).loss))  # transformers' own
    assert predict_windows(workload.module, windows[:4]).nll.tolist() == pytest.approx(losses, abs=1e-5)
