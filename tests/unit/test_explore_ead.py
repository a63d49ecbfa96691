"""EAD: the temperatures of 2510.05251, one function for sampler, trainer and resumed responses."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr.explore.base import Draw
from rlvr.explore.ead import EAD, annealing
from rlvr.rollout.groups import trajectory
from rlvr.types import Annealing, Completion, Group, Sampling, Task, Verdict
from tests.unit.rows import make_group

CODE = EAD.Config(growth=100.0, d_max=800_000.0)  # the released code's growth, which the numbers are of


def test_temperatures_of_the_specification() -> None:
    first = annealing(0, CODE)
    assert first.at(np.arange(10)).tolist() == [1.0] * 10
    np.testing.assert_allclose(first.at([10, 91, 200]), [2.2 - np.exp(t / 500) for t in (10, 91, 200)], atol=1e-6)
    np.testing.assert_allclose(
        first.at([10, 91, 200, 371, 5000, 10**9]), [1.1798, 1.0004, 0.7082, 0.1, 0.1, 0.1], atol=5e-5
    )
    np.testing.assert_allclose(annealing(100, CODE).at([10, 1000, 3071]), [1.199, 1.1001, 0.8603], atol=1e-4)
    assert annealing(0, EAD.Config()) == first
    assert annealing(10**6, EAD.Config()).scale == 40000


@given(st.floats(0.1, 3), st.floats(0.05, 2), st.floats(1, 1e5), st.integers(0, 40), st.integers(0, 500))
def test_a_resumed_response_goes_on_where_it_was(high: float, low: float, scale: float, c: int, cut: int) -> None:
    whole = Sampling(temperature=0.7, annealing=Annealing(high, low, scale, c))
    t = np.arange(1000)
    rest = whole.after(cut // 2).after(cut - cut // 2).temperatures(t)
    assert rest[: 1000 - cut].tobytes() == whole.temperatures(t)[cut:].tobytes()
    assert rest.dtype == np.float32 and (rest > 0).all()


def test_plain_sampling_has_one_temperature() -> None:
    assert Sampling(temperature=0.7).temperatures(np.arange(3)).tolist() == [np.float32(0.7)] * 3
    assert Sampling().after(5) == Sampling()
    neutral = Annealing(high=1.0, low=1.0, scale=9.0)
    assert (neutral.at(np.arange(100)) == 1).all()


def sampled(addon: EAD, step: int) -> list[Draw]:
    seen: list[Draw] = []

    async def sample(draw: Draw) -> Group:
        seen.append(draw)
        return make_group(0, scores=[1.0])

    asyncio.run(addon.sampler(sample)(Draw(Task("t", "?", "!"), 0, step, 1, Sampling(temperature=0.9))))
    return seen


def test_the_draw_is_annealed_by_its_step_and_off_is_plain() -> None:
    (draw,) = sampled(EAD(EAD.Config()), 100)
    assert draw.sampling == Sampling(temperature=0.9, annealing=Annealing(1.2, 0.1, 1000.0, 10))
    (plain,) = sampled(EAD(EAD.Config(tau_max=1.0, tau_min=1.0)), 100)
    assert plain.sampling == Sampling(temperature=0.9)


def test_rows_carry_the_temperature_of_each_token() -> None:
    sampling = Sampling(temperature=2.0, annealing=Annealing(1.2, 0.1, 5.0, 1))
    done = Completion("k", np.arange(3, dtype=np.int32), np.zeros(3, np.float32), np.zeros(3, np.int32), "stop")
    heat = sampling.temperatures(np.arange(3))
    row = trajectory(np.arange(2, dtype=np.int32), done, "", Verdict(1.0, True), temperature=heat)
    np.testing.assert_allclose(row.temperature, [1, 1, 2, 2 * (2.2 - np.exp(0.2)), 2 * (2.2 - np.exp(0.4))], rtol=1e-6)
    said = EAD(EAD.Config()).observe([make_group(0, scores=[1.0]).with_(trajectories=(row, row))], {})
    assert said["active"] == 2 and said["coldest"] == pytest.approx(2 * (2.2 - np.exp(0.4)), rel=1e-6)
