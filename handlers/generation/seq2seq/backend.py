"""An encoder-decoder's texts in groups: sources that wait are read together, and written together step by step.

Keys and values of a group have one length, so that nobody joins it later; a row that is done leaves it. Several groups take
turns, a step each: a short source that comes while a long one is written is not held up by it.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from handlers.generation.backend import FAILED, LENGTH, STOP, Load, Step
from handlers.generation.engine import Job
from handlers.generation.seq2seq.rules import Rules
from handlers.generation.seq2seq.search import Search, search_for
from handlers.generation.seq2seq.session import Decoder, Seq2SeqSession
from handlers.inputs.base import Input

logger = logging.getLogger(__name__)

GROUPS = 4  # that take turns
PATIENCE = 4  # groups that may pass an older source over for shorter ones


@dataclass
class SourceJob(Job):
    """A text with a source of its own.

    Args:
        item: as the kind of input encodes it. rules: how it is written.
        looked: called after each step with the cross-attention [heads, new, length] that the step's tokens had, where the
            archive tells it and the text has one row.
        begun: called after the first step with its logits [vocabulary], those behind the rules' `start`.
    """

    item: Any = None
    rules: Rules = field(default_factory=lambda: Rules((0,), (), 1))
    looked: Callable[[np.ndarray], None] | None = None
    begun: Callable[[np.ndarray], None] | None = None

    def join(self, backend: Any, key: int) -> None:
        backend.add_source(key, self.item, self.rules, self.looked, self.begun)


@dataclass(eq=False)
class _Waiting:
    key: int
    item: Any
    rules: Rules
    looked: Callable[[np.ndarray], None] | None = None
    begun: Callable[[np.ndarray], None] | None = None
    passed: int = 0


@dataclass(eq=False)
class _Member:
    """place: of its source in the group. rows: (row of the last step, next token), in order."""

    key: int
    place: int
    search: Search
    rows: list[tuple[int, int]]
    looked: Callable[[np.ndarray], None] | None = None
    begun: Callable[[np.ndarray], None] | None = None


@dataclass(eq=False)
class _Group:
    decoder: Decoder
    members: list[_Member]
    ids: np.ndarray  # of the next step
    parents: list[int]

    @property
    def places(self) -> list[int]:
        return [member.place for member in self.members for _ in member.rows]


class Seq2SeqBackend:
    """A Backend (see handlers.generation.backend) over a session.

    Args:
        session: the model. input: makes arrays of items. max_rows: in all groups together, a beam counts as one.
        most_size: of one group's sources together, padding included.
    """

    def __init__(self, session: Seq2SeqSession, input: Input[Any, Any], *, max_rows: int, most_size: int) -> None:
        self.session = session
        self.name = session.name
        self._input = input
        self._max_rows = max_rows
        self._most_size = most_size
        self._waiting: list[_Waiting] = []
        self._groups: list[_Group] = []

    def add_source(
        self,
        key: int,
        item: Any,
        rules: Rules,
        looked: Callable[[np.ndarray], None] | None = None,
        begun: Callable[[np.ndarray], None] | None = None,
    ) -> None:
        """Let a source join at the next step. See `SourceJob`."""
        self._waiting.append(_Waiting(key, item, rules, looked, begun))

    def step(self) -> list[Step]:
        """Read a group of sources where there is room; then one token of every row."""
        steps = self._begin()
        for group in list(self._groups):
            try:
                steps += self._advance(group)
            except Exception:  # the keys and values may be half written: nobody in the group can go on
                logger.exception("a group of %d texts failed", len(group.members))
                steps += [Step(member.key, (), finish=FAILED) for member in group.members]
                group.members = []
            if not group.members:
                group.decoder.close()
                self._groups.remove(group)
        return steps

    def cancel(self, key: int) -> None:
        """See `Backend`."""
        self._waiting = [entry for entry in self._waiting if entry.key != key]
        for group in list(self._groups):
            if any(member.key == key for member in group.members):
                self._keep(group, [member for member in group.members if member.key != key])
                if not group.members:
                    group.decoder.close()
                    self._groups.remove(group)

    def load(self) -> Load:
        """See `Backend`. cache_use is 0: keys and values grow with the texts and have no fixed size."""
        return Load(sum(len(group.members) for group in self._groups), len(self._waiting))

    # ---- a group's life -----------------------------------------------------------------------------------------------

    def _begin(self) -> list[Step]:
        chosen = self._choose()
        if not chosen:
            return []
        for entry in chosen:
            self._waiting.remove(entry)
        try:
            size = max(self._input.size(entry.item) for entry in chosen)
            decoder = self.session.read(self._input.collate([entry.item for entry in chosen], size, len(chosen)))
        except Exception:
            logger.exception("%d sources could not be read", len(chosen))
            return [Step(entry.key, (), finish=FAILED) for entry in chosen]
        members = [
            _Member(
                entry.key,
                place,
                search_for(entry.rules, getattr(entry.item, "ids", ())),
                [(0, 0)],
                entry.looked,
                entry.begun,
            )
            for place, entry in enumerate(chosen)
        ]
        ids = np.array([entry.rules.start for entry in chosen], np.int64)
        self._groups.append(_Group(decoder, members, ids, list(range(len(chosen)))))
        return []

    def _choose(self) -> list[_Waiting]:
        """Who is read next: the shortest first, but nobody is passed over more than PATIENCE times."""
        room = self._max_rows - sum(member.search.rows for group in self._groups for member in group.members)
        if not self._waiting or len(self._groups) >= GROUPS:
            return []
        ordered = sorted(self._waiting, key=lambda entry: self._input.size(entry.item))
        oldest = self._waiting[0]
        if oldest.passed >= PATIENCE:
            ordered = [oldest, *(entry for entry in ordered if entry is not oldest)]
        chosen: list[_Waiting] = []
        longest = 0
        for entry in ordered:
            # What begins differently has a first step of another length.
            if chosen and len(entry.rules.start) != len(chosen[0].rules.start):
                continue
            longest = max(longest, self._input.size(entry.item))
            fits = entry.rules.num_beams <= room and longest * (len(chosen) + 1) <= self._most_size
            alone = not chosen and not self._groups
            if not fits and not alone:
                break
            chosen.append(entry)
            room -= entry.rules.num_beams
        if oldest not in chosen and chosen:
            oldest.passed += 1
        return chosen

    def _advance(self, group: _Group) -> list[Step]:
        logits = group.decoder.step(group.ids, group.parents, group.places)
        steps, start = [], 0
        staying: list[_Member] = []
        offsets: dict[int, int] = {}
        for member in group.members:
            count = len(member.rows)
            rows = logits[start : start + count]
            offsets[member.key] = start
            start += count
            if not np.isfinite(rows).all():
                logger.error("the model's logits are not finite")
                steps.append(Step(member.key, (), finish=FAILED))
                continue
            if member.looked is not None:
                member.looked(group.decoder.attention()[offsets[member.key]].copy())
            if member.begun is not None:
                member.begun(rows[0].copy())
                member.begun = None
            found = member.search.advance(rows)
            member.rows = list(found.rows)
            finish = None if found.rows else STOP if found.ended else LENGTH
            if found.told or finish is not None:
                steps.append(Step(member.key, found.told, found.logprobs, finish))
            if finish is None:
                staying.append(member)
        group.members = staying
        group.parents = [offsets[member.key] + row for member in staying for row, _ in member.rows]
        group.ids = np.array([[token] for member in staying for _, token in member.rows], np.int64)
        return steps

    def _keep(self, group: _Group, members: Sequence[_Member]) -> None:
        """Only these members go on."""
        rows = [(member, place) for member in group.members for place in range(len(member.rows))]
        kept = [index for index, (member, _) in enumerate(rows) if member in members]
        group.members = list(members)
        group.parents = [group.parents[index] for index in kept]
        group.ids = group.ids[kept]
