"""Rows that the policy did not sample under their own prompt: demonstrations, and their place in a group.

A demonstration is trained on under the task's prompt. Its tokens have origin DEMO, version -1 and **unknown** behaviour
log-probs (NaN), so that no importance ratio is made of them; what weighs them is the method's. `Trajectory.source`
is the name of the add-on, and by it `foreign` finds the tokens again among the rows of an update.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlvr.errors import DataError
from rlvr.explore.base import Context
from rlvr.seeds import stable_seed
from rlvr.types import F32, I32, Group, Metrics, Origin, Row, Task, Trajectory, Verdict

UNUSABLE = "unusable"  # no tokens, or an end token before the end
TOO_LONG = "too_long"
REJECTED = "rejected"
ERROR = "error"


@dataclass(frozen=True)
class Demonstrations:
    """What of a task's demonstrations can be trained on, in the task's order, and why the others cannot."""

    rows: tuple[Trajectory, ...]
    places: tuple[int, ...]  # of each row in `Task.demos`
    dropped: Mapping[str, int]  # reason -> number

    def noted(self, name: str) -> Metrics:
        """For `Group.counts` of the add-on `name`."""
        return {f"{name}/dropped_{reason}": float(n) for reason, n in self.dropped.items()}


async def demonstrations(task: Task, ctx: Context, *, source: str, temperature: float) -> Demonstrations:
    """The task's demonstrations as rows, each verified like a response and ending in the end token.

    Dropped and counted: one that has no tokens or goes on behind an end token ("unusable"), one longer than the
    response limit ("too_long": cut, it would be a wrong answer without an end), one that the verifier rejects
    ("rejected": with A < 0 nothing bounds how far its tokens are pushed down) or cannot judge ("error").
    """
    dropped: Counter[str] = Counter()
    fitting: list[tuple[int, str, I32]] = []
    for place, text in enumerate(task.demos):
        try:
            tokens = ctx.encode_response(text)
        except DataError:
            dropped[UNUSABLE] += 1
            continue
        if len(tokens) > ctx.sampling.max_tokens:
            dropped[TOO_LONG] += 1
        else:
            fitting.append((place, text, tokens))
    verdicts = await ctx.verify(task, [text for _, text, _ in fitting]) if fitting else []
    prompt = ctx.encode(task)
    rows, places = [], []
    for (place, text, tokens), verdict in zip(fitting, verdicts, strict=True):
        if verdict.error is not None or not verdict.correct:
            dropped[REJECTED if verdict.error is None else ERROR] += 1
            continue
        rows.append(demonstration(prompt, tokens, text, verdict, temperature=temperature, source=source))
        places.append(place)
    return Demonstrations(tuple(rows), tuple(places), dropped)


def demonstration(
    prompt: I32, response: I32, text: str, verdict: Verdict, *, temperature: float, source: str
) -> Trajectory:
    """One demonstration as a row: the prompt, then tokens of origin DEMO with unknown behaviour log-probs."""
    n, m = len(prompt), len(response)
    shown = np.arange(n + m) >= n
    return Trajectory(
        tokens=np.concatenate([prompt, response]).astype(np.int32),
        origin=np.where(shown, Origin.DEMO, Origin.PROMPT).astype(np.int8),
        weight=shown.astype(np.float32),
        logprobs=np.where(shown, np.nan, 0.0).astype(np.float32),
        version=np.full(n + m, -1, dtype=np.int32),
        temperature=np.full(n + m, temperature, dtype=np.float32),
        text=text,
        verdict=verdict,
        source=source,
    )


def temperature_of(group: Group) -> float:
    """The temperature at which the group was sampled: its rows from elsewhere are measured at the same."""
    return float(group.trajectories[0].temperature[-1])


def order_of(group: Group, count: int, *, seed: int, purpose: str) -> list[int]:
    """A random order of `count` things that depends on (seed, purpose, draw) alone."""
    return np.random.default_rng(stable_seed(seed, purpose, group.draw)).permutation(count).tolist()


def with_rows(group: Group, rows: Mapping[int, Trajectory], counts: Mapping[str, float]) -> Group:
    """The group with the rows at these places replaced (its size stays), and these counts added.

    A branch of a replaced row has no parent any more.
    """
    cut = [replace(t, parent=None) if t.parent and t.parent[0] in rows else t for t in group.trajectories]
    members = tuple(rows.get(i, t) for i, t in enumerate(cut))
    return replace(group, trajectories=members, counts={**group.counts, **counts})


def foreign(rows: Sequence[Row], source: str) -> list[F32]:
    """Marks [L] of each row: 1 at the trained tokens of rows of this source whose behaviour log-prob is unknown."""
    return [((r.source == source) & (r.weight != 0) & np.isnan(r.logprobs)).astype(np.float32) for r in rows]


def told(groups: Sequence[Group], name: str) -> Metrics:
    """The sums of the counts of the add-on `name`, without its name."""
    total: Counter[str] = Counter()
    for group in groups:
        total.update({k.removeprefix(f"{name}/"): v for k, v in group.counts.items() if k.startswith(f"{name}/")})
    return {key: float(value) for key, value in sorted(total.items())}


def with_demonstration(tasks: Sequence[Task], ctx: Context) -> bool:
    """Whether any task has a demonstration that fits the response limit."""
    for task in tasks:
        for text in task.demos:
            try:
                if len(ctx.encode_response(text)) <= ctx.sampling.max_tokens:
                    return True
            except DataError:
                continue
    return False
