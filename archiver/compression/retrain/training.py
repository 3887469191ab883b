"""The training loop behind `retrain`, `aware`, gradual pruning and regrowth.

The model learns from labels and from the original (its outputs and its hidden states) while every constraint of earlier
stages holds. Dropout stays off unless it is asked for: a few epochs of distillation are too short to need it. Batches,
their order and dropout are drawn from the seed, so that the same seed gives the same weights, also across an interruption.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from archiver.architecture import layer_stacks
from archiver.compression.context import Batch, StageContext, inputs_of, real_places
from archiver.compression.retrain.checkpoint import Checkpoint
from archiver.compression.retrain.objectives import hidden_distance
from archiver.compression.retrain.options import Retrain
from archiver.errors import ArchiverError
from archiver.state.constraints import constrained, state_of
from handlers.cpu import host_isa, threads_per_worker

Tensor = torch.Tensor

CLIP = 1.0  # the gradient's largest norm
_REPORT_SECONDS = 15.0
_TEACHER_BYTES = 1_500_000_000  # the original's answers are kept from the first epoch on, up to this much


@dataclass
class Trained:
    """What a training has done.

    Args:
        steps: how many.
        losses: the mean of each epoch.
        best: the epoch whose weights were kept, None when the last one's were.
    """

    steps: int = 0
    losses: list[float] = field(default_factory=list)
    best: int | None = None


def train(model: torch.nn.Module, options: Retrain, context: StageContext) -> Trained:
    """Train a model in place; constraints hold at the end exactly.

    An interrupted run goes on from `context.checkpoint`.

    Args:
        model: the transformers module within `context.module`.
        options: losses, optimiser and precision.
        context: gives training batches, the teacher and validation metrics.
    Returns: steps and losses.
    Raises: ArchiverError when there are no batches, or the loss is not a finite number any more.
    """
    context.module.eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(threads_per_worker(1))
    batches = context.train(options.batch_size, options.seed)
    if not batches:
        raise ArchiverError("retraining has no training batches")
    teacher = _Teacher(context, options, device) if options.teacher == "original" else None
    context.module.to(device)
    try:
        with constrained(model), _gradients(model):
            return _Run(model, options, context, batches, teacher, device).run()
    finally:
        context.module.to("cpu")
        context.teacher.to("cpu")
        for parameter in model.parameters():
            parameter.grad = None


class _Run:
    """One training: its optimiser, schedule, checkpoint and reports."""

    def __init__(
        self,
        model: torch.nn.Module,
        options: Retrain,
        context: StageContext,
        batches: Sequence[Batch],
        teacher: _Teacher | None,
        device: torch.device,
    ) -> None:
        self.model, self.options, self.context = model, options, context
        self.batches, self.teacher, self.device = batches, teacher, device
        self.total = options.epochs * len(batches)
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        decayed = [p for name, p in self.parameters.items() if p.dim() >= 2]
        others = [p for name, p in self.parameters.items() if p.dim() < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=options.learning_rate,
            fused=True,
        )
        self.checkpoint = Checkpoint(context.checkpoint, self.parameters, self.optimizer)
        self.bf16 = computes_in_bf16(options.precision, device)

    def run(self) -> Trained:
        done = Trained(*self.checkpoint.load())
        if self.checkpoint.finished:
            self.context.say("    taken from the checkpoint of an earlier run")
            return done
        if done.steps:
            self.context.say(f"    goes on from its checkpoint at step {done.steps} of {self.total}")
        started, first = time.perf_counter(), done.steps
        reported = saved = started
        running: list[float] = []
        for epoch in range(done.steps // len(self.batches), self.options.epochs):
            order = torch.randperm(
                len(self.batches), generator=torch.Generator().manual_seed(self.options.seed + epoch)
            )
            for place in order[done.steps - epoch * len(self.batches) :].tolist():
                running.append(self._step(done.steps, place))
                done.steps += 1
                now = time.perf_counter()
                if now - reported > _REPORT_SECONDS or done.steps == self.total:
                    reported = now
                    left = (now - started) / (done.steps - first) * (self.total - done.steps)
                    recent = sum(running[-50:]) / len(running[-50:])
                    self.context.say(
                        f"    epoch {epoch + 1}/{self.options.epochs}, step {done.steps}/{self.total}, "
                        f"loss {recent:.4f}, {left:.0f} s left"
                    )
                if now - saved > self.checkpoint.every:
                    saved = now
                    self.checkpoint.save(done.steps, done.losses, done.best)
            done.losses.append(sum(running) / max(1, len(running)))
            running.clear()
            if self.options.patience is not None and self._exhausted(done, epoch):
                break
        self.checkpoint.finish(done.steps, done.losses, done.best)
        return done

    def _step(self, step: int, place: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * rate(step, self.total, self.options.warmup)
        batch = {name: tensor.to(self.device) for name, tensor in self.batches[place].items()}
        loss = self._loss(batch, place, step)
        if not math.isfinite(loss.item()):
            raise ArchiverError(
                f"retraining: the loss is {loss.item()} at step {step}: lower learning_rate "
                f"({self.options.learning_rate:g}), or set precision to fp32"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), CLIP)
        self.optimizer.step()
        return loss.item()

    def _loss(self, batch: Batch, place: int, step: int) -> Tensor:
        options, objective = self.options, self.context.objective
        wants_hidden = self.teacher is not None and options.distill.hidden > 0
        recomputes = _recomputed_layers(self.model, options.gradient_checkpointing)
        with _hidden_states(self.model, wants_hidden) as hidden, self._dropout(step), recomputes:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                outputs = self.context.module(**inputs_of(batch, self.context.module))
        if not objective.predicts_tokens:  # logits of a vocabulary are large: their losses widen some rows at a time
            outputs = outputs.float()
        loss = torch.zeros((), device=self.device)
        if options.labels > 0 and objective.loss is not None and "labels" in batch:
            loss = loss + options.labels * objective.loss(outputs, batch["labels"])
        if self.teacher is not None:
            target, theirs = self.teacher.answer(batch, place, self.model)
            mask = real_places(batch, self.context.module)
            if options.distill.logits > 0:
                distance = objective.distance(outputs, target, mask, options.temperature)
                loss = loss + options.distill.logits * distance
            if wants_hidden:
                pairs = zip(hidden, theirs, strict=True)
                distances = [hidden_distance(ours.float(), original.float(), mask) for ours, original in pairs]
                loss = loss + options.distill.hidden * torch.stack(distances).mean()
        return loss

    @contextmanager
    def _dropout(self, step: int) -> Iterator[None]:
        """Inside, the model drops what its dropout layers drop, drawn from the seed and the step; where asked for."""
        if not self.options.dropout:
            yield
            return
        with torch.random.fork_rng():
            torch.manual_seed(self.options.seed + step)
            self.context.module.train()
            try:
                yield
            finally:
                self.context.module.eval()

    def _exhausted(self, done: Trained, epoch: int) -> bool:
        """Keep the best epoch's weights; True when `patience` epochs have brought nothing better."""
        assert self.options.patience is not None
        device = self.device
        score = self.context.objective.fine_score(self.context.measure())
        self.context.module.to(device)
        if self.checkpoint.best_score is None or score < self.checkpoint.best_score:
            self.checkpoint.keep_best(score)
            done.best = epoch
            return False
        self.context.say(f"    epoch {epoch + 1} brings nothing better on validation ({score:.4f})")
        return epoch - (done.best or 0) >= self.options.patience


def computes_in_bf16(precision: str, device: torch.device) -> bool:
    """Whether products are made in bf16: where it was asked for, or "auto" on a host that is fast in it."""
    if precision != "auto":
        return precision == "bf16"
    return device.type == "cuda" or bool({"avx512_bf16", "amx_bf16"} & set(host_isa()))


def rate(step: int, total: int, warmup: float) -> float:
    """The share of the learning rate at a step: linearly up over the warm-up, then linearly down to 0.

    Args:
        step: 0 ≤ step < total.
        total: steps of the training.
        warmup: share of the steps in which the rate rises.
    Returns: from 0 to 1.
    """
    rising = max(1, round(total * warmup))
    if step < rising:
        return (step + 1) / rising
    return max(0.0, (total - step) / max(1, total - rising))


class _Teacher:
    """The original's answers to each batch, computed once and kept as long as there is room."""

    def __init__(self, context: StageContext, options: Retrain, device: torch.device) -> None:
        self._module = context.teacher.eval().to(device)
        self._bf16 = computes_in_bf16(options.precision, device)
        self._hidden = options.distill.hidden > 0
        self._predicts_tokens = context.objective.predicts_tokens
        self._device = device
        self._kept: dict[int, tuple[Tensor, list[Tensor]]] = {}
        self._room = _TEACHER_BYTES if options.epochs > 1 else 0  # nothing is asked for twice in one
        inner = getattr(context.teacher, "model", context.teacher)
        self._model: torch.nn.Module = inner

    def answer(self, batch: Batch, place: int, model: torch.nn.Module) -> tuple[Tensor, list[Tensor]]:
        """(outputs, hidden states behind the original's layer of each layer that `model` still has)."""
        if place in self._kept:
            outputs, hidden = self._kept[place]
            return outputs.to(self._device), [item.to(self._device) for item in hidden]
        state = state_of(model)
        inputs = inputs_of(batch, self._module)
        if state.old_ids is not None:  # the original knows the tokens by their old ids
            inputs["input_ids"] = state.old_ids.to(self._device)[inputs["input_ids"]]
        with torch.no_grad(), _hidden_states(self._model, self._hidden) as hidden:
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
                outputs = self._module(**inputs)
            if not self._predicts_tokens:
                outputs = outputs.float()
        if state.old_ids is not None and self._predicts_tokens:
            outputs = outputs[..., state.old_ids.to(self._device)]
        layers = state.layer_origin if state.layer_origin is not None else range(len(hidden))
        chosen = [hidden[index].to(torch.bfloat16) for index in layers] if self._hidden else []
        size = sum(item.numel() * item.element_size() for item in (outputs, *chosen))
        if size <= self._room:
            self._room -= size
            self._kept[place] = (outputs.cpu(), [item.cpu() for item in chosen])
        return outputs, chosen


@contextmanager
def _hidden_states(model: torch.nn.Module, wanted: bool) -> Iterator[list[Tensor]]:
    """Collects what each transformer layer of `model` gives, in order, while it runs inside."""
    found: list[Tensor] = []

    def watch(module: torch.nn.Module, arguments: object, output: object) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)  # type: ignore[arg-type]

    layers = [layer for stack in layer_stacks(model) for layer in stack] if wanted else []
    hooks = [layer.register_forward_hook(watch) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _recomputed_layers(model: torch.nn.Module, wanted: bool) -> Iterator[None]:
    """What runs inside keeps of each transformer layer its inputs alone; backward runs the layer again.

    Source: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174.
    """
    layers = {id(layer): layer for stack in layer_stacks(model) for layer in stack} if wanted else {}
    own = {key: vars(layer).get("forward") for key, layer in layers.items()}
    for layer in layers.values():
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for key, layer in layers.items():
            del layer.forward
            if own[key] is not None:
                layer.forward = own[key]


@contextmanager
def _gradients(model: torch.nn.Module) -> Iterator[None]:
    """Gradients are enabled inside; at the end each Parameter's requires_grad is what it was before."""
    before = {name: value.requires_grad for name, value in model.named_parameters()}
    with torch.enable_grad():
        yield
    for name, value in model.named_parameters():
        value.requires_grad_(before.get(name, True))
