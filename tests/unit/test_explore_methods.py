"""The first add-ons against hand-worked numbers, and the random numbers they pick by."""

from __future__ import annotations

from dataclasses import replace
from math import nan

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlvr.explore.base import Draw, Knobs, Update
from rlvr.explore.clip_cov import ClipCov, clipped
from rlvr.explore.entropy_bonus import EntropyBonus
from rlvr.explore.hashing import random_subset, splitmix64, uniform
from rlvr.explore.length_reward import LengthReward, length_scores
from rlvr.explore.temperature_schedule import TemperatureSchedule, temperature_at
from rlvr.objectives.covariance import token_covariances
from rlvr.objectives.view import TokenView
from rlvr.seeds import stable_seed
from rlvr.types import F32, Group, Row, Sampling, Task, Trajectory, Verdict

TASK = Task(id="t", prompt="?", answer="!")


def f32(*values: float) -> F32:
    return np.array(values, dtype=np.float32)


# --- seeds and hashing -----------------------------------------------------------------------------------------------


def test_stable_seed_is_fixed_for_ever() -> None:
    """A changed number would change every run and break every resume."""
    assert stable_seed() == 724655455495936113
    assert stable_seed(0, "sample", 12, 3) == 2811942445551480172
    assert 0 <= stable_seed("x") < 2**63


def test_stable_seed_keeps_parts_and_types_apart() -> None:
    parts = [(1, "2"), ("1", 2), ("12",), (12,), ("1", "2"), (1, 2), ("", "12"), ("12", ""), (-12,)]
    assert len({stable_seed(*p) for p in parts}) == len(parts)
    assert stable_seed(np.int64(5), "a") == stable_seed(5, "a")


def test_uniform_is_splitmix64() -> None:
    """Its first outputs from state 0 are the published ones."""
    state = np.array([0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F], dtype=np.uint64)
    assert splitmix64(0, 3).tolist() == state.tolist()


def test_uniform_is_uniform_and_does_not_depend_on_the_length() -> None:
    numbers = uniform(3, "0/1", 20000)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.01
    assert abs(numbers.var() - 1 / 12) < 0.005
    assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.03
    assert uniform(3, "0/1", 5).tolist() == numbers[:5].tolist()
    assert uniform(4, "0/1", 5).tolist() != numbers[:5].tolist() != uniform(3, "0/2", 5).tolist()


@given(st.lists(st.lists(st.booleans(), max_size=6), max_size=5), st.integers(0, 8), st.randoms())
def test_random_subset(rows: list[list[bool]], k: int, random: object) -> None:
    candidates = [np.array(r, dtype=bool) for r in rows]
    keys = [f"{i}/0" for i in range(len(rows))]
    picked = random_subset(candidates, keys=keys, k=k, seed=1)
    assert [len(p) for p in picked] == [len(c) for c in candidates]
    assert sum(p.sum() for p in picked) == min(k, sum(c.sum() for c in candidates))
    assert all(not p[~c].any() for p, c in zip(picked, candidates, strict=True))
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    moved = random_subset([candidates[i] for i in order], keys=[keys[i] for i in order], k=k, seed=1)
    assert [p.tolist() for p in moved] == [picked[i].tolist() for i in order]


def test_random_subset_picks_every_candidate_equally_often() -> None:
    candidates = [np.ones(5, dtype=bool), np.ones(3, dtype=bool)]
    counts = sum(np.concatenate(random_subset(candidates, keys=["a", "b"], k=2, seed=seed)) for seed in range(4000))
    assert counts.sum() == 8000
    assert np.abs(counts - 1000).max() < 150  # 5 standard deviations of a binomial


# --- Clip-Cov --------------------------------------------------------------------------------------------------------

ADVANTAGES = (f32(1, 1, 1), f32(-1, -1, -1))
WEIGHTS = (f32(1, 1, 1), f32(1, 1, 0))
OLD = tuple(np.log(f32(*p)) for p in ([0.5, 0.2, 0.8], [0.4, 0.1, 1.0]))
NEW = tuple(np.log(f32(*p)) for p in ([0.75, 0.18, 0.8], [0.2, 0.4, 1.0]))


def row(i: int, **changes: object) -> Row:
    n = len(WEIGHTS[i])
    zeros = np.zeros(n, dtype=np.float32)
    made = Row(
        key=f"0/{i}",
        group=0,
        tokens=np.zeros(n, dtype=np.int32),
        weight=WEIGHTS[i],
        logprobs=zeros,
        version=np.zeros(n, dtype=np.int32),
        temperature=np.ones(n, dtype=np.float32),
        advantages=ADVANTAGES[i],
        streams={"old_logp": OLD[i]},
    )
    return replace(made, **changes)


def knobs(*, order: tuple[int, ...] = (0, 1), clip: tuple[float, float] = (1.0, 1.0), **options: float) -> Knobs:
    rows = [row(i) for i in order]
    update = Update(rows=rows, stats=[{"logp": NEW[i]} for i in order], update=0, step=0, seed=11, clip=clip)
    said = ClipCov(ClipCov.Config(**options)).knobs(update)
    assert said is not None
    return said


def marked(said: Knobs) -> list[list[float]]:
    assert said.marks is not None
    return [m.tolist() for m in said.marks]


def test_covariances() -> None:
    cov = token_covariances(list(ADVANTAGES), list(NEW), [w != 0 for w in WEIGHTS])
    np.testing.assert_allclose(cov[0], [0.530071, -0.611622, 0.581702], atol=1e-6)
    np.testing.assert_allclose(cov[1], [0.791001, -0.040776, 0.0], atol=1e-6)
    said = knobs(ratio=1.0, low=-9, high=9)
    assert said.metrics["cov_mean"] == pytest.approx(0.250075, abs=1e-6)


def test_the_window_excludes_its_ends_and_padding() -> None:
    assert marked(knobs(ratio=1.0, low=-0.7, high=0.6)) == [[1, 1, 1], [0, 1, 0]]
    assert marked(knobs(ratio=1.0, low=0.55, high=0.7)) == [[0, 0, 1], [0, 0, 0]]
    empty = knobs(ratio=1.0, low=0.6, high=0.6)
    assert marked(empty) == [[0, 0, 0], [0, 0, 0]]
    assert empty.metrics["active"] == empty.metrics["candidates"] == 0


def test_tokens_that_ppo_clips_are_no_candidates() -> None:
    """r = [[1.5, .9, 1], [.5, 4, -]]: with bounds .2 the first of each row has no gradient already."""
    assert marked(knobs(ratio=1.0, low=-9, high=9, clip=(0.2, 0.2))) == [[0, 1, 1], [0, 1, 0]]
    assert marked(knobs(ratio=1.0, low=-9, high=9, clip=(0.6, 0.6))) == [[1, 1, 1], [1, 1, 0]]


def test_ppo_clips_where_the_ratio_left_the_bounds_on_the_side_of_the_advantage() -> None:
    log_ratio, signs = np.log(f32(1.5, 1.5, 1.5, 0.5, 0.5, 0.5)), f32(1, 0, -1, 1, 0, -1)
    assert clipped(log_ratio, signs, (0.2, 0.3)).tolist() == [True, False, False, False, False, True]
    assert not clipped(f32(0, 0), f32(1, -1), (0.0, 0.0)).any()  # on the bound nothing is clipped


@pytest.mark.parametrize(("ratio", "k"), [(1e-6, 1), (0.39, 1), (0.41, 2), (0.81, 4), (1.0, 4)])
def test_the_number_picked(ratio: float, k: int) -> None:
    """k = max(floor(ratio * 5), 1), of 4 candidates."""
    said = knobs(ratio=ratio, low=-0.1, high=9)
    assert said.metrics["candidates"] == 4
    assert said.metrics["active"] == k == sum(map(sum, marked(said)))


def test_the_pick_follows_rows_and_changes_with_the_seed() -> None:
    assert marked(knobs(ratio=0.41, low=-9, high=9)) == marked(knobs(order=(1, 0), ratio=0.41, low=-9, high=9))[::-1]
    update = Update(rows=[row(0)], stats=[{"logp": NEW[0]}], update=0, step=0, seed=0, clip=(1.0, 1.0))
    method = ClipCov(ClipCov.Config(ratio=0.4, low=-9, high=9))
    picks = {tuple(marked(method.knobs(replace(update, seed=s)))[0]) for s in range(40)}
    assert picks == {(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)}


def test_selection_is_global_where_one_row_alone_selects_nothing() -> None:
    """A row of constant advantage has covariance 0 by itself: per micro-batch selection would never fire."""
    alone = Update(rows=[row(0)], stats=[{"logp": NEW[0]}], update=0, step=0, seed=0, clip=(1.0, 1.0))
    method = ClipCov(ClipCov.Config(ratio=1.0, low=0.1, high=9))
    assert method.knobs(alone).metrics["candidates"] == 0
    for window in ({"low": 0.0, "high": 9}, {"low": -9, "high": 0.0}):  # their ends are not in them
        assert ClipCov(ClipCov.Config(ratio=1.0, **window)).knobs(alone).metrics["candidates"] == 0
    assert knobs(ratio=1.0, low=0.1, high=9).metrics["candidates"] == 3


def test_log_probs_that_are_not_finite_are_left_out() -> None:
    bad = NEW[0].copy()
    bad[1] = nan
    update = Update(
        rows=[row(0), row(1)], stats=[{"logp": bad}, {"logp": NEW[1]}], update=0, step=0, seed=0, clip=(1, 1)
    )
    said = ClipCov(ClipCov.Config(ratio=1.0, low=-9, high=9)).knobs(update)
    assert marked(said) == [[1, 0, 1], [1, 1, 0]]
    assert np.isfinite(said.metrics["cov_mean"])


def test_picked_tokens_lose_loss_and_gradient() -> None:
    loss = torch.tensor([[2.0, 3.0]], requires_grad=True)
    blank = torch.zeros(1, 2)
    view = TokenView(blank, blank, blank, blank, blank, blank, mark=torch.tensor([[0.0, 1.0]]))
    out = ClipCov(ClipCov.Config()).token_loss(view, loss)
    out.sum().backward()
    assert out.tolist() == [[2.0, 0.0]]
    assert loss.grad.tolist() == [[1.0, 0.0]]


def test_window_must_be_ordered() -> None:
    with pytest.raises(ValueError, match=r"low=2\.0 above high=1\.0"):
        ClipCov.Config(low=2.0, high=1.0)


# --- entropy bonus ---------------------------------------------------------------------------------------------------


def test_entropy_bonus_raises_entropy() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0], requires_grad=True)
    logp = logits.log_softmax(0)
    h = -(logp.exp() * logp).sum()[None, None]
    blank = torch.zeros(1, 1)
    view = TokenView(blank, blank, blank, blank, blank, blank, streams={"entropy": h})
    EntropyBonus(EntropyBonus.Config(coef=0.5)).token_loss(view, torch.ones(1, 1)).sum().backward()
    # dH/dz_i = -p_i (log p_i + H)
    expected = 0.5 * (logp.exp() * (logp + h.squeeze())).detach()
    torch.testing.assert_close(logits.grad, expected)


# --- length reward ---------------------------------------------------------------------------------------------------


def group(lengths: list[int], scores: list[float | None], *, temperature: float = 1.0) -> Group:
    def one(length: int, score: float | None) -> Trajectory:
        n = 2 + length
        sampled = np.arange(n) >= 2
        return Trajectory(
            tokens=np.zeros(n, dtype=np.int32),
            origin=sampled.astype(np.int8),
            weight=sampled.astype(np.float32),
            logprobs=np.zeros(n, dtype=np.float32),
            version=np.zeros(n, dtype=np.int32),
            temperature=np.full(n, temperature, dtype=np.float32),
            verdict=Verdict(score=score or 0.0, correct=score == 1.0, error="timeout" if score is None else None),
        )

    rows = tuple(one(length, score) for length, score in zip(lengths, scores, strict=True))
    return Group(task=TASK, draw=0, trajectories=rows, prompt_len=2)


def test_length_scores() -> None:
    got = length_scores(group([10, 20, 30, 10, 30], [1, 1, 1, 0, 0]))
    np.testing.assert_allclose(got, [0.5, 0.0, -0.5, 0.0, -0.5], atol=1e-7)
    # the longest row is an error: it has no part in the range
    got = length_scores(group([10, 20, 90], [1, 0, None]))
    np.testing.assert_allclose(got, [0.5, -0.5, 0.0], atol=1e-7)


@pytest.mark.parametrize(
    ("lengths", "scores"),
    [
        ([10, 20], [1, 1]),
        ([10, 20], [0, 0]),
        ([10, 10], [1, 0]),
        ([10, 20], [None, None]),
        ([10, 20], [1, None]),
        ([5], [1]),
    ],
)
def test_no_length_score_where_raw_scores_or_lengths_are_equal(lengths: list, scores: list) -> None:
    assert length_scores(group(lengths, scores)).tolist() == [0.0] * len(lengths)


@given(st.lists(st.tuples(st.integers(1, 50), st.sampled_from([0.0, 1.0, None])), min_size=1, max_size=8))
def test_length_bonus_is_bounded_and_never_pays_wrong_rows(rows: list[tuple[int, float | None]]) -> None:
    g = group([r[0] for r in rows], [r[1] for r in rows])
    scores = length_scores(g)
    assert np.abs(scores).max() <= 0.5
    assert (scores[~g.correct] <= 0).all()


def test_length_reward_adds_to_what_is_there_and_counts() -> None:
    method = LengthReward(LengthReward.Config(coef=0.2))
    mixed, equal = group([10, 20, 30], [1, 1, 0]), group([10, 20], [1, 1])
    shaped, same = method.reward([mixed.with_(rewards=f32(2, 2, nan)), equal])
    np.testing.assert_allclose(shaped.rewards, [2.1, 2.0, nan], atol=1e-6)
    assert same.rewards is not None and same.rewards.tolist() == [1.0, 1.0]
    assert method.observe([mixed, equal], {}) == {"active": 2.0, "bonus_abs_mean": pytest.approx(0.1)}


# --- temperature -----------------------------------------------------------------------------------------------------


def test_temperatures() -> None:
    got = [temperature_at(step, start=1.2, end=1.0, steps=4) for step in range(6)]
    assert got == pytest.approx([1.2, 1.15, 1.1, 1.05, 1.0, 1.0])
    assert got[4] == got[5] == 1.0


async def test_schedule_changes_the_draw_and_nothing_else() -> None:
    seen: list[Draw] = []

    async def sample(draw: Draw) -> Group:
        seen.append(draw)
        return group([3], [1], temperature=draw.sampling.temperature)

    method = TemperatureSchedule(TemperatureSchedule.Config(start=0.5, end=1.5, steps=10))
    draw = Draw(task=TASK, index=7, step=5, group=1, sampling=Sampling(top_p=0.9, seed=3))
    got = await method.sampler(sample)(draw)
    assert seen == [replace(draw, sampling=replace(draw.sampling, temperature=1.0))]
    assert method.observe([got], {}) == {"active": 1.0, "temperature": 1.0}
    rest = await method.sampler(sample)(replace(draw, step=10))
    assert method.observe([rest], {}) == {"active": 0.0, "temperature": 1.5}
    assert method.observe([group([3], [1], temperature=2.0)], {})["active"] == 0
