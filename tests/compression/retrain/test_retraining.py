"""Retraining: it learns, repeats itself, survives an interruption, keeps what stages left, and says when it fails."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from objectives import OBJECTIVES
from task_models import load_model

from archiver.compression.context import StageContext
from archiver.compression.retrain import training
from archiver.compression.retrain.checkpoint import Checkpoint
from archiver.compression.retrain.objectives import hidden_distance, softened_divergence
from archiver.compression.retrain.options import Distill, Retrain
from archiver.compression.retrain.training import rate, train
from archiver.errors import ArchiverError
from archiver.models.source import resolve_model
from archiver.state.constraints import Mask, constrain, state_of
from handlers.architecture.outputs.encoder import EncoderWithHead

TASK = "text-classification"


def batches(count: int = 6, rows: int = 4) -> list[dict[str, torch.Tensor]]:
    """Texts whose label is whether they hold token 7."""
    draw = torch.Generator().manual_seed(3)
    found = []
    for _ in range(count):
        ids = torch.randint(5, 40, (rows, 8), generator=draw)
        found.append({
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "token_type_ids": torch.zeros_like(ids),
            "labels": (ids == 7).any(dim=1).long(),
        })  # fmt: skip
    return found


@pytest.fixture
def made(tiny_model: Callable[..., Path]) -> Callable[..., tuple[torch.nn.Module, StageContext]]:
    """Factory → a fresh tiny classifier and the StageContext around it."""

    def make(checkpoint: Path | None = None) -> tuple[torch.nn.Module, StageContext]:
        model = load_model(resolve_model(tiny_model()), TASK)
        module = EncoderWithHead(model)
        data = batches()

        def measure() -> dict[str, float]:
            with torch.no_grad():
                outputs = [module(**{k: v for k, v in batch.items() if k != "labels"}) for batch in data]
            loss = OBJECTIVES[TASK].loss(torch.cat(outputs), torch.cat([b["labels"] for b in data]))
            return {"cross_entropy": loss.item()}

        teacher = copy.deepcopy(module)
        return model, StageContext(
            module, teacher, OBJECTIVES[TASK], lambda n: data, lambda size, seed: data, measure, checkpoint=checkpoint
        )

    return make


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


LABELS = Retrain(epochs=6, learning_rate=3e-3, teacher="none", precision="fp32")
MIXED = Retrain(epochs=3, learning_rate=1e-3, precision="fp32", distill=Distill(1.0, 1.0))


def test_it_learns_from_labels(made):
    model, examples = made()
    before = examples.measure()["cross_entropy"]
    done = train(model, LABELS, examples)
    assert done.steps == 36
    assert done.losses[-1] < done.losses[0]
    assert examples.measure()["cross_entropy"] < 0.7 * before


def test_the_original_teaches_a_damaged_copy(made):
    model, examples = made()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() == 2 and "layer" in name:
                value.mul_(0.7)
    only_teacher = dataclasses.replace(MIXED, labels=0.0, epochs=8, learning_rate=3e-3)
    done = train(model, only_teacher, examples)
    assert done.losses[-1] < 0.5 * done.losses[0]


def test_the_same_seed_gives_the_same_weights(made):
    found = []
    for seed in (0, 0, 1):
        model, examples = made()
        train(model, dataclasses.replace(MIXED, seed=seed), examples)
        found.append(weights(model))
    assert equal(found[0], found[1])
    assert not equal(found[0], found[2])


def test_recomputed_layers_learn_the_same_and_keep_less(made):
    learned, kept = [], []
    for recomputes in (False, True):
        model, examples = made()
        own = [vars(module).get("forward") for module in model.modules()]
        sizes: list[int] = []

        def keep(value: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(value.numel())
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            train(model, dataclasses.replace(MIXED, gradient_checkpointing=recomputes), examples)
        learned.append(weights(model))
        kept.append(sum(sizes))
        assert [vars(module).get("forward") for module in model.modules()] == own
    assert equal(*learned)
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, "kill"])
def test_an_interrupted_run_goes_on_and_ends_where_an_uninterrupted_one_does(made, tmp_path, monkeypatch, interruption):
    model, examples = made()
    train(model, MIXED, examples)
    wanted = weights(model)

    monkeypatch.setattr(Checkpoint, "every", 0.0)
    model, examples = made(tmp_path / "stage")
    steps = training._Run._step
    taken = []

    def interrupted(run: training._Run, step: int, place: int) -> float:
        if step == 10:
            # What a kill leaves: the last checkpoint, and a half-written next one.
            if interruption == "kill":
                (tmp_path / "stage.partial.999").write_bytes(b"half")
            raise KeyboardInterrupt("at step 10")
        return steps(run, step, place)

    monkeypatch.setattr(training._Run, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match="at step 10"):
        train(model, MIXED, examples)

    def counted(run: training._Run, step: int, place: int) -> float:
        taken.append(step)
        return steps(run, step, place)

    monkeypatch.setattr(training._Run, "_step", counted)
    model, examples = made(tmp_path / "stage")
    said: list[str] = []
    examples.say = said.append
    train(model, MIXED, examples)
    assert taken == list(range(10, 18))
    assert "goes on from its checkpoint at step 10 of 18" in said[0]
    assert equal(weights(model), wanted)

    taken.clear()
    model, examples = made(tmp_path / "stage")
    train(model, MIXED, examples)
    assert taken == []
    assert equal(weights(model), wanted)


def test_a_checkpoint_that_does_not_fit_is_put_aside(made, tmp_path):
    (tmp_path / "stage.partial").write_bytes(b"no safetensors")
    model, examples = made(tmp_path / "stage")
    train(model, MIXED, examples)
    plain, others = made()
    train(plain, MIXED, others)
    assert equal(weights(model), weights(plain))
    assert not (tmp_path / "stage.partial").exists()


def test_patience_keeps_the_best_epoch(made):
    model, examples = made()
    scores = iter([0.5, 0.3, 0.4, 0.6, 0.1])
    kept: list[dict[str, torch.Tensor]] = []

    def measure() -> dict[str, float]:
        kept.append(weights(model))
        return {"cross_entropy": next(scores)}

    examples.measure = measure
    done = train(model, dataclasses.replace(LABELS, patience=2), examples)
    assert (done.best, done.steps) == (1, 24)
    assert equal(weights(model), kept[1])


def test_masks_and_shared_layers_hold(made):
    model, examples = made()
    first, second = model.bert.encoder.layer
    second.output.dense.weight = first.output.dense.weight
    name = "bert.encoder.layer.0.output.dense"
    mask = torch.rand(first.output.dense.weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    constrain(model, name, Mask(mask))
    train(model, MIXED, examples)
    assert second.output.dense.weight is first.output.dense.weight
    assert int((first.output.dense.weight != 0).sum()) == int(mask.sum())


def test_fewer_layers_learn_from_the_layers_they_were(made):
    model, examples = made()
    model.bert.encoder.layer = torch.nn.ModuleList([model.bert.encoder.layer[1]])
    state_of(model).layer_origin = [1]
    done = train(model, dataclasses.replace(MIXED, labels=0.0, epochs=6), examples)
    assert done.losses[-1] < done.losses[0]


def test_a_loss_that_is_no_number_stops_with_advice(made):
    model, examples = made()
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    with pytest.raises(ArchiverError, match="the loss is nan at step 0: lower learning_rate"):
        train(model, LABELS, examples)


def test_nothing_to_learn_from_is_a_mistake():
    nothing = Retrain(labels=0.0, distill=Distill(0.0, 0.0))
    assert "nothing to learn from" in nothing.mistakes(False)[0]
    assert Retrain().mistakes(False) == []
    assert Retrain(labels=0.0, teacher="none").mistakes(False) != []


def test_rate_by_hand():
    # 10 steps, 2 of them rising: ½, 1, then down in a line from 8/8 to 1/8.
    assert [rate(step, 10, 0.2) for step in range(10)] == [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]


def test_divergence_and_distance_by_hand():
    # softmax(0, ln 3) = (¼, ¾) against (½, ½): KL = ¼·ln ½ + ¾·ln 3/2
    teacher = torch.tensor([[0.0, torch.tensor(3.0).log()]])
    found = softened_divergence(torch.zeros(1, 2), teacher, 1.0)
    assert found.item() == pytest.approx(0.25 * -0.693147 + 0.75 * 0.405465, abs=1e-5)
    hidden, mask = torch.tensor([[[3.0, 4.0], [9.0, 9.0]]]), torch.tensor([[1, 0]])
    assert hidden_distance(torch.zeros(1, 2, 2), hidden, mask).item() == pytest.approx(1.0)
    assert hidden_distance(hidden + torch.tensor([0.0, 5.0]), hidden, mask).item() == pytest.approx(1.0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_original_answers_in_the_precision_of_the_training(made, precision):
    model, context = made()
    seen = []
    linear = next(item for item in context.teacher.modules() if isinstance(item, torch.nn.Linear))
    linear.register_forward_hook(lambda module, arguments, output: seen.append(output.dtype))
    train(model, Retrain(epochs=1, precision=precision, distill=Distill(1.0, 1.0)), context)
    assert set(seen) == {torch.bfloat16 if precision == "bf16" else torch.float32}
