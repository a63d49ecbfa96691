"""The formulas of the advantage estimators: worked numbers, identities between them, what errors may not touch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb, nan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr.advantages.base import F64, centred
from rlvr.advantages.lite_ppo import lite_ppo
from rlvr.advantages.magistral import magistral
from rlvr.advantages.max_rl import max_rl
from rlvr.advantages.opo import opo
from rlvr.advantages.otb import otb, token_energy
from rlvr.advantages.pass_at_k import pass_at_k
from rlvr.advantages.reinforce_plus_plus import token_returns, whiten
from rlvr.advantages.reinforce_plus_plus_baseline import reinforce_plus_plus_baseline
from rlvr.advantages.remax import remax
from rlvr.advantages.rloo import rloo
from rlvr.advantages.rows import pooled

patient = settings(max_examples=60, deadline=None)  # the machine may be busy

ONE_OF_FOUR = np.array([1.0, 0.0, 0.0, 0.0])
TWO_GROUPS = [ONE_OF_FOUR, np.array([1.0, 1.0, 1.0, 0.0])]
Step = Callable[[Sequence[F64]], list[F64]]


def close(got: object, expected: object) -> None:
    np.testing.assert_allclose(np.asarray(got, float), np.asarray(expected, float), atol=1e-6, rtol=0)


def all_count(estimate: Callable[..., list[F64]], **options: bool) -> Step:
    """Every reward of the step counts in what is over the step."""
    return lambda groups: estimate(groups, [np.ones(len(g), dtype=bool) for g in groups], **options)


def each(estimate: Callable[[F64], F64]) -> Step:
    return lambda groups: [estimate(g) for g in groups]


def lengths(groups: Sequence[F64]) -> list[list[int]]:
    """A length for every reward that travels with it under permutations: a function of the reward."""
    return [[0 if np.isnan(r) else 2 + int(7 * abs(r)) % 5 for r in g] for g in groups]


def token_baselines(group: F64) -> F64:
    """OTB's advantage at the first token of every row, of equal lengths."""
    energies = [np.array([0.5 + abs(r) % 1, 1.0]) if r == r else np.ones(2) for r in group]
    return np.array([a[0] for a in otb(group, energies)])


STEPS: dict[str, Step] = {  # rewards of the step's groups -> one number a row
    "rloo": each(rloo),
    "opo": lambda groups: [opo(g, n) for g, n in zip(groups, lengths(groups), strict=True)],
    "otb": each(token_baselines),
    "max_rl": each(max_rl),
    "pass_at_k": each(lambda g: pass_at_k(g, min(2, int((g == g).sum())) or 1)),
    "lite_ppo": all_count(lite_ppo),
    "magistral": all_count(magistral),
    "reinforce_plus_plus_baseline": lambda groups: reinforce_plus_plus_baseline(groups, lengths(groups)),
}
GROUPED = sorted(STEPS)
SUM_TO_ZERO = ["rloo", "max_rl", "pass_at_k", "lite_ppo", "magistral"]

rewards_01 = st.lists(st.sampled_from([0.0, 1.0, nan]), min_size=1, max_size=7).map(np.array)
steps_01 = st.lists(rewards_01, min_size=1, max_size=5)


# --- numbers -----------------------------------------------------------------------------------------------


def test_rloo_numbers() -> None:
    close(rloo(ONE_OF_FOUR), [1, -1 / 3, -1 / 3, -1 / 3])
    rewards = np.array([0.3, 1.0, -2.0, 0.5, 0.9])
    close(rloo(rewards), [r - (rewards.sum() - r) / 4 for r in rewards])


def test_opo_numbers() -> None:
    close(opo(ONE_OF_FOUR, [10, 20, 30, 40]), [0.9, -0.1, -0.1, -0.1])
    close(opo(ONE_OF_FOUR, [7, 7, 7, 7]), centred(ONE_OF_FOUR))  # Dr.GRPO
    close(opo(ONE_OF_FOUR, [0, 20, 30, 40]), [1, 0, 0, 0])  # a fully masked row has no say
    close(opo(ONE_OF_FOUR, [0, 0, 0, 0]), [0, 0, 0, 0])


def test_lite_ppo_numbers() -> None:
    first, second = STEPS["lite_ppo"](TWO_GROUPS)
    close(first, [1.403122, -0.467707, -0.467707, -0.467707])
    close(second, [0.467707, 0.467707, 0.467707, -1.403122])


def test_magistral_numbers() -> None:
    """The population's std of the centred rewards: sqrt(3)/4."""
    first, second = STEPS["magistral"](TWO_GROUPS)
    close(first, np.array([0.75, -0.25, -0.25, -0.25]) * 4 / sqrt(3))
    close(second, np.array([0.25, 0.25, 0.25, -0.75]) * 4 / sqrt(3))


def test_reinforce_plus_plus_baseline_numbers() -> None:
    (both,) = reinforce_plus_plus_baseline([np.array([1.0, 0.0])], [[3, 2]])
    close(both, [0.816497, -1.224745])


def test_reinforce_plus_plus_numbers() -> None:
    close(token_returns(1.0, np.array([0.5, -1.0, 2.0]), gamma=1.0, kl_coef=0.1), [0.85, 0.9, 0.8])
    close(token_returns(1.0, np.array([0.5, -1.0, 2.0]), gamma=0.5, kl_coef=0.1), [0.2, 0.5, 0.8])
    close(token_returns(2.0, np.zeros(3), gamma=0.5, kl_coef=0.0), [0.5, 1.0, 2.0])
    assert token_returns(1.0, np.zeros(0), gamma=1.0, kl_coef=0.1).shape == (0,)
    three, two = whiten([np.ones(3), np.zeros(2)])
    close(three, [0.816497] * 3)
    close(two, [-1.224745] * 2)
    three, two = whiten([np.ones(3), np.zeros(2)], divide=False)
    close([*three, *two], [0.4] * 3 + [-0.6] * 2)


def test_max_rl_numbers() -> None:
    close(max_rl(ONE_OF_FOUR), [3, -1, -1, -1])
    close(max_rl(TWO_GROUPS[1]), [1 / 3, 1 / 3, 1 / 3, -1])
    close(max_rl(np.zeros(3)), [0, 0, 0])


def test_max_rl_is_the_truncated_likelihoods_gradient() -> None:
    """E[1/G sum A_i d log pi(y_i)] = d/dp sum_{k<G} pass@k / k, exactly, over all outcomes of a two-armed policy."""
    p, size = 0.3, 4
    expected = sum((1 - p) ** (k - 1) for k in range(1, size))
    total = 0.0
    for right in range(size + 1):
        rewards = np.array([1.0] * right + [0.0] * (size - right))
        score = np.where(rewards == 1, 1 / p, -1 / (1 - p))  # d log pi / dp
        chance = comb(size, right) * p**right * (1 - p) ** (size - right)
        total += chance * float((max_rl(rewards) * score).mean())
    assert total == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("n", "right", "k", "expected"),
    [
        (8, 2, 4, (0.522233, -0.174078)),
        (8, 1, 4, (1.0, -0.142857)),
        (8, 4, 4, (0.120386, -0.120386)),
        (8, 5, 4, (0.0, 0.0)),
        (4, 1, 2, (1.0, -0.333333)),
        (4, 1, 1, (1.732051, -0.577350)),
    ],
)
def test_pass_at_k_numbers(n: int, right: int, k: int, expected: tuple[float, float]) -> None:
    rewards = np.array([1.0] * right + [0.0] * (n - right))
    close(pass_at_k(rewards, k), [expected[0]] * right + [expected[1]] * (n - right))


@patient
@given(rewards_01, st.integers(1, 7))
def test_pass_at_k_is_the_mean_over_subsets(rewards: F64, k: int) -> None:
    """The definition: a row's advantage is the mean of (max of subset - rho) / sigma over the subsets that hold it."""
    from itertools import combinations

    kept = np.flatnonzero(rewards == rewards)
    if k > len(kept):
        return
    subsets = list(combinations(kept, k))
    best = [max(rewards[list(s)]) for s in subsets]
    rho = float(np.mean(best))
    sigma = sqrt(rho * (1 - rho))
    expected = np.zeros(len(rewards))
    for i in kept if sigma > 0 else ():
        expected[i] = np.mean([b - rho for s, b in zip(subsets, best, strict=True) if i in s]) / sigma
    close(pass_at_k(rewards, k), expected)


def test_remax_numbers() -> None:
    close(remax(np.array([1.0, 0.0, nan]), 1.0), [0, -1, 0])
    close(remax(np.array([1.0, 0.0, nan]), 0.25), [0.75, -0.25, 0])


def test_token_energy_is_the_squared_norm_of_the_score() -> None:
    probabilities = np.array([0.5, 0.3, 0.2])
    for token in range(3):
        score = np.eye(3)[token] - probabilities  # d log pi(token) / d logits
        energy = token_energy(np.log(probabilities[[token]]), np.array([(probabilities**2).sum()]))
        close(energy, [(score**2).sum()])
    assert token_energy(np.array([1e-9]), np.array([1.0]))[0] == 0  # rounding above 1


def test_otb_numbers() -> None:
    """Two rows of 3 and 2 tokens: W = (.5, 2, 3) and (1.5, 2); at the third token the first is alone."""
    first, second = otb(np.array([1.0, 0.0]), [np.array([0.5, 1.5, 1.0]), np.array([1.5, 0.5])])
    close(first, [1 - 0.25, 1 - 0.5, 0])
    close(second, [-0.25, -0.5])


@patient
@given(rewards_01)
def test_otb_with_equal_energies_is_dr_grpo(rewards: F64) -> None:
    got = otb(rewards, [np.full(3, 0.7) for _ in rewards])
    close(np.array(got), np.repeat(centred(rewards)[:, None], 3, axis=1))


def test_otb_without_energy_takes_the_plain_mean() -> None:
    got = otb(ONE_OF_FOUR, [np.zeros(2) for _ in ONE_OF_FOUR])
    close(got, np.repeat(centred(ONE_OF_FOUR)[:, None], 2, axis=1))


# --- properties ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GROUPED)
@patient
@given(groups=steps_01)
def test_errors_leave_every_statistic(name: str, groups: list[F64]) -> None:
    whole = STEPS[name](groups)
    clean = STEPS[name]([g[g == g] for g in groups])
    for group, got, expected in zip(groups, whole, clean, strict=True):
        assert np.isfinite(got).all() and not got[group != group].any()
        np.testing.assert_array_equal(got[group == group], expected)


@pytest.mark.parametrize("name", SUM_TO_ZERO)
@patient
@given(groups=steps_01)
def test_a_groups_advantages_sum_to_zero(name: str, groups: list[F64]) -> None:
    for got in STEPS[name](groups):
        assert abs(got.sum()) < 1e-9


@patient
@given(groups=steps_01)
def test_weighted_sums_to_zero(groups: list[F64]) -> None:
    for group, sizes in zip(groups, lengths(groups), strict=True):
        assert abs((opo(group, sizes) * sizes).sum()) < 1e-9
    whitened = STEPS["reinforce_plus_plus_baseline"](groups)
    counts = lengths(groups)
    assert abs(sum(float(a @ n) for a, n in zip(whitened, counts, strict=True))) < 1e-9
    if any(a.any() for a in whitened):
        spread = sum(float(a**2 @ n) for a, n in zip(whitened, counts, strict=True))
        assert spread == pytest.approx(sum(map(sum, counts)))


@pytest.mark.parametrize("name", GROUPED)
@patient
@given(groups=steps_01, seed=st.integers(0, 99))
def test_order_of_members_and_groups_does_not_matter(name: str, groups: list[F64], seed: int) -> None:
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(groups))
    members = [rng.permutation(len(g)) for g in groups]
    whole = STEPS[name](groups)
    moved = STEPS[name]([groups[g][members[g]] for g in order])
    for place, g in enumerate(order):
        np.testing.assert_allclose(moved[place], whole[g][members[g]], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in GROUPED if n != "reinforce_plus_plus_baseline"])
@pytest.mark.parametrize("reward", [0.1, 0.7, -1.3])
def test_an_all_equal_group_gets_exactly_0(name: str, reward: float) -> None:
    """Where the mean of equal numbers is rounded as well."""
    for size in range(1, 12):
        equal, other = STEPS[name]([np.full(size, reward), ONE_OF_FOUR])
        assert not equal.any() and other.any()


def test_an_all_equal_group_is_whitened_with_the_batch() -> None:
    """REINFORCE++-baseline alone: the mean over tokens moves every row."""
    equal, other = reinforce_plus_plus_baseline([np.ones(2), np.array([1.0, 0.0])], [[1, 1], [3, 1]])
    assert equal[0] == equal[1] < 0 and other[0] > 0
    assert not np.concatenate(reinforce_plus_plus_baseline([np.ones(2), np.zeros(3)], [[1, 1], [3, 1, 1]])).any()


@pytest.mark.parametrize(
    ("name", "scales"),
    [
        ("rloo", True),
        ("opo", True),
        ("lite_ppo", False),
        ("magistral", False),
        ("max_rl", False),
    ],
)
def test_scale_of_the_rewards(name: str, scales: bool) -> None:
    estimate = STEPS[name] if name != "opo" else each(lambda g: opo(g, [3, 1, 2, 5]))
    for plain, scaled in zip(estimate(TWO_GROUPS), estimate([3 * g for g in TWO_GROUPS]), strict=True):
        close(scaled, 3 * plain if scales else plain)


@pytest.mark.parametrize("name", ["rloo", "opo", "lite_ppo", "magistral", "reinforce_plus_plus_baseline"])
def test_a_shift_of_the_rewards_changes_nothing(name: str) -> None:
    counts = [[3, 1, 2, 5], [2, 2, 1, 1]]
    estimates: dict[str, Step] = STEPS | {
        "opo": lambda groups: [opo(g, n) for g, n in zip(groups, counts, strict=True)],
        "reinforce_plus_plus_baseline": lambda groups: reinforce_plus_plus_baseline(groups, counts),
    }
    shifted = estimates[name]([g - 5 for g in TWO_GROUPS])
    for plain, moved in zip(estimates[name](TWO_GROUPS), shifted, strict=True):
        close(moved, plain)


def test_magistral_is_reinforce_plus_plus_baseline_with_equal_lengths() -> None:
    tokens_of = reinforce_plus_plus_baseline(TWO_GROUPS, [[4] * 4] * 2)
    for rows, tokens in zip(STEPS["magistral"](TWO_GROUPS), tokens_of, strict=True):
        close(rows, tokens)


@pytest.mark.parametrize("estimate", [lite_ppo, magistral])
def test_undivided_rewards_keep_their_size(estimate: Callable[..., list[F64]]) -> None:
    for got, group in zip(all_count(estimate, divide=False)(TWO_GROUPS), TWO_GROUPS, strict=True):
        close(got, centred(group))


def test_masked_rows_do_not_weigh_in_the_whitening() -> None:
    (got,) = reinforce_plus_plus_baseline([np.array([1.0, 0.0, 0.0])], [[3, 2, 0]])
    (without,) = whiten_rows([2 / 3] * 3 + [-1 / 3] * 2)
    close(got[:2], [without[0], without[3]])


def whiten_rows(values: list[float]) -> list[F64]:
    array = np.array(values)
    return [(array - array.mean()) / array.std()]


@patient
@given(st.lists(st.lists(st.floats(-1e3, 1e3), max_size=6).map(lambda v: np.array(v, float)), max_size=6))
def test_pooled_is_numpys_mean_and_std(rows: list[F64]) -> None:
    values = np.concatenate([np.zeros(0), *rows])
    expected = (values.mean(), values.std()) if len(values) else (0.0, 0.0)
    assert pooled(rows) == pytest.approx(expected, abs=1e-9)
    assert pooled(rows[::-1]) == pooled(rows)
