"""The stage `share/vocabulary`: tokens that the training texts do not use are removed from the model and its tokenizer.

A text with such a token is cut into smaller tokens. The rows leave the embedding table (and a language model's head), the
tokenizer is written anew (tokenizer_trim), and the remaining ids are renumbered in their old order.
CompressionState.old_ids maps new ids to those of the original.
"""

from __future__ import annotations

import torch

from archiver.compression.context import StageContext
from archiver.compression.factorize.constraint import LowRank
from archiver.compression.report import StageReport, report_stage
from archiver.compression.share.options import Vocabulary
from archiver.compression.share.tokenizer_trim import trim_tokenizer
from archiver.errors import RecipeError
from archiver.state.constraints import Mask, sharing, state_of
from handlers.architecture.factored import FactoredEmbedding

Tensor = torch.Tensor

_BATCH = 256


def vocabulary(model: torch.nn.Module, options: Vocabulary, context: StageContext) -> StageReport:
    """Drop the rows of tokens that data.train does not use (or uses least).

    Args:
        model: changed in place.
        options: how many tokens are kept.
        context: gives training batches and the tokenizer.
    Returns: the report.
    Raises: RecipeError when the model or its tokenizer does not fit; UnsupportedModelError for a kind of tokenizer
        whose tokens cannot be dropped.
    """
    problems = check(model, options)
    if problems:
        raise RecipeError("share/vocabulary does not fit this model:", problems)
    rows = len(_rows(model)[1])
    counts = token_counts(context, rows)
    used = chosen_ids(counts, None if options.keep == "train" else int(options.keep))
    trimmed = trim_tokenizer(context.tokenizer_json(), used, _needed_ids(model))
    kept = torch.tensor(trimmed.old_ids)
    if int(kept[-1]) >= rows:
        raise RecipeError(
            f"the tokenizer knows the id {int(kept[-1])}, the embedding table has {rows} rows: they do not belong together"
        )
    _slice(model, kept)
    _renumber(model, {old: new for new, old in enumerate(trimmed.old_ids)})
    state = state_of(model)
    state.old_ids = kept if state.old_ids is None else state.old_ids[kept]
    state.tokenizer_json = trimmed.tokenizer_json
    return report_stage("share/vocabulary", model, options, _notes(rows, len(used), len(kept), counts, kept, model))


def check(model: torch.nn.Module, options: Vocabulary) -> list[str]:
    """Problems before any work: a model whose rows cannot be dropped."""
    name, table = _table(model)
    if not isinstance(table, torch.nn.Embedding):
        return [f"the input embeddings {name} are a {type(table).__name__}, not a table of rows: remove the stage"]
    problems, rows = [], table.num_embeddings
    if options.keep != "train" and int(options.keep) >= rows:
        problems.append(f"keep is {options.keep}, and {name} has {rows} rows: nothing would be dropped; lower it")
    chain = state_of(model).constraints.get(name, [])
    fixed = [type(item).__name__ for item in chain if not isinstance(item, (Mask, LowRank))]
    if fixed:
        problems.append(
            f"the values of {name} were chosen by an earlier stage ({', '.join(fixed)}) for all rows together: "
            "put share/vocabulary before it"
        )
    return problems


def token_counts(context: StageContext, rows: int) -> Tensor:
    """How often each token occurs in data.train, padding left out.

    Args:
        context: gives training batches.
        rows: of the embedding table.
    Returns: [rows] int64.
    """
    counts = torch.zeros(rows, dtype=torch.int64)
    for batch in context.train(_BATCH, 0):
        real = batch["input_ids"][batch["attention_mask"].bool()]
        counts += torch.bincount(real.cpu(), minlength=rows)
    return counts


def chosen_ids(counts: Tensor, most: int | None) -> list[int]:
    """Ids of tokens that occur.

    Args:
        counts: [rows], how often each token occurs.
        most: only so many, the most frequent ones, the lower id first among equals; None: all.
    Returns: ids, rising.
    """
    used = counts.nonzero()[:, 0]
    if most is not None and len(used) > most:
        used = used[torch.argsort(counts[used], descending=True, stable=True)[:most]]
    return sorted(used.tolist())


def _rows(model: torch.nn.Module) -> tuple[str, Tensor]:
    """Name of the module that holds the input embeddings' rows, and its weight [rows, width]."""
    name, table = _table(model)
    return name, table.get_parameter("weight")


def _table(model: torch.nn.Module) -> tuple[str, torch.nn.Module]:
    """Name and module of the input embeddings' rows."""
    table = model.get_input_embeddings()  # type: ignore[operator]  # transformers' own
    name = next(found for found, module in model.named_modules() if module is table)
    return (f"{name}.rows", table.rows) if isinstance(table, FactoredEmbedding) else (name, table)


def _slice(model: torch.nn.Module, kept: Tensor) -> None:
    """Keep those rows in the table, the head, and whatever shares their Parameters, and in the constraints on them."""
    name, table = _table(model)
    owners = [name]
    head = model.get_output_embeddings()  # type: ignore[operator]  # transformers' own
    if head is not None and head.weight is not table.weight:
        owners.append(next(found for found, module in model.named_modules() if module is head))
    sliced: set[int] = set()
    for owner in owners:
        for twin in sharing(model, owner):
            module = model.get_submodule(twin)
            for value in (module.weight, getattr(module, "bias", None)):
                if isinstance(value, torch.nn.Parameter) and id(value) not in sliced:
                    sliced.add(id(value))
                    value.data = value.data[kept].clone()  # the same Parameter, so that modules that share it still do
            if isinstance(module, torch.nn.Embedding):
                module.num_embeddings = len(kept)
            else:
                module.out_features = len(kept)  # type: ignore[assignment]
            for constraint in state_of(model).constraints.get(twin, []):
                if id(constraint) not in sliced:
                    sliced.add(id(constraint))
                    _slice_constraint(constraint, kept)


def _slice_constraint(constraint: torch.nn.Module, kept: Tensor) -> None:
    if isinstance(constraint, Mask):
        constraint.mask = constraint.mask[kept]
    elif isinstance(constraint, LowRank):
        constraint.a.data = constraint.a.data[kept].clone()


def _id_settings(model: torch.nn.Module) -> list[tuple[object, str, int | list[int]]]:
    """(owner, name, value) of every setting that is a token's id or a list of ids, in the config and generation_config."""
    found = []
    for owner in (getattr(model, "config", None), getattr(model, "generation_config", None)):
        for name, value in list(vars(owner).items()) if owner is not None else []:
            single = isinstance(value, int) and not isinstance(value, bool)
            several = isinstance(value, list) and value and all(isinstance(item, int) for item in value)
            if name.endswith("_token_id") and (single or several):
                found.append((owner, name, value))
    return found


def _needed_ids(model: torch.nn.Module) -> list[int]:
    """Ids that the config names, and all up to the padding's where positions are counted from it (RoBERTa's)."""
    needed: list[int] = []
    for _, _, value in _id_settings(model):
        needed += value if isinstance(value, list) else [value]
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        if hasattr(module, "position_embeddings") and isinstance(padding, int):
            needed += range(padding + 1)
    return needed


def _renumber(model: torch.nn.Module, new_ids: dict[int, int]) -> None:
    """New ids in the config and in the modules that know the padding's."""
    for owner, name, value in _id_settings(model):
        if isinstance(value, list):
            setattr(owner, name, [new_ids.get(item, item) for item in value])
        else:
            setattr(owner, name, new_ids.get(value, value))
    name, table = _table(model)
    for module in model.modules():
        # Tables of positions and types have a padding_idx too, which is none of a token.
        padded = module is table or not isinstance(module, torch.nn.Embedding)
        padding = getattr(module, "padding_idx", None)
        if padded and isinstance(padding, int) and padding in new_ids and not isinstance(module, FactoredEmbedding):
            module.padding_idx = new_ids[padding]  # type: ignore[assignment]
    model.config.vocab_size = len(new_ids)  # type: ignore[union-attr]


def _notes(rows: int, used: int, kept: int, counts: Tensor, ids: Tensor, model: torch.nn.Module) -> list[str]:
    covered = float(counts[ids].sum() / counts.sum().clamp(min=1))
    notes = [
        f"{kept} of {rows} tokens are kept: {used} for data.train, {kept - used} so that every string can be cut",
        "data.train is cut into the same tokens as before"
        if covered == 1.0
        else f"{covered:.2%} of data.train's tokens are kept, the others fall apart into kept ones",
    ]
    if model.get_output_embeddings() is None:  # type: ignore[operator]
        notes.append("makes nothing faster: looking up a row costs the same in a smaller table")
    return notes
