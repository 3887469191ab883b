"""recommendation: which items come next after a history, among all items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from archiver.data.interactions import LEAST, read_interactions, read_names
from archiver.errors import DataError
from archiver.evaluation.metrics.recommendation import (
    markov_scores,
    popularity_scores,
    rank_in,
    ranking_metrics,
    ranks_of,
)
from archiver.evaluation.rounding import rounded
from archiver.tasks.base import Metric, limit_line
from archiver.tasks.forward import ForwardTask, Measured
from archiver.tasks.items.new import SasRec, make_sasrec
from handlers.inputs.items import CATALOG, Catalog, History, ItemId, Items

if TYPE_CHECKING:
    import torch

    from archiver.architecture.tracing import Tracing
    from archiver.models.facts import ModelFacts
    from archiver.models.source import ModelSource
    from archiver.spec import Recipe, ServeSpec
    from archiver.tasks.workload import Workload

_STARTER = """
# Fill in your data and uncomment: the gate is measured on each user's last item, and what stands before it is learnt from.
# data:
#   train: interactions.tsv     # one interaction a line: .tsv, .csv or .jsonl, relative to this file
#   validation: interactions.tsv      # the same file: the last item of each user is held out
#   columns: {user: user, item: item, time: timestamp}      # positions where the file has no header

compress:
  - quantize: {method: weight-only, bits: 8, targets: "*"}
  # - quantize: {method: product, splits: 32, bits: 6}      # the item table as codes; fewer are smaller still

# gate:                         # a bound that is missed, or cannot be measured, means no archive
#   max_drop: {hit@10: 0.01, ndcg@10: 0.01}   # 0.01 is one point, against the original model, all items ranked
#   min_speedup: 1.0            # against PyTorch eager fp32
#   max_size_mb: 5              # of the archive
"""


@dataclass(frozen=True)
class UserHistory:
    """One user's items, oldest first, at least two: by their ids, and as rows of the model's table."""

    user: str
    items: tuple[ItemId, ...]
    rows: tuple[int, ...]

    def without_last(self) -> UserHistory:
        """The same a step earlier."""
        return UserHistory(self.user, self.items[:-1], self.rows[:-1])


def never_twice(examples: Sequence[UserHistory]) -> bool:
    """Whether nobody has an item twice, as with films that are rated: what was seen then is never what comes next."""
    return all(len(set(one.rows)) == len(one.rows) for one in examples)


class Recommendation(ForwardTask):
    """The next item is learnt at every place of a history; two models are compared by what they expect next.

    Where validation data is the training file itself, each user's last item is what is measured, and it is not learnt from.
    """

    name = "recommendation"
    auto_class = "AutoModel"
    base_only = False
    input_name = "item_ids"
    architectures = ("ForNextItem",)
    metrics = {
        "hit@10": Metric(),
        "ndcg@10": Metric(),
        "agreement": Metric(),  # share of histories after which the original puts the same item first
    }
    headlines = ("ndcg@10",)
    fine = ("ndcg@10",)
    columns = ("user", "item", "time")
    data_suffixes = (".tsv", ".csv", ".jsonl", ".ndjson")
    fallback = None
    new_models = {"sasrec": SasRec}
    data_keys = ("items", "min_count")
    serve_keys = ("max_length", "precision", "max_queue")
    unit = "histories"
    workload = "archiver.tasks.items.workload:RecommendationWorkload"
    handler = "handlers.tasks.items.recommendation:RecommendationHandler"
    module = "handlers.architecture.outputs.next_item:NextItem"
    packages = ()
    exact_products = True
    starter = _STARTER

    # ---- the model ----------------------------------------------------------------------------------------------------

    def make_model(self, recipe: Recipe, folder: Path) -> None:
        data, model = recipe.data, recipe.model
        assert isinstance(data.train, Path)
        found = read_interactions(data.train, data.columns, min_count=data.min_count or 1)
        names = read_names(data.items) if data.items is not None else {}
        make_sasrec(folder, model.options, found.items, names)  # type: ignore[union-attr]

    def tracing(self, workload: Workload) -> Tracing:
        from archiver.architecture.tracing import history_tracing

        return history_tracing(workload.facts.vocab_size, max_length=workload.recipe.serve.max_length)

    def check(self, recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[str]:
        found = Catalog.read(source.path) if (source.path / CATALOG).is_file() else None
        if found is None:
            return [f"{source.source} has no {CATALOG}, which names its items: make it with `model: new:sasrec`"]
        if len(found) != facts.vocab_size:
            return [
                f"{CATALOG} names {len(found)} items, the table has {facts.vocab_size} rows: they do not belong together"
            ]
        return []

    # ---- data ---------------------------------------------------------------------------------------------------------

    def read(self, where: Path | str, recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[Any]:
        if not isinstance(where, Path):
            raise DataError(f"{where} is no file: interactions are read from .tsv, .csv and .jsonl files")
        catalog = Catalog.read(source.path)
        found = read_interactions(
            where,
            recipe.data.columns,
            min_count=recipe.data.min_count or 1,
            known=[str(item) for item in catalog.ids],
        )
        rows = {str(item): row for row, item in enumerate(catalog.ids)}
        histories = [tuple(rows[item] for item in items) for items in found.histories]
        return [
            UserHistory(user, tuple(catalog.ids[row] for row in mine), mine)
            for user, mine in zip(found.users, histories, strict=True)
        ]

    def learnt(self, recipe: Recipe, example: UserHistory) -> Sequence[int]:
        """The items of a training example that are learnt from: without the last where that is what is measured."""
        return example.rows[:-1] if recipe.data.train == recipe.data.validation else example.rows

    def for_selection(
        self, recipe: Recipe, train: Sequence[Any], validation: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Each user's last item but one decides, where the last is what is measured; it is not learnt from then."""
        tried = [one.without_last() for one in validation if len(one.items) > LEAST]
        if recipe.data.train != recipe.data.validation:
            return list(train), tried
        return [one.without_last() for one in train if len(one.items) > LEAST], tried

    def baselines(
        self, recipe: Recipe, facts: ModelFacts, train: Sequence[Any], validation: Sequence[Any]
    ) -> Mapping[str, Mapping[str, float]]:
        """The most popular items, and a first-order Markov chain."""
        known, items = [self.learnt(recipe, one) for one in train], facts.vocab_size
        targets = [one.rows[-1] for one in validation]
        popular = popularity_scores(known, items)
        rankings = {
            "most popular": (popular for _ in targets),
            "first-order Markov chain": markov_scores(known, items, [one.rows[-2] for one in validation]),
        }
        seen = [one.rows[:-1] for one in validation] if never_twice(validation) else None
        return {name: ranking_metrics(ranks_of(scores, targets, seen)) for name, scores in rankings.items()}

    def examples_of(self, where: Path, workload: Workload) -> list[Any]:
        return self.values(self.read(where, workload.recipe, workload.source, workload.facts))

    # ---- inputs -------------------------------------------------------------------------------------------------------

    def values(self, examples: Sequence[UserHistory]) -> list[Any]:
        """All items of a user but the last, which is to be found."""
        return [History(example.items[:-1]) for example in examples]

    def input_settings(self, workload: Workload) -> dict[str, Any]:
        """Items that were seen are left out of answers, unless a request says otherwise, where nobody has one twice."""
        return {"max_length": workload.recipe.serve.max_length, "exclude_seen": never_twice(workload.examples)}

    def make_input(self, workload: Workload, original: bool) -> Items:
        return Items.open(workload.source.path, self.input_settings(workload))

    def write_inputs(self, workload: Workload, folder: Path) -> None:
        (folder / CATALOG).write_bytes((workload.source.path / CATALOG).read_bytes())

    def sizes(self, serve: ServeSpec) -> list[int]:
        """A dozen or so lengths: twice as long, or half as long again."""
        found, size = [], 4
        while size < serve.max_length:
            found += [size, size * 3 // 2]
            size *= 2
        return [*(length for length in found if length < serve.max_length), serve.max_length]

    def extent(self, workload: Workload) -> dict[str, int]:
        return {"max_length": workload.recipe.serve.max_length, "items": workload.facts.vocab_size}

    # ---- answers ------------------------------------------------------------------------------------------------------

    def answer_settings(self, facts: ModelFacts) -> dict[str, Any]:
        return {}

    def metrics_of(self, measured: Measured) -> dict[str, float]:
        """Of the ranking that is answered: all items, less those of the history where these are left out."""
        found, reference = ([one.outputs[0][0] for one in side] for side in (measured.found, measured.reference))
        ranks = [rank_in(rows, one.rows[-1]) for rows, one in zip(found, measured.examples, strict=True)]
        equal = [np.array_equal(rows[:1], other[:1]) for rows, other in zip(found, reference, strict=True)]
        return ranking_metrics(ranks) | rounded({"agreement": sum(equal) / len(equal)})

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy over the candidates, the mean over all places that have a target.

        Args:
            outputs: [rows, length, candidates]. labels: [rows, length], -100 where there is no target.
        """
        from torch.nn import functional

        return functional.cross_entropy(outputs.flatten(0, 1), labels.flatten())

    def distance(
        self, outputs: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, temperature: float
    ) -> torch.Tensor:
        from archiver.compression.retrain.objectives import softened_divergence

        apart = softened_divergence(outputs, teacher, temperature)
        return apart.mean() if mask is None else (apart * mask).sum() / mask.sum()

    def summary(self, facts: ModelFacts) -> list[str]:
        return [f"{facts.vocab_size} items, each a vector of {facts.hidden_size} numbers"]

    def starter_limits(self, facts: ModelFacts) -> str:
        return limit_line(facts.max_positions, "of a longer history the last items are looked at").replace(
            "tokens", "items"
        )
