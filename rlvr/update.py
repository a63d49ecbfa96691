"""What one optimizer update is made of: measured streams, global scales, the add-ons' knobs and marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from rlvr.batching import collate, token_batch
from rlvr.engine.protocols import Policy
from rlvr.explore.base import AddOn, Context, Update
from rlvr.objectives.reduce import row_scales
from rlvr.objectives.schedule import learning_rate
from rlvr.recipe import Recipe
from rlvr.reference import REFERENCE
from rlvr.seeds import stable_seed
from rlvr.surrogates.base import Surrogate
from rlvr.types import F32, I32, Group, Metrics, Plan, Row, Streams, TokenBatch, step_of

OLD = "old_"  # a stream "old_x" is "x" of the policy at the start of the step
OLD_LOGP = "old_logp"
COUNTS = frozenset(
    {"tokens", "sft_tokens", "skipped_updates", "zero_updates", "nonfinite_tokens", "active", "candidates"}
    | {"rewards_not_binary", "rows_without_value"}  # rows that a group objective left out
)
PER_UPDATE = frozenset({"loss", "sft_loss", "grad_norm", "lr"})  # numbers of an update, not of its tokens


@dataclass(frozen=True)
class Streamed:
    """Groups whose trajectories carry the streams asked for, and what was measured for the first update."""

    groups: list[Group]
    old: Streams | None  # by row of the step, names as in `measures`; None when no forward was needed
    tokens: Sequence[I32] = ()  # of each of those rows

    def of(self, rows: Sequence[Row]) -> Streams | None:
        """`old` where it is of these very rows: credit may cut rows, or take some away."""
        same = len(rows) == len(self.tokens) and all(r.tokens is t for r, t in zip(rows, self.tokens, strict=True))
        return self.old if same else None


async def with_streams(groups: Sequence[Group], policy: Policy, recipe: Recipe, addons: Sequence[AddOn]) -> Streamed:
    """Measure what credit, the loss and the add-ons need, once, with the weights at the start of the step.

    With a single update the old log-probs are the update's own, so nothing is measured unless asked for.
    """
    measures = set().union(*(a.measures for a in addons))
    appended = any(type(a).updates is not AddOn.updates for a in addons)
    needs = _needs(recipe, addons)
    if recipe.minibatches * recipe.epochs > 1 or appended or (recipe.kl.coef > 0 and recipe.kl.where == "reward"):
        needs.add(OLD_LOGP)
    return await _measured(groups, policy, needs=needs, measures=measures)


async def replays(ctx: Context, policy: Policy, recipe: Recipe, addons: Sequence[AddOn]) -> list[tuple[Row, ...]]:
    """What each add-on replays in this step (`AddOn.replay`): the rows of one more update each."""
    found: list[tuple[Row, ...]] = []
    for addon in addons:
        if groups := addon.replay(ctx):
            needs = _needs(recipe, addons) - {OLD_LOGP}
            streamed = await _measured(groups, policy, needs=needs, measures=set())
            rows = collate(streamed.groups)
            found += [tuple(map(behaved, rows))] if any(row.weight.any() for row in rows) else []
    return found


def behaved(row: Row) -> Row:
    """The row with the policy that sampled it as its old policy.

    So the objective's ratio is to the behaviour log-probs, and a correction for the gap between them finds none.
    """
    old = np.where(row.weight != 0, row.logprobs, 0).astype(np.float32)
    return replace(row, streams={**row.streams, OLD_LOGP: old})


def _needs(recipe: Recipe, addons: Sequence[AddOn]) -> set[str]:
    needs = set().union(*(a.needs for a in addons))
    return needs | ({"ref_logp"} if recipe.kl.coef > 0 else set())


async def _measured(groups: Sequence[Group], policy: Policy, *, needs: set[str], measures: set[str]) -> Streamed:
    rows = collate(groups)
    batch = token_batch(rows, range(len(rows)), scale=np.zeros(len(rows), dtype=np.float32))
    ref = {n.removeprefix(REFERENCE) for n in needs if n.startswith(REFERENCE)}
    own = {n.removeprefix(OLD) for n in needs if not n.startswith(REFERENCE)} | measures
    empty: Streams = [{} for _ in rows]
    old = await policy.measure(batch, own) if own else empty
    refs = await policy.measure(batch, ref, "reference") if ref else empty
    named = [_named(a, b, needs) for a, b in zip(old, refs, strict=True)]
    return Streamed(groups=_attach(groups, named), old=old if own else None, tokens=[row.tokens for row in rows])


def _named(own: Mapping[str, F32], ref: Mapping[str, F32], needs: set[str]) -> dict[str, F32]:
    out = {REFERENCE + name: value for name, value in ref.items()}
    out |= {name: value for name, value in own.items() if name in needs}
    return out | {OLD + name: value for name, value in own.items() if OLD + name in needs}


def _attach(groups: Sequence[Group], streams: Sequence[Mapping[str, F32]]) -> list[Group]:
    source = iter(streams)
    return [
        g.with_(trajectories=tuple(replace(t, streams={**t.streams, **next(source)}) for t in g.trajectories))
        for g in groups
    ]


async def make_update(
    rows: tuple[Row, ...],
    index: Sequence[int],
    *,
    policy: Policy,
    recipe: Recipe,
    surrogate: Surrogate,
    addons: Sequence[AddOn],
    old: Streams | None,
    step: int,
    update: int,
    place: int,
) -> tuple[TokenBatch, Plan, Metrics]:
    """The batch with its global normalisers, the plan, and what the add-ons say about it.

    `update` counts over the run, `place` within the step. The learning rate is that of the place, and one after the
    step's own updates takes that of the last of them: the schedule ends with the run however many come on top.
    """
    objective, first = recipe.objective, place == 0
    scale = row_scales(
        np.array([float(rows[i].weight.sum()) for i in index]),
        reduction=objective.reduction or surrogate.reduction,
        constant=objective.constant or recipe.sampling.max_tokens,
    )
    batch = token_batch(rows, index, scale=scale)
    measures = set().union(*(a.measures for a in addons))
    stats: Streams = [{} for _ in index]
    if measures and first and old is not None:
        stats = [old[i] for i in index]
    elif measures:
        stats = await policy.measure(batch, measures)
    view = Update(
        rows=batch.picked,
        stats=stats,
        update=update,
        step=step,
        seed=stable_seed(recipe.seed, "update", update),
        clip=surrogate.bounds,
        scale=scale,
    )
    scalars: dict[str, Mapping[str, float]] = {}
    marks: dict[str, Sequence[F32]] = {}
    metrics: Metrics = {}
    for addon in addons:
        if (knobs := addon.knobs(view)) is None:
            continue
        scalars[addon.name] = knobs.scalars
        if knobs.marks is not None:
            marks[addon.name] = knobs.marks
        metrics |= prefixed(addon.name, knobs.metrics)
    o, planned = recipe.optimizer, recipe.minibatches * recipe.epochs
    due = step * planned + min(place, planned - 1)
    lr = learning_rate(due, lr=o.lr, schedule=o.schedule, warmup=o.warmup, total=recipe.steps * planned)
    return batch, Plan(update=update, lr=lr, version=step, first=first, knobs=scalars, marks=marks), metrics


def prefixed(name: str, metrics: Metrics) -> Metrics:
    """An add-on's metrics under its name."""
    return {f"{name}/{key}": value for key, value in metrics.items()}


def merge(updates: Sequence[Metrics]) -> Metrics:
    """One object for a step: `*_max` by maximum, what COUNTS names by sum, all else by mean over the updates.

    The trainer's means over tokens are weighted by the updates' tokens.
    """
    out: Metrics = {}
    for key in dict.fromkeys(k for metrics in updates for k in metrics):
        having = [m for m in updates if key in m]
        values = [m[key] for m in having]
        tokens = [m.get("train/tokens", 1.0) for m in having]
        last = key.rsplit("/", 1)[-1]
        if last.endswith("_max"):
            out[key] = max(values)
        elif last in COUNTS:
            out[key] = sum(values)
        elif key.startswith("train/") and last not in PER_UPDATE and sum(tokens) > 0:
            out[key] = sum(v * n for v, n in zip(values, tokens, strict=True)) / sum(tokens)
        else:
            out[key] = sum(values) / len(values)
    return out


def group_metrics(groups: Sequence[Group], *, version: int) -> Metrics:
    """Rewards, lengths and lag of the groups of one step (after drops), over the policy's own rows (`Group.own`).

    What add-ons and estimators put into a group says nothing of the policy, and they count it themselves. `reward/mean`
    is of shaped rewards, `reward/pass_rate` of raw verdicts, both over rows without error, NaN where there is none.
    `reward/errors` counts every row.
    """
    own = np.concatenate([g.own for g in groups])
    valid = np.concatenate([g.valid for g in groups])
    judged = own & valid
    rewards = np.concatenate([np.full(len(g), np.nan) if g.rewards is None else g.rewards for g in groups])
    correct = np.concatenate([g.correct for g in groups])
    rows = [t for g in groups for t, mine in zip(g.trajectories, g.own, strict=True) if mine]
    lags = [version - int(step_of(t.version[t.version >= 0]).min()) for t in rows if (t.version >= 0).any()]
    return {
        "reward/mean": _mean(rewards[judged]),
        "reward/pass_rate": _mean(correct[judged]),
        "reward/errors": float((~valid).sum()),
        "groups/kept": float(len(groups)),
        "groups/solved": float(sum(bool(g.correct[g.own].any()) for g in groups)) / len(groups),
        "response/length_mean": _mean([t.response_len for t in rows]),
        "response/truncated": _mean([t.finish == "length" for t in rows]),
        "lag/mean": float(np.mean(lags)) if lags else 0.0,
        "lag/max": float(max(lags, default=0)),
    }


def _mean(values: npt.ArrayLike) -> float:
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()) if array.size else float("nan")
