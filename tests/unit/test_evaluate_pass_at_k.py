"""pass@k against brute force and published numbers; intervals against what they promise."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr.evaluate.pass_at_k import estimate, maj_at_n, pass_at_k, wilson


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_equals_brute_force(case: tuple[int, int, int]) -> None:
    n, correct, k = case
    subsets = list(combinations([i < correct for i in range(n)], k))
    assert pass_at_k([n], [correct], k)[0] == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@pytest.mark.parametrize(
    ("n", "correct", "k", "expected"),
    [
        (10, 3, 1, 0.3),
        (10, 3, 5, 0.9166666667),
        (16, 1, 8, 0.5),
        (16, 2, 8, 0.7666666667),
        (256, 1, 128, 0.5),
        (256, 4, 64, 0.6860824346),
        (200, 5, 100, 0.9703083948),
        (1024, 3, 512, 0.8753665689),
        (1024, 0, 1024, 0.0),
        (5, 4, 2, 1.0),
        (4, 1, 4, 1.0),  # resampling with replacement would say 0.684
    ],
)
def test_known_values(n: int, correct: int, k: int, expected: float) -> None:
    assert pass_at_k([n], [correct], k)[0] == pytest.approx(expected, abs=1e-9)


def test_unbiased() -> None:
    p, n, k = 0.3, 8, 3
    chances = [comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    assert pass_at_k(n, np.arange(n + 1), k) @ chances == pytest.approx(1 - (1 - p) ** k)


def test_questions_may_differ_in_n() -> None:
    np.testing.assert_allclose(pass_at_k([4, 2, 8], [1, 2, 0], 2), [0.5, 1.0, 0.0])


@pytest.mark.parametrize(("n", "correct", "k"), [([4, 3], [0, 0], 4), ([4], [0], 0), ([4], [5], 1), ([4], [-1], 1)])
def test_impossible_counts_raise(n: list[int], correct: list[int], k: int) -> None:
    with pytest.raises(ValueError, match="pass@k"):
        pass_at_k(n, correct, k)


@pytest.mark.parametrize(
    ("keys", "right", "expected"),
    [
        ("AAABBCD", "A", 1.0),
        ("AAABBCD", "B", 0.0),
        ("AABBC", "B", 0.5),
        ("ABC", "C", 1 / 3),
        ("A-----", "A", 1.0),  # unparsed is no vote
    ],
)
def test_majority(keys: str, right: str, expected: float) -> None:
    votes = [None if key == "-" else key for key in keys]
    assert maj_at_n(votes, [key == right for key in keys]) == pytest.approx(expected)


def test_no_vote_is_no_majority() -> None:
    assert maj_at_n([None, None], [False, False]) is None


def test_interval_is_seeded_and_holds_the_mean() -> None:
    values = np.random.default_rng(0).random(200)
    first = estimate(values, seed=1)
    assert first == estimate(values, seed=1) != estimate(values, seed=2)
    assert first.low < first.value < first.high
    assert first.value == pytest.approx(values.mean())
    spread = 1.96 * values.std() / np.sqrt(200)  # the bootstrap of a mean is near normal here
    assert first.high - first.low == pytest.approx(2 * spread, rel=0.05)


def test_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for seed in range(200):
        found = estimate(rng.beta(2, 3, 60), seed=seed, resamples=500)
        hits += found.low <= 0.4 <= found.high
    assert 180 <= hits <= 199


def test_blocks_do_not_change_the_interval_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(50)
    whole = estimate(values, seed=3)
    monkeypatch.setattr("rlvr.evaluate.pass_at_k._CELLS", 1000)
    parts = estimate(values, seed=3)
    assert parts == whole  # the same stream of draws, cut differently


@pytest.mark.parametrize(("share", "trials", "low", "high"), [(14 / 30, 30, 0.3023, 0.6386), (0.0, 30, 0.0, 0.1135)])
def test_wilson(share: float, trials: int, low: float, high: float) -> None:
    assert wilson(share, trials) == pytest.approx((low, high), abs=1e-4)


def test_all_alike_is_not_certainty() -> None:
    assert estimate(np.zeros(30), seed=0).high == pytest.approx(0.1135, abs=1e-4)
    assert estimate(np.ones(30), seed=0).low == pytest.approx(1 - 0.1135, abs=1e-4)
    with pytest.raises(ValueError, match="no question"):
        estimate([], seed=0)
