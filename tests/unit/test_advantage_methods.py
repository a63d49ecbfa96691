"""Estimators on groups: where the numbers go, what is masked and counted, and ReMax's greedy response."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from math import nan

import numpy as np
import pytest

from rlvr.advantages.base import Estimator
from rlvr.advantages.dr_grpo import DrGrpo
from rlvr.advantages.grpo import Grpo
from rlvr.advantages.lite_ppo import LitePPO
from rlvr.advantages.magistral import Magistral
from rlvr.advantages.max_rl import MaxRL
from rlvr.advantages.opo import OPO
from rlvr.advantages.otb import OTB
from rlvr.advantages.pass_at_k import PassAtK
from rlvr.advantages.reinforce_plus_plus import ReinforcePlusPlus
from rlvr.advantages.reinforce_plus_plus_baseline import ReinforcePlusPlusBaseline
from rlvr.advantages.remax import ReMax
from rlvr.advantages.rloo import RLOO
from rlvr.batching import collate
from rlvr.credit import shape_rewards
from rlvr.explore.base import Draw
from rlvr.recipe import KL, Overlong
from rlvr.rollout.groups import drop_reason
from rlvr.types import Group, Origin, Sampling, Task, Trajectory, Verdict

KINDS = (
    RLOO, OPO, OTB, ReMax, MaxRL, PassAtK, LitePPO, Magistral, ReinforcePlusPlus, ReinforcePlusPlusBaseline,
)  # fmt: skip


def row(reward: float, *, tokens: int = 3, error: str | None = None, source: str = "policy") -> Trajectory:
    """Two prompt tokens, then `tokens` sampled ones; `sum_sq` and log-probs of a policy that is even over 4 tokens."""
    length = 2 + tokens
    sampled = np.arange(length) >= 2
    weight = sampled.astype(np.float32)
    return Trajectory(
        tokens=np.arange(length, dtype=np.int32),
        origin=np.where(sampled, Origin.SAMPLED, Origin.PROMPT).astype(np.int8),
        weight=weight * (source == "policy"),
        logprobs=np.log(0.25) * weight,
        version=np.where(sampled, 0, -1).astype(np.int32),
        temperature=np.ones(length, np.float32),
        verdict=Verdict(score=reward, correct=reward == 1, error=error),
        source=source,
        streams={"old_logp": np.log(0.25) * weight, "ref_logp": np.log(0.5) * weight, "sum_sq": 0.25 * weight},
    )


def group(*rows: Trajectory, draw: int = 0) -> Group:
    made = Group(task=Task(id="t", prompt="?", answer="!"), draw=draw, trajectories=rows, prompt_len=2)
    return made.with_(rewards=made.scores)


def make(cls: type[Estimator], **options: object) -> Estimator:
    return cls(cls.Config(**options))


def estimate(cls: type[Estimator], groups: Sequence[Group], **options: object) -> list[Group]:
    return list(make(cls, **({"k": 1} if cls is PassAtK else {}), **options).advantage(groups))


def first(group: Group) -> list[float]:
    """The advantage of each row's first sampled token."""
    assert group.advantages is not None
    return [float(a[2]) if len(a) > 2 else 0.0 for a in group.advantages]


GREEDY = row(0.5, source="greedy")


def extra(cls: type[Estimator]) -> tuple[Trajectory, ...]:
    """What the group of this estimator holds beside its samples."""
    return (GREEDY,) if cls is ReMax else ()


@pytest.mark.parametrize("cls", KINDS, ids=lambda c: c.kind)
def test_numbers_land_on_trained_tokens_alone(cls: type[Estimator]) -> None:
    forced = row(1.0)
    forced = replace(forced, weight=forced.weight * np.array([1, 1, 1, 0, 1], np.float32))
    (got,) = estimate(cls, [group(forced, row(0.0), row(0.0, tokens=0), *extra(cls))])
    assert got.advantages is not None
    assert [a.shape for a in got.advantages[:3]] == [(5,), (5,), (2,)]
    assert all(a.dtype == np.float32 for a in got.advantages)
    assert (got.advantages[0] != 0).tolist() == [False, False, True, False, True]
    assert not any(a.any() for a in got.advantages[3:])
    assert first(got)[0] > 0 > first(got)[1]


@pytest.mark.parametrize("cls", KINDS, ids=lambda c: c.kind)
def test_a_row_in_error_changes_nothing(cls: type[Estimator]) -> None:
    rows, other = (row(1.0), row(0.0, tokens=5), row(0.0)), group(row(1.0), row(0.0, tokens=9), *extra(cls), draw=1)
    clean, _ = estimate(cls, [group(*rows, *extra(cls)), other])
    broken, _ = estimate(cls, [group(rows[0], row(7.0, tokens=8, error="timeout"), *rows[1:], *extra(cls)), other])
    a, b = first(clean), first(broken)
    assert b[1] == 0 and [b[0], *b[2:]] == a


@pytest.mark.parametrize("cls", KINDS, ids=lambda c: c.kind)
def test_a_group_of_errors_alone_gets_0(cls: type[Estimator]) -> None:
    broken = [row(1.0, error="crash"), row(0.0, error="crash")]
    dead, alive = estimate(cls, [group(*broken, *extra(cls)), group(row(1.0), row(0.0), *extra(cls), draw=1)])
    assert not any(first(dead)) and first(alive)[0] > 0


@pytest.mark.parametrize("cls", KINDS, ids=lambda c: c.kind)
def test_the_step_says_how_many_rows_are_active(cls: type[Estimator]) -> None:
    method = make(cls, **({"k": 1} if cls is PassAtK else {}))
    equal = (row(1.0), row(1.0), *((row(1.0, source="greedy"),) if cls is ReMax else ()))
    said = method.observe(method.advantage([group(row(1.0), row(0.0), *extra(cls)), group(*equal, draw=1)]), {})
    assert said["active"] == (4 if cls is ReinforcePlusPlus else 2)
    assert said["abs_mean"] > 0


@pytest.mark.parametrize(
    "cls", [LitePPO, Magistral, ReinforcePlusPlusBaseline, ReinforcePlusPlus], ids=lambda c: c.kind
)
def test_shaping_alone_is_not_blown_up(cls: type[Estimator]) -> None:
    """Equal raw scores, rewards a hair apart: the advantages are a hair apart as well."""
    shaped = group(row(1.0), row(1.0)).with_(rewards=np.array([1.0, 1.0 - 1e-3], np.float32))
    (got,) = estimate(cls, [shaped])
    assert np.ptp(first(got)) == pytest.approx(1e-3, rel=1e-3)
    raw = group(row(1.0), row(1.0 - 2**-10))
    assert np.ptp(first(*estimate(cls, [raw]))) > 1


def test_reinforce_plus_plus_needs_a_reference_only_for_its_kl() -> None:
    assert make(ReinforcePlusPlus).needs == frozenset()
    method = make(ReinforcePlusPlus, kl_coef=0.1)
    assert method.needs == {"old_logp", "ref_logp"}
    (got,) = method.advantage([group(row(1.0, tokens=2), row(0.0, tokens=2))])
    assert got.advantages is not None
    k1 = np.log(0.25) - np.log(0.5)
    returns = np.array([1 - 0.2 * k1, 1 - 0.1 * k1, -0.2 * k1, -0.1 * k1])
    expected = (returns - returns.mean()) / returns.std()
    np.testing.assert_allclose(np.concatenate([a[2:] for a in got.advantages]), expected, atol=1e-6)


def test_otb_reads_the_streams_of_the_old_weights() -> None:
    """w = 1 - 2/4 + 1/4 everywhere, so W counts tokens; the longer row is alone at the end."""
    (got,) = estimate(OTB, [group(row(1.0, tokens=2), row(0.0, tokens=3))])
    assert got.advantages is not None
    np.testing.assert_allclose(got.advantages[0][2:], [0.5, 0.5])
    np.testing.assert_allclose(got.advantages[1][2:], [-0.5, -0.5, 0.0])


@pytest.mark.parametrize("stream", ["old_logp", "sum_sq"])
@pytest.mark.parametrize("bad", [nan, -np.inf])
def test_otb_gives_a_token_of_unknown_log_prob_no_energy(stream: str, bad: float) -> None:
    one = row(1.0, tokens=2)
    broken = np.where(np.arange(4) == 3, bad, one.streams[stream]).astype(np.float32)
    (got,) = estimate(OTB, [group(replace(one, streams={**one.streams, stream: broken}), row(0.0, tokens=2))])
    assert got.advantages is not None
    np.testing.assert_allclose(got.advantages[1][2:], [-0.5, -1 / 3])  # W = 1, 1 and 1, 2 times the same


def test_kl_in_the_reward_leaves_out_a_token_of_unknown_log_prob() -> None:
    one = row(1.0, tokens=2)
    broken = replace(one, streams={**one.streams, "ref_logp": np.array([0, 0, np.log(0.5), nan], np.float32)})
    (got,) = shape_rewards(
        [group(one, broken)], [], overlong=Overlong(), kl=KL(coef=1.0, where="reward", estimator="k1"), max_tokens=9
    )
    assert got.rewards is not None
    np.testing.assert_allclose(got.rewards, [1 + 2 * np.log(2), 1 + np.log(2)], rtol=1e-6)


# --- what is masked -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "options", "rewards", "masked"),
    [
        (PassAtK, {"k": 2}, [1.0, 0.5], True),
        (PassAtK, {"k": 2}, [1.0, -1.0], True),
        (PassAtK, {"k": 2}, [1.0, nan], True),  # one row left
        (PassAtK, {"k": 2}, [0.0, 0.0], False),
        (MaxRL, {}, [1.0, -0.1], True),
        (MaxRL, {}, [0.5, 0.0], False),
        (MaxRL, {}, [nan, 1.0], False),
    ],
)
def test_what_does_not_fit_is_masked_and_counted(
    cls: type[Estimator], options: dict, rewards: list[float], masked: bool
) -> None:
    method = make(cls, **options)
    rows = [row(0.0 if r != r else r, error="timeout" if r != r else None) for r in rewards]
    fine = group(row(1.0), row(0.0), draw=1)
    got, other = method.advantage([group(*rows), fine])
    weights = [float(r.weight.sum()) for r in collate([got, other])]
    assert weights == [0.0 if masked or r != r else 3.0 for r in rewards] + [3.0, 3.0]
    assert method.observe([got, other], {})["masked_groups"] == masked
    assert all(np.isfinite(a).all() for a in got.advantages or ())
    if masked:
        assert first(got) == [0.0, 0.0]


# --- ReMax ----------------------------------------------------------------------------------------------------


def sample_with(answers: dict[float, list[float]], seen: list[Draw]) -> Group:
    async def sample(draw: Draw) -> Group:
        seen.append(draw)
        rows = [row(answers[draw.sampling.temperature][i]) for i in range(draw.group)]
        return group(*(replace(r, temperature=r.temperature * draw.sampling.temperature) for r in rows))

    task = Task(id="t", prompt="?", answer="!")
    draw = Draw(task=task, index=3, step=0, group=2, sampling=Sampling(temperature=0.8, top_p=0.9, top_k=5))
    return asyncio.run(make(ReMax).sampler(sample)(draw))


def test_the_greedy_response_is_recorded_and_not_trained_on() -> None:
    seen: list[Draw] = []
    got = sample_with({0.8: [1.0, 0.0], 0.0: [1.0]}, seen)
    assert [(d.group, d.sampling.temperature, d.sampling.top_p, d.sampling.top_k) for d in seen] == [
        (2, 0.8, 0.9, 5),
        (1, 0.0, 1.0, -1),
    ]
    greedy = got.trajectories[-1]
    assert len(got) == 3 and greedy.source == "greedy"
    assert not greedy.weight.any() and np.isnan(greedy.logprobs[2:]).all() and (greedy.temperature == 1).all()
    (credited,) = make(ReMax).advantage([got.with_(rewards=got.scores)])
    assert first(credited) == [0.0, -1.0, 0.0]
    assert [float(r.weight.sum()) for r in collate([credited])] == [3.0, 3.0, 0.0]
    assert make(ReMax).observe([credited], {})["greedy_reward"] == 1.0


def test_the_greedy_response_makes_equal_samples_informative() -> None:
    assert drop_reason(sample_with({0.8: [1.0, 1.0], 0.0: [0.0]}, []), keep="informative") is None
    assert drop_reason(sample_with({0.8: [1.0, 1.0], 0.0: [1.0]}, []), keep="informative") == "all right"


def test_a_group_without_a_baseline_is_masked_and_counted() -> None:
    broken = group(row(1.0), row(0.0), row(1.0, error="timeout", source="greedy"))
    without, fine = group(row(1.0), row(0.0), draw=1), group(row(1.0), row(0.0), GREEDY, draw=2)
    method = make(ReMax)
    got = method.advantage([broken, without, fine])
    assert [first(g) for g in got] == [[0, 0, 0], [0, 0], [0.5, -0.5, 0]]
    assert [float(r.weight.sum()) for r in collate(got)] == [0, 0, 0, 0, 0, 3, 3, 0]
    assert method.observe(got, {}) | {"abs_mean": 0} == {
        "active": 2.0, "abs_mean": 0, "greedy_reward": 0.5, "no_baseline": 2.0
    }  # fmt: skip


def test_one_sample_a_prompt_is_enough() -> None:
    (got,) = make(ReMax).advantage([group(row(1.0), row(0.0, source="greedy"))])
    assert first(got) == [1.0, 0.0]
    one, two = make(ReinforcePlusPlus).advantage([group(row(1.0)), group(row(0.0), draw=1)])
    assert first(one) == [1.0] and first(two) == [-1.0]


# --- rows that are not trained on -----------------------------------------------------------------------------


def untrained(t: Trajectory) -> Trajectory:
    return replace(t, weight=np.zeros_like(t.weight))


@pytest.mark.parametrize("cls", [Grpo, DrGrpo, RLOO, MaxRL, PassAtK, ReMax], ids=lambda c: c.kind)
def test_a_masked_row_stays_in_the_baseline_of_its_group(cls: type[Estimator]) -> None:
    rows = (row(1.0), row(1.0), row(0.0), *extra(cls))
    (whole,) = estimate(cls, [group(*rows)])
    (masked,) = estimate(cls, [group(*rows[:2], untrained(rows[2]), *rows[3:])])
    assert first(masked)[:2] == first(whole)[:2] and first(masked)[2] == 0 != first(whole)[2]


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (LitePPO, [0.866025, 0.866025, -0.866025]),  # rewards 1, 1, 0: an unbiased std of sqrt(1/3)
        (Magistral, [1.060660, 1.060660, -1.060660]),  # centred .5, .5, -.5: a std of sqrt(2)/3
        (ReinforcePlusPlusBaseline, [0.707107, 0.707107, -1.414214]),  # the same, and a mean of 1/6
        (ReinforcePlusPlus, [0.707107, 0.707107, -1.414214]),  # 1, 1, 0
    ],
    ids=lambda c: getattr(c, "kind", ""),
)
def test_a_masked_row_is_in_no_statistic_of_the_step(cls: type[Estimator], expected: list[float]) -> None:
    one, two = estimate(cls, [group(row(1.0), untrained(row(0.0))), group(row(1.0), row(0.0), draw=1)])
    assert first(one) + first(two) == pytest.approx([expected[0], 0.0, *expected[1:]], abs=1e-6)


@pytest.mark.parametrize(
    "cls", [LitePPO, Magistral, ReinforcePlusPlusBaseline, ReinforcePlusPlus], ids=lambda c: c.kind
)
def test_shaping_alone_is_not_blown_up_because_a_masked_row_has_another_score(cls: type[Estimator]) -> None:
    shaped = group(row(1.0), row(1.0), untrained(row(0.0))).with_(rewards=np.array([1.0, 1.0 - 1e-3, 0.0], np.float32))
    (got,) = estimate(cls, [shaped])
    assert np.ptp(first(got)[:2]) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("cls", [OPO, OTB], ids=lambda c: c.kind)
def test_baselines_that_weigh_by_trained_tokens_give_a_masked_row_no_weight(cls: type[Estimator]) -> None:
    rows = (row(1.0), row(0.0))
    (without,) = estimate(cls, [group(*rows)])
    (masked,) = estimate(cls, [group(*rows, untrained(row(1.0)))])
    assert first(masked) == [*first(without), 0.0]
