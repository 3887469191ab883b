"""The tasks marpress knows, and the metrics a gate may bound for each."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Metric:
    """higher_is_better: what `max_drop` and `min` bound; a lower-is-better metric is bounded by `max_increase`.

    needs_label: measured against the data's labels, not only against the original model's answers
    needs_pair: measured on pairs of texts with a similarity as label
    lowest: the least value it can take
    """

    higher_is_better: bool = True
    needs_label: bool = False
    needs_pair: bool = False
    lowest: float = 0.0


@dataclass(frozen=True)
class Task:
    """auto_class: the transformers class that loads a model for this task. handler: `module:Class` of its handler."""

    auto_class: str
    handler: str
    metrics: dict[str, Metric] = field(default_factory=dict)


TASKS: dict[str, Task] = {
    "text-classification": Task(
        auto_class="AutoModelForSequenceClassification",
        handler="handlers.tasks.text.classification:TextClassificationHandler",
        metrics={
            "accuracy": Metric(needs_label=True),
            "f1": Metric(needs_label=True),  # macro
            "cross_entropy": Metric(higher_is_better=False, needs_label=True),
            "agreement": Metric(),  # share of answers equal to the original model's
        },
    ),
    "feature-extraction": Task(
        auto_class="AutoModel",
        handler="handlers.tasks.text.feature_extraction:FeatureExtractionHandler",
        metrics={
            "cosine": Metric(lowest=-1.0),  # mean, between original and compressed vectors
            "recall@10": Metric(),  # of the original model's 10 nearest neighbours
            "spearman": Metric(needs_label=True, needs_pair=True, lowest=-1.0),
        },
    ),
    "text-generation": Task(
        auto_class="AutoModelForCausalLM",
        handler="handlers.tasks.text.generation:TextGenerationHandler",
        metrics={
            "perplexity": Metric(higher_is_better=False),  # exp of the mean negative log-likelihood a predicted token
            "cross_entropy": Metric(higher_is_better=False),  # that mean, in nats
            "agreement": Metric(),  # share of next tokens (the likeliest one) equal to the original model's
        },
    ),
}
