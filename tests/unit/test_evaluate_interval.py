"""Intervals against what they promise: fixed seeds, quick; benchmarks/eval_coverage.py has the full simulation."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.eval_coverage import POPULATIONS, coverage
from rlvr.evaluate.interval import difference, estimate, over_samples, wilson
from rlvr.evaluate.pass_at_k import pass_at_k

AIME = np.array([1.0] * 9 + [0.75] * 3 + [0.5] * 4 + [0.25] * 4 + [0.0] * 10)  # chances of 30 questions


def test_interval_is_seeded_and_holds_the_mean() -> None:
    values = np.random.default_rng(0).random(200)
    first = estimate(values, seed=1)
    assert first == estimate(values, seed=1) != estimate(values, seed=2)
    assert first.low < first.value < first.high
    assert first.value == pytest.approx(values.mean())
    spread = 1.96 * values.std() / np.sqrt(200)  # near normal here
    assert first.high - first.low == pytest.approx(2 * spread, rel=0.05)


def test_the_specification_s_benchmark_of_thirty_questions() -> None:
    """Mean .473: [.325, .622] over questions (percentiles there, studentised here); .0089 over samples."""
    correct = np.random.default_rng(0).binomial(32, AIME)
    found = estimate(correct / 32, seed=0)
    assert (found.low, found.high) == pytest.approx((0.325, 0.622), abs=0.02)
    noise = over_samples(pass_at_k, 32, correct, 1)
    assert noise is not None
    assert (noise[1] - noise[0]) / (2 * 1.96) == pytest.approx(0.0089, abs=0.0002)


@pytest.mark.parametrize(("name", "questions"), [("aime", 100), ("middle", 60), ("sparse", 100), ("hard", 100)])
def test_intervals_over_questions_cover(name: str, questions: int) -> None:
    found = coverage(POPULATIONS[name], questions=questions, n=32, k=4, rounds=400, resamples=600, seed=5)
    assert 0.93 <= found.over_questions <= 0.97


@pytest.mark.parametrize(("name", "k"), [("aime", 1), ("middle", 8), ("sparse", 4)])
def test_intervals_over_samples_cover(name: str, k: int) -> None:
    found = coverage(POPULATIONS[name], questions=100, n=64, k=k, rounds=400, resamples=100, seed=3)
    assert 0.93 <= found.over_samples <= 0.975


def test_sampling_noise_by_hand() -> None:
    """Two questions, n = 4, c = 1 and 3: standard error sqrt(2 * .25 * .75 / 3) / 2."""
    noise = over_samples(pass_at_k, [4, 4], [1, 3], 1)
    half = 1.959964 * np.sqrt(2 * 0.25 * 0.75 / 3) / 2
    assert noise == pytest.approx((0.5 - half, 0.5 + half))
    assert over_samples(pass_at_k, [4, 4], [1, 3], 2) is None
    assert over_samples(pass_at_k, [8, 8], [0, 8], 2) == pytest.approx((0.5, 0.5))


def test_differences_are_paired() -> None:
    """The questions differ much, the models little: the pairs tell them apart, two separate intervals would not."""
    rng = np.random.default_rng(2)
    a = rng.random(60) * 0.8
    b = a + 0.05 + 0.05 * rng.standard_normal(60)
    change = difference(b, a, seed=0)
    assert 0 < change.low < change.value < change.high < 0.12
    assert change.value == pytest.approx((b - a).mean())
    back = difference(a, b, seed=0)
    assert back.value == pytest.approx(-change.value)
    assert (back.low, back.high) == pytest.approx((-change.high, -change.low), abs=0.003)
    assert difference([0.5, 0.5], [0.25, 0.25], seed=0).low == 0.25
    assert estimate(a, seed=0).high > estimate(b, seed=0).low


def test_blocks_do_not_change_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlvr.evaluate import interval

    values = np.random.default_rng(0).random(50)
    whole = estimate(values, seed=3)
    monkeypatch.setattr("rlvr.evaluate.interval._CELLS", 1000)
    interval._resamples.cache_clear()
    parts = estimate(values, seed=3)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=1e-12)


@pytest.mark.parametrize(("share", "trials", "low", "high"), [(14 / 30, 30, 0.3023, 0.6386), (0.0, 30, 0.0, 0.1135)])
def test_wilson(share: float, trials: int, low: float, high: float) -> None:
    assert wilson(share, trials) == pytest.approx((low, high), abs=1e-4)


def test_all_alike_is_not_certainty() -> None:
    assert estimate(np.zeros(30), seed=0).high == pytest.approx(0.1135, abs=1e-4)
    assert estimate(np.ones(30), seed=0).low == pytest.approx(1 - 0.1135, abs=1e-4)
    nearly = estimate([0.0] * 29 + [1.0], seed=0)
    assert 0.0 <= nearly.low < nearly.value < 0.2 < nearly.high <= 1.0
    with pytest.raises(ValueError, match="no question"):
        estimate([], seed=0)
