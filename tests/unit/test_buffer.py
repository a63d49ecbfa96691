from __future__ import annotations

import asyncio
import random

import pytest

from rlvr.buffer import Buffer
from rlvr.errors import EngineError
from rlvr.types import Group
from tests.unit.rows import make_group


def buffer(slots: int, **changes: float) -> Buffer:
    return Buffer(slots=slots, group_limit=changes.get("limit", 5.0), max_dropped=int(changes.get("max_dropped", 100)))


async def collect(
    slots: int, prompts: int, steps: int, *, seed: int, drop_every: int = 0
) -> list[list[tuple[int, int]]]:
    """(draw, step at which it was started) of every taken group, with random delays."""
    rng, buf, step = random.Random(seed), buffer(slots), 0

    async def explore(draw: int) -> Group:
        born = step
        await asyncio.sleep(rng.random() / 300)
        group = make_group(draw, scores=[1.0, 0.0], version=born)
        return group.with_(dropped="all wrong") if drop_every and draw % drop_every == 0 else group

    taken = []
    async with buf.workers(explore):
        while step < steps:
            groups = await buf.take(prompts)
            taken.append([(g.draw, int(g.trajectories[0].version.max())) for g in groups])
            step += 1  # the push
            buf.release(groups)
    return taken


@pytest.mark.parametrize("max_lag", [0, 1, 3])
async def test_lag_is_bounded_and_oldest_come_first(max_lag: int) -> None:
    taken = await collect((max_lag + 1) * 4, 4, 12, seed=max_lag, drop_every=5)
    lags = [step - born for step, groups in enumerate(taken) for _, born in groups]
    assert max(lags) <= max_lag
    assert max_lag == 0 or max(lags) == max_lag
    draws = [draw for groups in taken for draw, _ in groups]
    assert draws == sorted(draws)


async def test_synchronous_groups_do_not_depend_on_timing() -> None:
    runs = [await collect(4, 4, 8, seed=seed, drop_every=3) for seed in range(4)]
    assert all(run == runs[0] for run in runs)
    assert all(draw % 3 for step in runs[0] for draw, _ in step)


async def test_nothing_to_learn_from_stops_with_reasons() -> None:
    buf = buffer(2, max_dropped=5)

    async def explore(draw: int) -> Group:
        return make_group(draw, scores=[0.0]).with_(dropped="all wrong")

    with pytest.raises(EngineError, match=r"6 groups were dropped .*'all wrong': 6.*max_draws"):
        async with buf.workers(explore):
            await asyncio.wait_for(buf.take(2), 5)


async def test_a_stuck_group_is_drawn_again_then_an_error() -> None:
    buf, calls = buffer(1, limit=0.02), []

    async def explore(draw: int) -> Group:
        calls.append(draw)
        if len(calls) < 3:
            await asyncio.sleep(10)
        return make_group(draw, scores=[1.0])

    async with buf.workers(explore):
        assert [g.draw for g in await buf.take(1)] == [0]
    assert calls[:3] == [0, 0, 0] and buf.timeouts == 2

    async def never(draw: int) -> Group:
        await asyncio.sleep(10)
        raise AssertionError

    stuck = buffer(1, limit=0.01)
    with pytest.raises(EngineError, match=r"draw 0 ran 3 times into its limit of 0.01 s.*limits.group"):
        async with stuck.workers(never):
            await stuck.take(1)


async def test_an_error_in_a_worker_reaches_the_loop() -> None:
    async def explore(draw: int) -> Group:
        raise EngineError("sampler gone")

    buf = buffer(3)
    with pytest.raises(EngineError, match="sampler gone"):
        async with buf.workers(explore):
            await asyncio.wait_for(buf.take(1), 5)


async def test_state_keeps_finished_groups_and_restarts_the_rest() -> None:
    started: list[int] = []
    gate = asyncio.Event()

    async def explore(draw: int) -> Group:
        started.append(draw)
        if draw % 2:
            await gate.wait()
        return make_group(draw, scores=[1.0])

    buf = buffer(4)
    async with buf.workers(explore):
        groups = await buf.take(1)
        assert groups[0].draw == 0
        state = buf.state_dict()
    assert state["next_draw"] == 4
    assert {d: g is not None for d, g in state["active"].items()} == {1: False, 2: True, 3: False}

    started.clear()
    gate.set()
    again = buffer(4)
    again.load_state_dict(state)
    async with again.workers(explore):
        drawn = [g.draw for g in await again.take(4)]
    assert drawn == [1, 2, 3, 4]
    assert started == [1, 3, 4]  # draw 2 was finished, draw 0 was trained on
