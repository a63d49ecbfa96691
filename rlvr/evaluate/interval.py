"""How sure a mean over questions is. There are two questions, and each interval says which one it answers.

Over **questions**: "what on other questions of this kind?" Questions are resampled, with all their samples. Over
**samples**: "what if the same questions were sampled again?" The questions stay, their samples vary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
PerQuestion = Callable[[npt.ArrayLike, npt.ArrayLike, int], F64]  # (n, c, k) -> [Q], such as `pass_at_k`
Z95 = 1.959963984540054
RESAMPLES = 10_000
FEWEST = 4  # samples for each of the k, for an interval over samples
WIDEST = 12.0  # standard errors; a resample of nearly equal values has none to divide by
_CELLS = 2_000_000  # drawn indices held at once


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over questions with its 95 % interval over questions."""

    value: float
    low: float
    high: float


def estimate(values: npt.ArrayLike, *, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Mean of per-question values in [0, 1] with a 95 % studentised bootstrap over questions, seeded.

    The studentised bootstrap (Efron & Tibshirani 1993, ch. 12.5) instead of percentiles: with 30 questions, most of
    them never solved, percentile intervals cover 84 times in 100 and this one 97 (benchmarks/eval_coverage.py).
    Where all values are alike the bootstrap would claim certainty: then it is Wilson's interval with Q trials, about
    the common value. Raises ValueError when there is no question.
    """
    values_q = _some(values)
    if values_q.std() == 0.0:
        mean = float(values_q[0])
        low, high = wilson(mean, values_q.size)
        return Estimate(mean, low, high)
    mean, low, high = _studentised(values_q, seed=seed, resamples=resamples)
    return Estimate(mean, max(0.0, low), min(1.0, high))


def difference(a: npt.ArrayLike, b: npt.ArrayLike, *, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Mean of a - b over questions that both answered [Q] with a 95 % paired bootstrap over questions.

    The pairs are resampled, so what makes a question hard for both cancels. Where every difference is the same the
    interval is that one number: no question speaks against it. Raises ValueError when there is no question.
    """
    change_q = _some(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64))
    if change_q.std() == 0.0:
        return Estimate(float(change_q[0]), float(change_q[0]), float(change_q[0]))
    mean, low, high = _studentised(change_q, seed=seed, resamples=resamples)
    return Estimate(mean, max(-1.0, low), min(1.0, high))


def over_samples(of: PerQuestion, n: npt.ArrayLike, correct: npt.ArrayLike, k: int) -> tuple[float, float] | None:
    """95 % interval of the mean of `of(n, c, k)` over samples, the questions fixed; None where 4 k > n for some.

    From the delete-one jackknife over each question's samples; for k = 1 its standard error is
    sqrt(sum_q a_q (1 - a_q) / (n_q - 1)) / Q. A bootstrap would draw samples with replacement, and pass@k of such
    draws is biased (one right of 4 would read 0.684 at k = 4). Beyond n/4 the samples hold too few separate sets of k:
    at n/2 the interval holds the truth 72 times in 100 (benchmarks/eval_coverage.py).
    """
    n_q, c_q = np.broadcast_arrays(np.asarray(n, dtype=np.int64), np.asarray(correct, dtype=np.int64))
    if n_q.size == 0 or (n_q < FEWEST * k).any():
        return None
    less_right = of(n_q - 1, np.maximum(c_q - 1, 0), k)
    less_wrong = of(n_q - 1, np.minimum(c_q, n_q - 1), k)
    share = c_q / n_q
    variance = (n_q - 1) * share * (1 - share) * (less_wrong - less_right) ** 2  # (n-1)/n * sum of squares
    mean, error = float(of(n_q, c_q, k).mean()), float(np.sqrt(variance.sum())) / n_q.size
    return max(0.0, mean - Z95 * error), min(1.0, mean + Z95 * error)


def wilson(share: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of independent trials."""
    centre = share + Z95**2 / (2 * trials)
    spread = Z95 * np.sqrt(share * (1 - share) / trials + Z95**2 / (4 * trials**2))
    scale = 1 + Z95**2 / trials
    return float(max(0.0, (centre - spread) / scale)), float(min(1.0, (centre + spread) / scale))


def _some(values: npt.ArrayLike) -> F64:
    values_q = np.asarray(values, dtype=np.float64)
    if values_q.size == 0:
        raise ValueError("no question to estimate from")
    return values_q


def _studentised(values_q: F64, *, seed: int, resamples: int) -> tuple[float, float, float]:
    """Mean and interval: quantiles of (resampled mean - mean) / its standard error, times the standard error."""
    size, mean = values_q.size, float(values_q.mean())
    centred = values_q - mean
    error = float(centred.std(ddof=1)) / np.sqrt(size)
    means, spreads = _moments(centred, seed=seed, resamples=resamples)
    t = means / np.maximum(spreads / np.sqrt(size - 1), np.abs(means) / WIDEST + 1e-300)
    early, late = np.quantile(t, [0.025, 0.975])
    return mean, mean - float(late) * error, mean - float(early) * error


def _moments(values_q: F64, *, seed: int, resamples: int) -> tuple[F64, F64]:
    """Mean and (population) standard deviation of every resample of centred values."""
    counts = _resamples(values_q.size, seed, resamples)
    powers = np.stack([values_q, values_q**2], axis=1)
    block = max(1, _CELLS // values_q.size)
    sums = [counts[start : start + block].astype(np.float64) @ powers for start in range(0, resamples, block)]
    means, squares = np.concatenate(sums).T / values_q.size
    return means, np.sqrt(np.maximum(squares - means**2, 0.0))


@lru_cache(maxsize=8)  # every score of a dataset asks for the same
def _resamples(size: int, seed: int, resamples: int) -> npt.NDArray[np.uint8]:
    """[resamples, size] how often each question is in each resample (255 times never happens)."""
    rng = np.random.default_rng(seed)
    counts = np.empty((resamples, size), dtype=np.uint8)
    for start in range(0, resamples, block := max(1, _CELLS // size)):
        rows = min(block, resamples - start)
        places = rng.integers(0, size, (rows, size)) + size * np.arange(rows)[:, None]
        counts[start : start + rows] = np.bincount(places.ravel(), minlength=rows * size).reshape(rows, size)
    return counts
