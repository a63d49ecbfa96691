"""Rows of earlier steps, kept to be trained on again: what every replay method stores, draws, forgets and saves.

A stored row keeps the behaviour log-probs, versions and temperatures of the weights that sampled it, so that a ratio
to them is exact however old it is. A store changes only in `AddOn.observe` (so that what a step replays depends on
its state at the start of the step alone) and every choice is seeded by its caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from rlvr.types import F32, I32, Bool, Group, Metrics, Origin, Row, Trajectory, Verdict, step_of

ARRAYS = {"tokens": "<i4", "origin": "|i1", "weight": "<f4", "logprobs": "<f4", "version": "<i4", "temperature": "<f4"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored row: of which task, at which step it came, and what its method ranks it by (its reward)."""

    task: str
    step: int
    row: Trajectory
    score: float = 0.0


class ReplayStore:
    """Entries by task, oldest first: at most `per_task` of one task and `capacity` in all, the oldest leave first."""

    def __init__(self, *, per_task: int | None = None, capacity: int | None = None) -> None:
        self.per_task, self.capacity = per_task, capacity
        self._entries: dict[str, list[Entry]] = {}  # a task moves to the end when it gets a row

    def __len__(self) -> int:
        return sum(map(len, self._entries.values()))

    @property
    def tasks(self) -> list[str]:
        """Tasks that have a row, sorted."""
        return sorted(self._entries)

    def of(self, task: str) -> tuple[Entry, ...]:
        """The entries of a task, oldest first."""
        return tuple(self._entries.get(task, ()))

    def all(self) -> tuple[Entry, ...]:
        """Every entry, by step, then task, then age."""
        return tuple(sorted((e for t in self.tasks for e in self._entries[t]), key=lambda e: e.step))

    def add(self, entry: Entry) -> str | None:
        """Store a row; returns why it is refused, or None (see `unstorable`).

        Whatever credit made of its weights (a branch's shared tokens, a sample beyond those trained on), it comes back
        as a response of its own, with weight 1 on all that was sampled.
        """
        if reason := unstorable(entry.row):
            return reason
        whole = sampled_tokens(entry.row).astype(np.float32)
        bare = replace(
            entry.row, weight=whole, streams={}, sft_weight=None, parent=None, cuts=(), adv_group=None, episode=None
        )
        kept = [*self._entries.pop(entry.task, []), replace(entry, row=bare)]
        self._entries[entry.task] = kept if self.per_task is None else kept[-self.per_task :]
        if self.capacity is not None:
            for old in self.all()[: max(len(self) - self.capacity, 0)]:
                self._remove(old)
        return None

    def evict(self, *, task: str | None = None, before: int | None = None) -> int:
        """Forget all of a task, or all from before a step, or (with neither) all; returns how many."""
        gone = [e for e in self.all() if task in (None, e.task) and (before is None or e.step < before)]
        for entry in gone:
            self._remove(entry)
        return len(gone)

    def _remove(self, entry: Entry) -> None:
        rows = self._entries[entry.task]
        rows[:] = [other for other in rows if other is not entry]
        if not rows:
            del self._entries[entry.task]

    def state_dict(self) -> dict[str, Any]:
        """The facts of every row, and its arrays behind those of the others: little-endian bytes, so bit for bit."""
        entries = [e for entries in self._entries.values() for e in entries]
        facts = [
            {
                "task": e.task,
                "step": e.step,
                "score": e.score,
                "text": e.row.text,
                "finish": e.row.finish,
                "verdict": None if e.row.verdict is None else asdict(e.row.verdict),
                "length": len(e.row.tokens),
            }
            for e in entries
        ]
        packed = {name: [getattr(e.row, name).astype(kind).tobytes() for e in entries] for name, kind in ARRAYS.items()}
        return {"rows": facts, **{name: b"".join(parts) for name, parts in packed.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._entries = {}
        whole = {name: np.frombuffer(state[name], dtype=kind) for name, kind in ARRAYS.items()}
        spans = pairwise([0, *accumulate(said["length"] for said in state["rows"])])
        for said, (start, stop) in zip(state["rows"], spans, strict=True):
            arrays: dict[str, Any] = {name: values[start:stop].copy() for name, values in whole.items()}
            verdict = None if said["verdict"] is None else Verdict(**said["verdict"])
            row = Trajectory(**arrays, text=said["text"], finish=said["finish"], verdict=verdict)
            entry = Entry(task=said["task"], step=said["step"], row=row, score=said["score"])
            self._entries.setdefault(entry.task, []).append(entry)


def unstorable(row: Trajectory) -> str | None:
    """Why a row cannot be replayed later, or None.

    Only what the policy sampled under the prompt that it is trained on, with a verdict and known behaviour log-probs:
    "source" (a demonstration, a hint, a row that was replayed itself), "error", "truncated" (and left out of the loss
    for it), "unknown behaviour".
    """
    if row.source != "policy" or row.generated_under is not None:
        return "source"
    if row.verdict is None or row.verdict.error is not None:
        return "error"
    trained = row.weight != 0
    if row.finish == "length" and not trained.any():  # `overlong: mask`; other samples without weight may be replayed
        return "truncated"
    known = sampled_tokens(row)
    if not known.any() or not known[trained].all():
        return "unknown behaviour"
    return None


def sampled_tokens(row: Trajectory) -> Bool:
    """[L] tokens that the policy sampled with a log-prob that is known."""
    return (row.origin == Origin.SAMPLED) & np.isfinite(row.logprobs)


def unusable(row: Trajectory, *, prompt: I32, decode: Callable[[I32], str]) -> str | None:
    """Why a stored row is not one of this run's prompt and tokenizer, or None: "another prompt", "another tokenizer".

    Its prompt tokens must be those that the task is encoded to now, and its response must decode to its text.
    """
    inside = row.origin == Origin.PROMPT
    if not np.array_equal(row.tokens[inside], prompt):
        return "another prompt"
    return None if decode(row.tokens[~inside]) == row.text else "another tokenizer"


def replayed(entries: Sequence[Entry], *, source: str) -> tuple[Trajectory, ...]:
    """The entries' rows for a group of this step; `source` is the name of the add-on."""
    return tuple(replace(e.row, source=source) for e in entries)


def without(group: Group, places: Sequence[int]) -> Group:
    """The group, its rewards there, without the rows at `places`; links to siblings follow."""
    kept = [i for i in range(len(group)) if i not in places]
    place = {old: new for new, old in enumerate(kept)}
    rows = [group.trajectories[i] for i in kept]
    linked = [r if r.parent is None else replace(r, parent=_moved(r.parent, place)) for r in rows]
    return group.with_(trajectories=tuple(linked), rewards=None if group.rewards is None else group.rewards[kept])


def _moved(parent: tuple[int, int], place: Mapping[int, int]) -> tuple[int, int] | None:
    return (place[parent[0]], parent[1]) if parent[0] in place else None


def age(row: Trajectory, step: int) -> int:
    """Steps between the weights that sampled its oldest token and those of `step`."""
    return step - int(step_of(row.version[row.version >= 0]).min())


def ages_of(groups: Sequence[Group], source: str) -> Metrics:
    """`age`: of the replayed rows, in steps before the newest weights that sampled anything here; {} without any."""
    rows = [t for g in groups for t in g.trajectories if (t.version >= 0).any()]
    now = max((int(step_of(t.version).max()) for t in rows), default=0)
    ages = [age(t, now) for t in rows if t.source == source]
    return {"age": float(np.mean(ages))} if ages else {}


def marks_of(rows: Sequence[Row], source: str) -> list[F32]:
    """Marks [L] of each row: 1 at the trained tokens of rows of this source."""
    return [((r.weight != 0) & (r.source == source)).astype(np.float32) for r in rows]


def counted(groups: Sequence[Group], name: str, key: str) -> float:
    """The sum of the groups' count `<name>/<key>`."""
    return float(sum(g.counts.get(f"{name}/{key}", 0.0) for g in groups))
