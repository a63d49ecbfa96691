"""pass@k, maj@n and their intervals.

pass@k is the unbiased estimator of Chen et al. (arXiv 2107.03374): the chance that k of the n samples drawn
without replacement hold a correct one. Intervals answer "what on other questions of this kind?": they
resample questions, not samples. Letters: Q questions, n samples of a question, c correct ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Z95 = 1.959963984540054
RESAMPLES = 10_000
_CELLS = 4_000_000  # drawn indices held at once


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over questions with its 95 % interval."""

    value: float
    low: float
    high: float


def pass_at_k(n: npt.ArrayLike, correct: npt.ArrayLike, k: int) -> F64:
    """Unbiased pass@k of every question: 1 - C(n-c, k) / C(n, k), as a product of k factors in [0, 1].

    `n` and `correct` are counts [Q] (n may differ between questions). Raises ValueError unless
    0 <= c <= n and 1 <= k <= n everywhere.
    """
    n_q, c_q = np.broadcast_arrays(np.asarray(n, dtype=np.int64), np.asarray(correct, dtype=np.int64))
    if ((c_q < 0) | (c_q > n_q)).any():
        raise ValueError("pass@k: correct counts must lie between 0 and n")
    if k < 1 or (n_q < k).any():
        raise ValueError(f"pass@k: k must lie between 1 and n; got k={k}, smallest n={n_q.min(initial=k)}")
    missed = np.ones(n_q.shape, dtype=np.float64)
    for j in range(k):
        missed *= np.maximum(n_q - c_q - j, 0) / (n_q - j)
    return 1.0 - missed


def maj_at_n(keys: Sequence[str | None], correct: Sequence[bool]) -> float | None:
    """Chance that the majority answer of one question is right; ties are broken evenly.

    `keys` are canonical answers, None is no vote. A key counts as right to the share of its samples that
    were judged right (all or none where the verifier agrees with itself). None when nothing voted.
    """
    votes = Counter(key for key in keys if key is not None)
    if not votes:
        return None
    most = max(votes.values())
    right = Counter(key for key, ok in zip(keys, correct, strict=True) if ok and key is not None)
    winners = [key for key, count in votes.items() if count == most]
    return sum(right[key] / most for key in winners) / len(winners)


def estimate(values: npt.ArrayLike, *, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Mean of per-question values in [0, 1] with a 95 % percentile bootstrap over questions, seeded.

    Where every question has the same value 0 or 1 the bootstrap would claim certainty; the interval is
    Wilson's with Q trials then. Raises ValueError when there is no question.
    """
    values_q = np.asarray(values, dtype=np.float64)
    if values_q.size == 0:
        raise ValueError("no question to estimate from")
    mean = float(values_q.mean())
    if mean in (0.0, 1.0):
        low, high = wilson(mean, values_q.size)
    else:
        low, high = np.quantile(_resampled_means(values_q, seed=seed, resamples=resamples), [0.025, 0.975])
    return Estimate(mean, float(low), float(high))


def wilson(share: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of independent trials."""
    centre = share + Z95**2 / (2 * trials)
    spread = Z95 * np.sqrt(share * (1 - share) / trials + Z95**2 / (4 * trials**2))
    scale = 1 + Z95**2 / trials
    return float(max(0.0, (centre - spread) / scale)), float(min(1.0, (centre + spread) / scale))


def _resampled_means(values_q: F64, *, seed: int, resamples: int) -> F64:
    rng = np.random.default_rng(seed)
    size = values_q.size
    block = max(1, _CELLS // size)
    means = [
        values_q[rng.integers(0, size, (min(block, resamples - start), size))].mean(axis=1)
        for start in range(0, resamples, block)
    ]
    return np.concatenate(means)
