"""pass@k, G-Pass@k and maj@k against brute force, exact fractions and the specification's numbers."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import combinations, product
from math import comb

import numpy as np
import pytest

from rlvr.evaluate.pass_at_k import g_pass_at_k, maj_at_k, mg_pass_at_k, pass_at_k


@pytest.mark.parametrize("n", range(1, 13))
def test_equals_brute_force(n: int) -> None:
    """All (n, c, k) up to 12: pass@k, and G-Pass@k at every number that must be right."""
    for correct, k in product(range(n + 1), range(1, n + 1)):
        right = np.array([sum(subset) for subset in combinations([i < correct for i in range(n)], k)])
        assert pass_at_k(n, correct, k) == pytest.approx((right > 0).mean(), abs=1e-14), (n, correct, k)
        for needed in range(1, k + 1):
            found = g_pass_at_k(n, correct, k, tau=needed / k)
            assert found == pytest.approx((right >= needed).mean(), abs=1e-12), (n, correct, k, needed)
        tails = [(right >= i).mean() for i in range((k + 1) // 2 + 1, k + 1)]
        assert mg_pass_at_k(n, correct, k) == pytest.approx(2 / k * sum(tails), abs=1e-12)


@pytest.mark.parametrize(
    ("correct", "k"), [(1, 1), (1, 10**6), (3, 7), (50, 10**3), (5, 5 * 10**5), (3000, 2), (7, 999_999), (10**6, 1)]
)
def test_exact_with_a_million_samples(correct: int, k: int) -> None:
    n, few, many = 10**6, min(correct, k), max(correct, k)
    missed = Fraction(1)
    for j in range(few):
        missed *= Fraction(max(n - j - many, 0), n - j)
    assert pass_at_k(n, correct, k) == pytest.approx(float(1 - missed), rel=1e-14)


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


def test_many_samples_do_not_overflow_the_majority() -> None:
    keys = ["A"] * 600 + ["B"] * 500 + [None] * 100
    found = maj_at_k(keys, [key == "A" for key in keys], 21)
    assert found is not None and 0.5 < found < 0.9


@pytest.mark.parametrize(
    ("n", "k", "tau", "expected"),
    [
        (16, 4, 1e-9, 0.961538), (16, 4, 0.25, 0.961538), (16, 4, 0.5, 0.715385), (16, 4, 0.75, 0.284615),
        (16, 4, 1.0, 0.038462), (48, 16, 0.25, 0.997505), (48, 16, 0.5, 0.619945), (48, 16, 0.75, 0.015238),
    ],
)  # fmt: skip
def test_g_pass_known_values(n: int, k: int, tau: float, expected: float) -> None:
    assert g_pass_at_k(n, n // 2, k, tau=tau) == pytest.approx(expected, abs=1e-6)


def test_g_pass_limits() -> None:
    assert mg_pass_at_k([16, 48], [8, 24], 4)[0] == pytest.approx(0.161538, abs=1e-6)
    assert mg_pass_at_k(48, 24, 16) == pytest.approx(0.079964, abs=1e-6)
    assert mg_pass_at_k(8, 8, 1) == 0.0
    assert g_pass_at_k(100, 40, 10, tau=1e-9) == pytest.approx(pass_at_k(100, 40, 10))
    assert g_pass_at_k(1000, 7, 100, tau=0.07) == pytest.approx(comb(993, 93) / comb(1000, 100))  # 7 of 100, not 8


def draws_won(keys: str, right: str, k: int) -> float:
    """maj@k by going through all draws; "-" has no vote."""
    won = []
    for draw in combinations(keys, k):
        votes = Counter(key for key in draw if key != "-")
        winners = [key for key in votes if votes[key] == max(votes.values())]
        won.append((right in winners) / len(winners) if winners else 0.0)
    return sum(won) / len(won)


@pytest.mark.parametrize("keys", ["AAABBCD", "AABBC--", "ABCD---", "AAAABBBBCC", "-AB-BA-A", "ABCDEFGH", "AABBCCDD"])
def test_majority_equals_brute_force(keys: str) -> None:
    votes = [None if key == "-" else key for key in keys]
    for right, k in product("ABC", range(1, len(keys) + 1)):
        found = maj_at_k(votes, [key == right for key in keys], k)
        assert found == pytest.approx(draws_won(keys, right, k), abs=1e-12), (right, k)


@pytest.mark.parametrize(
    ("right", "expected"),
    [("A", (0.428571, 0.514286, 0.714286, 1.0)), ("B", (0.285714, 0.276190, 0.285714, 0.0))],
)
def test_majority_known_values(right: str, expected: tuple[float, ...]) -> None:
    found = [maj_at_k("AAABBCD", [key == right for key in "AAABBCD"], k) for k in (1, 3, 5, 7)]
    assert found == pytest.approx(expected, abs=1e-6)


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
    assert maj_at_k(votes, [key == right for key in keys], len(keys)) == pytest.approx(expected)


def test_no_vote_is_no_majority() -> None:
    assert maj_at_k([None, None], [False, False], 2) is None
