"""Adaptive numbers of samples: the numbers of DARS and Reinforce-Ada, seeds that never repeat, plain when off."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from rlvr.advantages.grpo import Grpo
from rlvr.explore.base import AddOn, Draw
from rlvr.explore.dars import DARS, extra
from rlvr.explore.reinforce_ada import ReinforceAda, chosen, done
from rlvr.types import Group, Sampling, Task
from tests.unit.rows import make_group

TASK = Task(id="t", prompt="?", answer="!")


@pytest.mark.parametrize(
    ("schedule", "std", "wanted"),
    [
        ("equal", False, [24, 11, 3, 1, 0]),
        ("hard", False, [56, 24, 8, 3, 0]),
        ("equal", True, [9, 5, 2, 1, 0]),
        ("hard", True, [23, 14, 6, 3, 0]),
    ],
)
def test_dars_numbers(schedule: str, std: bool, wanted: list[int]) -> None:
    most = 32 if schedule == "equal" else 64
    got = [extra(u, 8, n_max=most, schedule=schedule, std=std) for u in (0, 0.125, 0.25, 0.375, 0.5)]
    assert got == wanted
    assert extra(0.0, 8, n_max=8, schedule=schedule, std=std) == 0


def sampled(addon: AddOn, scores: list[float], *, group: int, errors: dict[int, str] | None = None) -> tuple:
    """What an add-on makes of a draw whose response number i has score i of `scores` (0 beyond), and its rounds."""
    seen: list[tuple[int, int]] = []

    async def sample(draw: Draw) -> Group:
        seen.append((draw.first, draw.group))
        numbers = range(draw.first, draw.first + draw.group)
        found = [scores[i] if i < len(scores) else 0.0 for i in numbers]
        return make_group(draw.index, scores=found, errors=[(errors or {}).get(i) for i in numbers])

    got = asyncio.run(addon.sampler(sample)(Draw(TASK, 3, 0, group, Sampling())))
    return got, seen


def test_dars_samples_hard_questions_again() -> None:
    method = DARS(DARS.Config())
    group, rounds = sampled(method, [0, 0, 1, 0, 0, 0, 0, 0], group=8)
    assert rounds == [(0, 8), (8, 11)] and len(group) == 19
    assert method.observe([group], {}) == {"active": 11, "prompts": 1, "saved": 0}
    group, rounds = sampled(method, [0] * 9 + [1], group=8)
    assert rounds == [(0, 8), (8, 24)]
    assert method.observe([group], {}) == {"active": 24, "prompts": 1, "saved": 1}
    assert sampled(method, [1, 1, 0, 0], group=4)[1] == [(0, 4)]
    # rows in error say nothing of the difficulty
    assert sampled(method, [0, 1, 1, 1], group=4, errors={1: "timeout", 2: "crash"})[1] == [(0, 4)]
    assert sampled(method, [0, 0], group=2, errors={0: "timeout", 1: "timeout"})[1] == [(0, 2)]
    assert sampled(DARS(DARS.Config(n_max=8)), [0] * 8, group=8)[1] == [(0, 8)]


def test_dars_baseline_is_the_mean_of_the_whole_group() -> None:
    group, _ = sampled(DARS(DARS.Config()), [0, 0, 1, 0, 0, 0, 0, 0], group=8)
    (credited,) = Grpo(Grpo.Config(std=False)).advantage([group.with_(rewards=group.scores)])
    assert credited.advantages is not None
    assert [float(a[-1]) for a in credited.advantages][2:4] == pytest.approx([1 - 1 / 19, -1 / 19], abs=1e-6)


@pytest.mark.parametrize(("addon", "second"), [(DARS(DARS.Config()), 48), (ReinforceAda(ReinforceAda.Config()), 48)])
def test_rounds_count_on_from_where_the_draw_begins(addon: AddOn, second: int) -> None:
    """Of a draw whose first response is number 40: no seed comes twice."""
    seen: list[int] = []

    async def sample(draw: Draw) -> Group:
        seen.append(draw.first)
        return make_group(draw.index, scores=[0.0] * draw.group)

    asyncio.run(addon.sampler(sample)(Draw(TASK, 3, 0, 8, Sampling(), first=40)))
    assert seen[:2] == [40, second] and len(set(seen)) == len(seen)


def trained(group: Group) -> list[int]:
    return [i for i, t in enumerate(group.trajectories) if t.weight.any()]


def test_reinforce_ada_stops_when_it_has_both() -> None:
    method = ReinforceAda(ReinforceAda.Config())
    group, rounds = sampled(method, [0, 1, 0, 0, 1, 1, 0, 0], group=8)
    assert rounds == [(0, 8)] and trained(group) == [0, 1, 2, 4]
    group, rounds = sampled(method, [0] * 8 + [1, 0, 0, 0, 0, 0, 0, 0] + [0, 1], group=8)
    assert rounds == [(0, 8), (8, 8), (16, 8)] and trained(group) == [0, 1, 8, 17]
    assert method.observe([group], {}) == {"active": 36, "extra": 16, "unused": 20, "balanced": 1}
    group, rounds = sampled(method, [], group=8)
    assert len(group) == 32 and trained(group) == [0, 1, 2, 3]
    positive = ReinforceAda(ReinforceAda.Config(mode="positive"))
    group, rounds = sampled(positive, [0] * 7 + [1], group=8)
    assert rounds == [(0, 8)] and trained(group) == [0, 1, 2, 7]


def test_reinforce_ada_takes_its_baseline_from_all_samples() -> None:
    group, _ = sampled(ReinforceAda(ReinforceAda.Config(mode="positive")), [0, 0, 0, 1, 0, 0, 0, 0], group=8)
    (credited,) = Grpo(Grpo.Config(std=False)).advantage([group.with_(rewards=group.scores)])
    assert credited.advantages is not None
    got = [float(credited.advantages[i][-1]) for i in trained(group)]
    assert got == pytest.approx([-0.125, -0.125, -0.125, 0.875], abs=1e-6)


def test_rows_in_error_are_in_no_class() -> None:
    correct, valid = np.array([1, 0, 0, 1, 0], bool), np.array([1, 0, 1, 1, 0], bool)
    assert not done(correct, valid, n=4, mode="balanced") and done(correct, valid, n=2, mode="balanced")
    assert chosen(correct, valid, n=4).tolist() == [True, False, True, True, False]
    assert chosen(correct, valid, n=2).tolist() == [True, False, True, False, False]
    nearly = np.array([1, 1, 0, 1, 1], bool)  # the one class is filled up from the other
    assert chosen(nearly, np.ones(5, bool), n=4).tolist() == [True, True, True, True, False]
    assert chosen(~nearly, np.ones(5, bool), n=4).tolist() == [True, True, True, True, False]
