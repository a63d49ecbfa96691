"""What n samples of a question say: pass@k, G-Pass@k and maj@k, each exact over all subsets of k of the n samples.

Letters: Q questions, n samples of a question, c correct ones, k samples drawn without replacement.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import ceil

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
TAUS = (0.25, 0.5, 0.75, 1.0)  # the thresholds that G-Pass@k is reported at


def pass_at_k(n: npt.ArrayLike, correct: npt.ArrayLike, k: int) -> F64:
    """Unbiased pass@k of every question [Q]: 1 - C(n-c, k) / C(n, k) (Chen et al., arXiv 2107.03374, eq. 1).

    Computed as -expm1(sum_{j<m} log1p(-M / (n-j))) with m = min(c, k) and M = max(c, k): no difference of large
    numbers, so the relative error stays near 1e-15 at n = 1e6 too, where products lose small values and
    differences of log-gammas nine digits. `n` and `correct` are counts [Q] (n may differ between questions). Raises
    ValueError unless 0 <= c <= n and 1 <= k <= n everywhere.
    """
    return _each(_pass, n, correct, k)


def g_pass_at_k(n: npt.ArrayLike, correct: npt.ArrayLike, k: int, *, tau: float) -> F64:
    """G-Pass@k_tau of every question [Q] (Liu et al., arXiv 2412.13147): at least max(ceil(tau k), 1) of k right.

    tau -> 0 is pass@k, tau = 1 asks that all k are right. Raises ValueError as `pass_at_k`.
    """
    needed = max(ceil(round(tau * k, 9)), 1)  # 0.07 * 100 is 7.000000000000001
    return _each(lambda n, c, k: float(_hypergeometric(n, c, k)[needed:].sum()), n, correct, k)


def mg_pass_at_k(n: npt.ArrayLike, correct: npt.ArrayLike, k: int) -> F64:
    """mG-Pass@k of every question [Q]: (2/k) sum_{i=ceil(k/2)+1..k} P(at least i of k are right), tau from .5 to 1.

    0 for k = 1, where the sum is empty. Raises ValueError as `pass_at_k`.
    """

    def one(n: int, c: int, k: int) -> float:
        tails = np.cumsum(_hypergeometric(n, c, k)[::-1])[::-1]  # [i] = P(at least i)
        return float(2.0 / k * tails[ceil(k / 2) + 1 :].sum())

    return _each(one, n, correct, k)


def maj_at_k(keys: Sequence[str | None], correct: Sequence[bool], k: int) -> float | None:
    """Chance that the most frequent answer of k of the n samples is right; t answers that tie win 1/t each.

    `keys` are canonical answers; None is drawn as the others are but has no vote, and k samples without a vote are
    wrong. A key counts as right to the share of its samples that were judged right (all or none where the
    verifier agrees with itself). With fewer than k samples all of them vote. None when no sample has a key.
    """
    votes = Counter(key for key in keys if key is not None)
    if not votes:
        return None
    right = Counter(key for key, ok in zip(keys, correct, strict=True) if ok and key is not None)
    blank = len(keys) - sum(votes.values())
    return sum(
        share / votes[key] * _wins(votes[key], tuple(sorted((votes - Counter({key: votes[key]})).values())), blank, k)
        for key, share in right.items()
    )


def _each(one: Callable[[int, int, int], float], n: npt.ArrayLike, correct: npt.ArrayLike, k: int) -> F64:
    """`one(n, c, k)` for every question, computed once for each different pair of counts."""
    n_q, c_q = np.broadcast_arrays(np.asarray(n, dtype=np.int64), np.asarray(correct, dtype=np.int64))
    if ((c_q < 0) | (c_q > n_q)).any():
        raise ValueError("pass@k: correct counts must lie between 0 and n")
    if k < 1 or (n_q < k).any():
        raise ValueError(f"pass@k: k must lie between 1 and n; got k={k}, smallest n={n_q.min(initial=k)}")
    pairs, inverse = np.unique(np.stack([n_q.ravel(), c_q.ravel()]), axis=1, return_inverse=True)
    values = np.array([one(int(n), int(c), k) for n, c in pairs.T], dtype=np.float64)
    return values[inverse].reshape(n_q.shape)


def _pass(n: int, c: int, k: int) -> float:
    if n - c < k:
        return 1.0
    few, many = min(c, k), max(c, k)
    return abs(float(np.expm1(np.log1p(-many / (n - np.arange(few))).sum())))  # abs: no -0.0


@lru_cache(maxsize=4096)
def _hypergeometric(n: int, c: int, k: int) -> F64:
    """Chances [k+1] that j of the k samples are right."""
    j = np.arange(k + 1)
    possible = (j <= c) & (k - j <= n - c)
    log = _log_choose(c, np.where(possible, j, 0)) + _log_choose(n - c, np.where(possible, k - j, 0))
    chances = np.where(possible, np.exp(log - _log_choose(n, np.asarray(k))), 0.0)
    return chances / chances.sum()


def _log_choose(n: int, j: npt.NDArray[np.int64]) -> F64:
    return gammaln(n + 1) - gammaln(j + 1) - gammaln(n - j + 1)


@lru_cache(maxsize=65536)
def _wins(own: int, others: tuple[int, ...], blank: int, k: int) -> float:
    """Chance that an answer with `own` votes wins a draw of k: `others` are the rivals' votes, `blank` have none.

    Samples are thinned with probability k/n, so each answer's drawn votes are binomial; given that k samples are
    drawn, this is a draw without replacement. For each number m of own votes, rivals have at most m, and t of them
    with m share the win: 1/(t+1) is the integral of u^t over [0, 1], which Gauss-Legendre nodes give exactly.
    """
    n = own + blank + sum(others)
    if k >= n:
        return float(own >= max(others, default=0)) / (1 + sum(rival == own for rival in others))
    rate = k / n
    drawn = {votes: _binomial(votes, rate) for votes in {own, blank, n, *others}}
    total = 0.0
    for m in range(1, min(own, k) + 1):
        nodes, weights = np.polynomial.legendre.leggauss((k // m) // 2 + 1)
        u = (nodes[:, None] + 1) / 2
        chances = np.zeros((len(u), k - m + 1))  # [node, drawn so far]
        chances[:, : blank + 1] = drawn[blank][: k - m + 1]
        for rival in others:
            chances = _draw(chances, drawn[rival][: m + 1], tied=u if rival >= m else None)
        total += drawn[own][m] * float((weights / 2) @ chances[:, -1])
    return total / drawn[n][k]


def _draw(chances: F64, votes: F64, *, tied: F64 | None) -> F64:
    """Add a rival: `votes` are its chances of 0..m drawn votes, the last one times `tied` where that is a tie."""
    room = chances.shape[1]
    out = np.zeros_like(chances)
    for j, chance in enumerate(votes[:room]):
        share = chance * tied if tied is not None and j == len(votes) - 1 else chance
        out[:, j:] += share * chances[:, : room - j]
    return out


def _binomial(n: int, p: float) -> F64:
    j = np.arange(n + 1)
    return np.exp(_log_choose(n, j) + j * np.log(p) + (n - j) * np.log1p(-p))
