"""Rows that the policy did not sample under their own prompt: demonstrations, and their place in a group.

A demonstration is trained on under the task's prompt. Its tokens have origin DEMO, version -1 and **unknown** behaviour
log-probs (NaN), so that no importance ratio is made of them; what weighs them is the method's. `Trajectory.source`
is the name of the add-on, and by it `foreign` finds the tokens again among the rows of an update.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rlvr.errors import ConfigError, DataError
from rlvr.explore.base import AddOn, Context, Knobs, Update
from rlvr.rollout.groups import trajectory
from rlvr.seeds import stable_seed
from rlvr.types import F32, I32, Group, Metrics, Origin, Request, Row, Task, Trajectory, Verdict

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView
    from rlvr.recipe import Recipe

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
    """The temperature at which the group was sampled: its rows from elsewhere are measured at the same.

    Where it changes along a response (EAD), that of the first token.
    """
    t = next((t for t in group.trajectories if t.source == "policy"), group.trajectories[0])
    after = t.temperature[t.origin != Origin.PROMPT]
    return float(after[0] if len(after) else t.temperature[-1])


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


async def resampled(group: Group, prompted: Sequence[Task], ctx: Context, *, name: str, stage: int) -> list[Trajectory]:
    """One response under the prompt of each of `prompted`, judged as answers to the group's own task.

    Each is trained under the prompt it was generated under, with its behaviour log-probs known. Temperature and limits
    are the group's; seeds derive from (seed, name, draw, stage, place). Raises DataError for a prompt beyond the limit.
    """
    temperature = temperature_of(group)
    prompts = [ctx.encode(task) for task in prompted]
    requests = [
        Request(
            key=f"{group.draw}/{name}/{stage}/{i}",
            tokens=prompt,
            sampling=replace(
                ctx.sampling, temperature=temperature, seed=stable_seed(ctx.seed, name, group.draw, stage, i)
            ),
            home=group.draw,
        )
        for i, prompt in enumerate(prompts)
    ]
    completions = await ctx.generate(requests)
    texts = [ctx.decode(c.tokens) for c in completions]
    verdicts = await ctx.verify(group.task, texts)
    return [
        trajectory(prompt, c, text, verdict, temperature=temperature, source=name)
        for prompt, c, text, verdict in zip(prompts, completions, texts, verdicts, strict=True)
    ]


def trained_under(t: Trajectory, prompt: I32) -> Trajectory:
    """A sampled row under another prompt: its behaviour log-probs become unknown, `generated_under` keeps the first."""
    n = int((t.origin == Origin.PROMPT).sum())

    def swapped(values: Any, first: Any) -> Any:
        return np.concatenate([np.full(len(prompt), first), values[n:]]).astype(values.dtype)

    return replace(
        t,
        tokens=np.concatenate([prompt, t.tokens[n:]]).astype(np.int32),
        origin=swapped(t.origin, Origin.PROMPT),
        weight=swapped(t.weight, 0.0),
        logprobs=swapped(np.full_like(t.logprobs, np.nan), 0.0),
        version=swapped(t.version, -1),
        temperature=swapped(t.temperature, t.temperature[0]),
        generated_under=t.tokens[:n],
    )


def filled(template: str, values: Mapping[str, str]) -> str:
    """The template with every `{name}` of `values` put in, at once; other braces stay as they are."""
    names = "|".join(map(re.escape, values))
    return re.sub(rf"\{{({names})\}}", lambda found: values[found[1]], template)


def all_wrong(group: Group) -> bool:
    """Whether no response is right, and at least one is wrong (not in error)."""
    return bool(group.valid.any()) and not bool(group.correct.any())


def with_last_user(task: Task, content: str) -> Task:
    """The task with another text in its last user turn (or as its plain prompt)."""
    if isinstance(task.prompt, str):
        return replace(task, prompt=content)
    last = max(i for i, m in enumerate(task.prompt) if m["role"] == "user")
    messages = tuple({**m, "content": content} if i == last else m for i, m in enumerate(task.prompt))
    return replace(task, prompt=messages)


def last_user(task: Task) -> str:
    """The text of its last user turn (or its plain prompt)."""
    if isinstance(task.prompt, str):
        return task.prompt
    return next(m["content"] for m in reversed(task.prompt) if m["role"] == "user")


class Demonstrated(AddOn):
    """Base of methods that put demonstrations into groups; a subclass says which, where, and what weighs their tokens.

    Their Config has `demos`, the most of them in a group; 0 turns the method off.
    """

    selects: ClassVar[bool] = True

    def placed(self, group: Group, found: Demonstrations, seed: int) -> dict[int, Trajectory]:
        """Which demonstration takes which place: random ones, the last places of the policy's own rows but one."""
        own = np.flatnonzero(group.own).tolist()
        order = order_of(group, len(found.rows), seed=seed, purpose=self.name)[: self.config.demos]
        return {place: found.rows[pick] for place, pick in zip(reversed(own[1:]), order, strict=False)}

    def wanted(self, group: Group) -> bool:
        """Whether the group gets any."""
        return True

    def demo_loss(self, view: TokenView) -> Tensor:
        """Losses [B,T]; used at the demonstrations' tokens."""
        raise NotImplementedError

    def problems(self, recipe: Recipe) -> Sequence[str]:
        """A group needs a response of the policy."""
        if self.config.demos < recipe.group:
            return []
        return [f"demos: {self.config.demos} leaves no response of the policy in a group of {recipe.group}; lower it"]

    async def prepare(self, ctx: Context) -> None:
        """Raises ConfigError where no task has a demonstration that fits."""
        if self.config.demos and not _any_fits(ctx):
            raise ConfigError(
                f"explore: {self.name} learns from demonstrations, and no training task has one of at most "
                f"sampling.max_tokens={ctx.sampling.max_tokens} tokens. Choose a dataset with demonstrations."
            )

    async def guide(self, group: Group, ctx: Context) -> Group:
        """The group with some rows replaced by demonstrations."""
        if not self.config.demos or not self.wanted(group):
            return group
        found = await demonstrations(group.task, ctx, source=self.name, temperature=temperature_of(group))
        rows = self.placed(group, found, ctx.seed)
        notes = {f"{self.name}/demos": float(len(rows)), f"{self.name}/without": float(not rows)}
        return with_rows(group, rows, notes | found.noted(self.name))

    def knobs(self, update: Update) -> Knobs | None:
        """Marks are 1 at the demonstrations' tokens; `active` counts them."""
        if not self.config.demos:
            return None
        marks = foreign(update.rows, self.name)
        return Knobs(marks=marks, metrics={"active": float(sum(mark.sum() for mark in marks))})

    def token_loss(self, view: TokenView, loss: Tensor) -> Tensor:
        """`demo_loss` at marked tokens."""
        return loss if view.mark is None else loss.where(view.mark <= 0, self.demo_loss(view))

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """`demos` put in, groups `without` one, and how many were `dropped_` for which reason."""
        return told(groups, self.name) if self.config.demos else {}


def _any_fits(ctx: Context) -> bool:
    for task in ctx.tasks:
        for text in task.demos:
            try:
                if len(ctx.encode_response(text)) <= ctx.sampling.max_tokens:
                    return True
            except DataError:
                continue
    return False
