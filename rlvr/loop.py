"""The algorithm. Synchronous is not a second loop: it is `max_lag: 0`, because slots are freed only after the push."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import replace

from rlvr.batching import collate, row_table, split_updates
from rlvr.credit import assign_credit, shape_rewards, without_truncated
from rlvr.explore.base import Draw
from rlvr.parts import Loop
from rlvr.recipe import Recipe
from rlvr.reference import move_reference
from rlvr.rollout.groups import drop_reason
from rlvr.rollout.meter import DECODED
from rlvr.seeds import stable_seed
from rlvr.types import Group, Metrics, Row, Sampling
from rlvr.update import Streamed, group_metrics, make_update, merge, prefixed, replays, with_streams


async def train(loop: Loop) -> None:
    """Run until `recipe.steps`, or until `loop.stop` is set (the state is then that of the last finished step)."""
    async with loop.buffer.workers(lambda draw: explore(loop, draw), idle=loop.step >= loop.recipe.steps):
        evaluation = loop.observer.evaluate(loop.step)
        while loop.step < loop.recipe.steps and not loop.stop.is_set():
            started = time.perf_counter()
            groups = await _unless_stopped(loop.buffer.take(loop.recipe.prompts), loop.stop)
            if groups is None:
                break
            generated = time.perf_counter()
            if evaluation is not None and loop.recipe.resources.colocate:
                await evaluation  # training takes the samplers' memory
            moved = await move_reference(loop.reference, loop.policy, step=loop.step, scores=loop.observer.scores)
            streamed = await with_streams(groups, loop.policy, loop.recipe, loop.addons)
            groups = credit(streamed.groups, loop)
            metrics = moved | group_metrics(groups, version=loop.step) | await learn(loop, groups, streamed)
            loop.step += 1
            for addon in loop.addons:  # the only place where their state changes
                metrics |= prefixed(addon.name, addon.observe(groups, metrics))
            trained = time.perf_counter()
            dropped = loop.buffer.pop_dropped()
            partial = await loop.observer.checkpoint(loop, metrics)  # while nothing of the next step is sampled
            if evaluation is not None and not loop.recipe.resources.colocate:
                await evaluation  # its answers come from the weights of its step alone
            saved = time.perf_counter()
            metrics |= await loop.sync.push(loop.step)
            metrics |= {
                "time/generate": generated - started,
                "time/train": trained - generated,
                "time/save": saved - trained,
                "time/sync": time.perf_counter() - saved,
                "time/step": time.perf_counter() - started,
                "time/group_timeouts": float(loop.buffer.timeouts),
            }
            loop.observer.record(loop.step, sorted([*groups, *dropped], key=lambda g: g.draw), metrics)
            loop.observer.commit(partial)
            loop.buffer.release(groups, idle=loop.step >= loop.recipe.steps)  # only now may new groups start
            evaluation = loop.observer.evaluate(loop.step)
        if evaluation is not None and not loop.stop.is_set():
            await evaluation


async def explore(loop: Loop, draw: int) -> Group:
    """x ~ D, {y_i} ~ pi_old(.|x), r_i = verify(x, y_i); then guidance, then dynamic sampling."""
    recipe, task = loop.recipe, loop.tasks(draw)
    for addon in loop.addons:
        task = addon.tasks(task, draw)
    sampling = sampling_of(recipe)
    ctx = loop.context.at(loop.step)
    drawn = Draw(task=task, index=draw, step=ctx.step, group=recipe.group, sampling=sampling, ctx=ctx)
    group = await loop.sample(drawn)
    for addon in loop.addons:
        group = await addon.guide(group, loop.context.at(loop.step))
    counts = {**group.counts, DECODED: float(ctx.decoded(draw))}
    return replace(group, dropped=drop_reason(group, keep=recipe.keep), counts=counts)


def sampling_of(recipe: Recipe) -> Sampling:
    """How training responses are sampled, without a seed."""
    s = recipe.sampling
    return Sampling(temperature=s.temperature, top_p=s.top_p, top_k=s.top_k, max_tokens=s.max_tokens, stop=s.stop)


def credit(groups: Sequence[Group], loop: Loop) -> list[Group]:
    """Shaped rewards, then advantages."""
    recipe = loop.recipe
    shaped = shape_rewards(
        groups, loop.addons, overlong=recipe.overlong, kl=recipe.kl, max_tokens=recipe.sampling.max_tokens
    )
    kept = without_truncated(shaped) if recipe.overlong.kind == "mask" else shaped
    return assign_credit(kept, loop.addons)


async def learn(loop: Loop, groups: Sequence[Group], streamed: Streamed) -> Metrics:
    """The optimizer updates of one step; old and reference log-probs and advantages stay fixed."""
    recipe = loop.recipe
    rows: tuple[Row, ...] = collate(groups)
    old = streamed.of(rows)
    seed = stable_seed(recipe.seed, "updates", loop.step)
    split = split_updates(len(groups), minibatches=recipe.minibatches, epochs=recipe.epochs, seed=seed)
    for addon in loop.addons:
        split = [list(u) for u in addon.updates(split, groups)]
    table, collected = row_table(groups), []
    updates = [[row for g in members for row in table[g]] for members in split]
    for more in await replays(loop.context.at(loop.step), loop.policy, recipe, loop.addons):
        updates.append(list(range(len(rows), len(rows) + len(more))))
        rows += more
    for place, index in enumerate(updates):
        batch, plan, said = await make_update(
            rows,
            index,
            policy=loop.policy,
            recipe=recipe,
            surrogate=loop.surrogate,
            addons=loop.addons,
            old=old,
            step=loop.step,
            update=loop.update,
            place=place,
        )
        collected.append(said | await loop.policy.step(batch, plan))
        loop.update += 1
    return merge(collected)


async def _unless_stopped(taking: Awaitable[list[Group]], stop: asyncio.Event) -> list[Group] | None:
    """The groups, or None when the run is told to stop before they are there."""
    take, stopped = asyncio.ensure_future(taking), asyncio.ensure_future(stop.wait())
    done, _ = await asyncio.wait({take, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if take in done:
        return take.result()
    take.cancel()
    return None
