"""Precision, recall and F1 of entities in tagged sentences, as seqeval counts them."""

from __future__ import annotations

from collections.abc import Sequence

Entity = tuple[str, int, int]  # kind, first word, last word


def entity_metrics(
    right: Sequence[Sequence[str]], found: Sequence[Sequence[str]], original: Sequence[Sequence[str]]
) -> dict[str, float]:
    """The metrics of tagged sentences.

    Args:
        right: [n] sentences' true tags. found: those of the model as it is. original: those of the original model.
    Returns: f1, precision and recall over all entities (a hit has the same words and the same kind); strict_f1, which
        counts by the scheme IOB2 alone; accuracy over words; agreement, as `tag_agreement` has it.
    """
    precision, recall, f1 = _scores(
        [set(entities_of(tags)) for tags in right], [set(entities_of(tags)) for tags in found]
    )
    strict = _scores(
        [set(strict_entities_of(tags)) for tags in right], [set(strict_entities_of(tags)) for tags in found]
    )
    return {
        "f1": f1,
        "precision": precision,
        "recall": recall,
        "strict_f1": strict[2],
        "accuracy": tag_agreement(right, found),
        "agreement": tag_agreement(original, found),
    }


def tag_agreement(one: Sequence[Sequence[str]], other: Sequence[Sequence[str]]) -> float:
    """The share of words whose tags are equal, over all sentences; 1 where there are none."""
    pairs = [pair for left, right in zip(one, other, strict=True) for pair in zip(left, right, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else 1.0


def entities_of(tags: Sequence[str]) -> list[Entity]:
    """The entities of one sentence, in whatever scheme of B-, I-, E- and S- marks; seqeval's default.

    A mark that cannot go on with an entity begins one: a lone I- is an entity.

    Source: seqeval 1.2.2, `get_entities`, after conlleval.pl of CoNLL-2000.
    """
    found: list[Entity] = []
    mark, kind, begin = "O", "", 0
    for place, tag in enumerate([*tags, "O"]):
        next_mark, next_kind = _split(tag)
        if _ends(mark, next_mark, kind, next_kind):
            found.append((kind, begin, place - 1))
        if _begins(mark, next_mark, kind, next_kind):
            begin = place
        mark, kind = next_mark, next_kind
    return found


def strict_entities_of(tags: Sequence[str]) -> list[Entity]:
    """The entities of one sentence by the scheme IOB2: each begins with B-, and I- of its kind follow; seqeval's strict."""
    found: list[Entity] = []
    for place, tag in enumerate(tags):
        mark, kind = _split(tag)
        if mark == "B":
            found.append((kind, place, place))
        elif mark == "I" and found and found[-1][0] == kind and found[-1][2] == place - 1:
            found[-1] = (kind, found[-1][1], place)
    return found


def _split(tag: str) -> tuple[str, str]:
    """B-person → (B, person); a tag without a kind has the kind "_", as seqeval calls it."""
    return tag[:1], tag[1:].split("-", maxsplit=1)[-1] or "_"


def _ends(mark: str, next_mark: str, kind: str, next_kind: str) -> bool:
    """Whether an entity that the previous tag is in ends before the next one."""
    return (
        mark in ("E", "S")
        or (mark in ("B", "I") and next_mark in ("B", "S", "O"))
        or (mark != "O" and kind != next_kind)
    )


def _begins(mark: str, next_mark: str, kind: str, next_kind: str) -> bool:
    """Whether the next tag begins an entity."""
    if next_mark in ("B", "S"):
        return True
    return (next_mark in ("E", "I") and mark in ("E", "S", "O")) or (next_mark != "O" and kind != next_kind)


def _scores(right: Sequence[set[Entity]], found: Sequence[set[Entity]]) -> tuple[float, float, float]:
    """(precision, recall, F1); 0 where there is nothing to divide by."""
    hits = sum(len(a & b) for a, b in zip(right, found, strict=True))
    true, said = sum(map(len, right)), sum(map(len, found))
    return hits / said if said else 0.0, hits / true if true else 0.0, 2 * hits / (true + said) if hits else 0.0
