"""One update of a toy policy through every hook of a stack of add-ons, without an engine.

`explore` samples groups, `learn` credits them and computes loss and gradient of one update, split into
micro-batches as asked. Sampling is a pure function of the draw, so two stacks differ only by what they do.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlvr.batching import collate, row_table, token_batch
from rlvr.checkpoint import pack, unpack
from rlvr.credit import assign_credit, shape_rewards
from rlvr.engine.forward import is_sequence
from rlvr.explore.base import AddOn, Draw, Knobs, Update
from rlvr.methods import ADVANTAGE, CORRECTION, EXPLORE, OBJECTIVE, Family, Methods, method_class
from rlvr.objectives.loss import compose, shaped, token_losses
from rlvr.objectives.reduce import row_scales, scaled_sum
from rlvr.objectives.view import TokenView
from rlvr.recipe import KL, Overlong, Reduction
from rlvr.rollout.replay import Entry, ReplayStore
from rlvr.types import (
    Group,
    Metrics,
    Row,
    Sampling,
    Task,
    TokenBatch,
    Trajectory,
)
from rlvr.update import behaved, merge
from tests.unit.toy import CURRENT, GROUP, OLD, PLAIN_STREAMS, REFERENCE, TASKS, VOCAB, ToyContext, flat, toy_task

REFERENCE_KL = KL(coef=0.01)


def make(family: Family, kind: str, options: Mapping[str, Any], *, name: str = "") -> Any:
    """One shipped method with these options, as a run builds it."""
    cls = method_class(family, kind, project=Path())
    config = cls.Config(**options)
    return cls(config) if family is CORRECTION else cls(config, name=name or kind, seed=7)


@dataclass(frozen=True)
class Base:
    """The estimator, surrogate and correction of an update: kind and options each."""

    advantage: tuple[str, Mapping[str, Any]] = ("grpo", {})
    objective: tuple[str, Mapping[str, Any]] = ("clip", {"low": 0.2, "high": 0.3, "dual": 3.0})
    correction: tuple[str, Mapping[str, Any]] = ("tis", {})

    def built(self, addons: Sequence[AddOn]) -> Methods:
        """With these add-ons."""
        return Methods(
            estimator=make(ADVANTAGE, *self.advantage, name="advantage"),
            surrogate=make(OBJECTIVE, *self.objective, name="objective"),
            correction=make(CORRECTION, *self.correction),
            addons=addons,
        )


PLAIN = Base()


def stack(*specs: tuple[str, dict]) -> list[AddOn]:
    """Add-ons from (kind, options), named as a recipe names them."""
    built: list[AddOn] = []
    for kind, options in specs:
        number = 1 + sum(other.kind == kind for other in built)
        built.append(make(EXPLORE, kind, options, name=kind if number == 1 else f"{kind}#{number}"))
    return built


def saved(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state after a checkpoint."""
    text, blob = pack(state)
    return unpack(json.loads(text), blob)


def replayable() -> dict[str, Any]:
    """State of a replay store: two right and two wrong responses to each of tasks 2 and 3, of an older policy."""
    store = ReplayStore()
    for task in ("2", "3"):
        draw = Draw(task=Task(task, "?", "!"), index=100 + int(task), step=0, group=24, sampling=Sampling(max_tokens=8))
        rows: list[Trajectory] = []

        async def sampled(draw: Draw = draw, rows: list[Trajectory] = rows) -> None:
            rows += (await flat(draw)).trajectories

        asyncio.run(sampled())
        for right in (True, False):
            for row in [t for t in rows if t.verdict and t.verdict.correct == right][:2]:
                store.add(Entry(task=task, step=0, row=row, score=float(right)))
    return store.state_dict()


def explore(addons: Sequence[AddOn], *, step: int = 0) -> list[Group]:
    """The groups of one step, through the hooks of sampling and group time, with streams of old and reference."""

    groups: list[Group] = []  # filled, not returned: asyncio.run would format its result

    async def collect() -> None:
        sample, context = flat, ToyContext(step=step, tasks=[toy_task(i) for i in range(TASKS)])
        for addon in reversed(addons):  # the first of the recipe outermost, as in a run
            sample = addon.sampler(sample)
        for addon in addons if step == 0 else ():
            await addon.prepare(context)

        async def one(index: int) -> Group:
            task = toy_task(index)
            for addon in addons:
                task = addon.tasks(task, index)
            group = await sample(
                Draw(task=task, index=index, step=step, group=GROUP, sampling=Sampling(max_tokens=8), ctx=context)
            )
            for addon in addons:
                group = await addon.guide(group, context)
            return group

        groups.extend(await asyncio.gather(*map(one, range(TASKS))))  # a method may let the draws meet

    asyncio.run(collect())
    names, refs = asked(addons), asked_of_reference(addons)
    return [g.with_(trajectories=tuple(_streamed(t, names, refs) for t in g.trajectories)) for g in groups]


def replayed_rows(addons: Sequence[AddOn], *, step: int) -> list[list[Row]]:
    """The rows of every add-on that replays, as `rlvr.update.replays` makes them."""
    context, found = ToyContext(step=step, tasks=[toy_task(i) for i in range(TASKS)]), []
    names, refs = asked(addons), asked_of_reference(addons)
    for groups in filter(None, [addon.replay(context) for addon in addons]):
        streamed = [g.with_(trajectories=tuple(_streamed(t, names, refs) for t in g.trajectories)) for g in groups]
        found.append([behaved(row) for row in collate(streamed)])
    return found


def asked(addons: Sequence[AddOn]) -> set[str]:
    """Every stream that they want of any model."""
    names = set(PLAIN_STREAMS).union(*(a.needs | a.measures | a.token_needs | a.token_reads for a in addons))
    return {name.removeprefix("old_") for name in names if not name.startswith("ref_")}


def asked_of_reference(addons: Sequence[AddOn]) -> set[str]:
    """Every stream that they want of the reference."""
    names = {"ref_logp"}.union(*(a.needs for a in addons))
    return {name.removeprefix("ref_") for name in names if name.startswith("ref_")}


def _streamed(t: Trajectory, names: set[str], refs: set[str]) -> Trajectory:
    old, ref = OLD.measure(t, names), REFERENCE.measure(t, refs)
    named = {f"old_{name}": value for name, value in old.items()} | {f"ref_{name}": v for name, v in ref.items()}
    return replace(t, streams={**old, **t.streams, **named})


@dataclass
class Outcome:
    """What one update came to."""

    loss: float
    grad: Tensor
    metrics: Metrics = field(default_factory=dict)  # "<name>/<key>" of knobs and observe
    groups: list[Group] = field(default_factory=list)

    def active(self, name: str) -> float:
        """The add-on's own count."""
        return self.metrics.get(f"{name}/active", 0.0)


def learn(
    addons: Sequence[AddOn],
    *,
    micro: int = 1000,
    order: Sequence[int] | None = None,
    extra: int = 0,
    garbage: float = 0.0,
    reduction: Reduction | None = None,
    step: int = 0,
    base: Base = PLAIN,
    methods: Methods | None = None,
) -> Outcome:
    """Loss and gradient of one update over all rows: `micro` rows at a time, in `order`, padded by `extra`.

    What add-ons replay is summed up with it, each as an update with normalisers and knobs of its own.

    `base` (or `methods`, built already) is what the add-ons stand on.
    """
    overlong = Overlong()
    methods = methods or base.built(addons)
    addons = methods.hooks
    groups = shape_rewards(explore(addons, step=step), addons, overlong=overlong, kl=REFERENCE_KL, max_tokens=16)
    groups = assign_credit(groups, addons)
    table = row_table(groups)
    updates: Sequence[Sequence[int]] = [list(range(len(groups)))]
    for addon in addons:
        updates = addon.updates(updates, groups)
    every = collate(groups)
    rows = [every[i] for g in updates[0] for i in table[g]]
    rows = [rows[i] for i in order] if order is not None else rows
    chosen = reduction or methods.surrogate.reduction
    CURRENT.table.grad = None
    loss, said_of = torch.zeros((), dtype=torch.float64), []
    for mine in (rows, *replayed_rows(addons, step=step)):
        scale = row_scales([float(r.weight.sum()) for r in mine], reduction=chosen, constant=16)
        batch = token_batch(tuple(mine), range(len(mine)), scale=scale)
        bounds = methods.surrogate.bounds
        stats = [CURRENT.measure(r, asked(addons)) for r in mine]
        update = Update(rows=mine, stats=stats, update=0, step=step, seed=99, clip=bounds, scale=scale)
        knobs = {addon.name: said for addon in addons if (said := addon.knobs(update)) is not None}
        for start in range(0, len(mine), micro):
            at = slice(start, start + micro)
            part = _micro_loss(batch, at, methods, knobs, extra=extra, garbage=garbage)
            part.backward()
            loss += part.detach()
        said_of.append({f"{name}/{key}": v for name, said in knobs.items() for key, v in said.metrics.items()})
    assert CURRENT.table.grad is not None
    metrics = merge(said_of)
    for addon in addons:
        metrics |= {f"{addon.name}/{key}": value for key, value in addon.observe(groups, dict(metrics)).items()}
    return Outcome(float(loss), CURRENT.table.grad.clone(), metrics, groups)


def _micro_loss(
    batch: TokenBatch,
    at: slice,
    methods: Methods,
    knobs: dict[str, Knobs],
    *,
    extra: int,
    garbage: float,
) -> Tensor:
    part = batch.picked[at]
    width = max(len(r.tokens) for r in part) + extra

    def padded(values: Sequence[np.ndarray], fill: float) -> Tensor:
        full = [np.pad(v.astype(np.float64), (0, width - len(v)), constant_values=fill) for v in values]
        return torch.from_numpy(np.stack(full))

    tokens = padded([r.tokens for r in part], VOCAB - 1).long()
    wanted = {"logp"}.union(*(a.token_needs | a.token_reads for a in methods.hooks))
    current = CURRENT.streams(tokens, padded([r.temperature for r in part], 1.0), sorted(wanted))
    extras = set().union(*(a.needs | a.measures for a in methods.hooks)) - wanted
    given = [name for name in extras if name in part[0].streams and not is_sequence(name)]
    view = TokenView(
        logp=current["logp"],
        old_logp=padded([r.streams["old_logp"] for r in part], garbage),
        behaviour_logp=padded(
            [np.where(np.isnan(r.logprobs), r.streams["old_logp"], r.logprobs) for r in part], garbage
        ),
        known=padded([np.isfinite(r.logprobs) for r in part], garbage),
        advantages=padded([r.advantages for r in part], garbage),
        weight=padded([r.weight for r in part], 0.0),
        ref_logp=padded([r.streams["ref_logp"] for r in part], garbage),
        streams={name: padded([r.streams[name] for r in part], garbage) for name in given}
        | {name: current[name] for name in wanted - {"logp"}},
    )
    marks = {name: padded(said.marks[at], 0.0) for name, said in knobs.items() if said.marks is not None}
    scalars = {name: said.scalars for name, said in knobs.items()}
    view = shaped(view, methods.addons, knobs=scalars, marks=marks)
    own = replace(view, knobs=scalars.get("objective", {}), mark=marks.get("objective"))
    loss, _ = token_losses(own, methods.surrogate, methods.correction, REFERENCE_KL)
    loss = compose(view, loss, methods.addons, knobs=scalars, marks=marks)
    supervised = padded([np.zeros_like(r.weight) if r.sft_weight is None else r.sft_weight for r in part], 0.0)
    imitated = scaled_sum(-current["logp"], weight=supervised, scale=torch.from_numpy(batch.sft_scale[at]).double())
    return scaled_sum(loss, weight=view.weight, scale=torch.from_numpy(batch.scale[at]).double()) + imitated
