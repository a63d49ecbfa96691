"""Picks of tokens that depend on no order of rows or ranks: chance is a number per (seed, row, token)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rlvr.seeds import stable_seed
from rlvr.types import F32, Bool

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(state: int, count: int) -> npt.NDArray[np.uint64]:
    """The first `count` outputs of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) from `state`, [count].

    Output i depends on `state` and i alone, so a prefix of a longer row has the same numbers.
    """
    x = np.uint64(state) + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN  # arrays wrap around silently
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(seed: int, key: str, length: int) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1), one per token of the row `key`, [L]."""
    return (splitmix64(stable_seed(seed, key), length) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def random_subset(candidates: Sequence[Bool], *, keys: Sequence[str], k: int, seed: int) -> list[F32]:
    """1.0 at `k` tokens picked uniformly without replacement among the `candidates` (bool [L] per row), else 0.0.

    All of them when there are no more than `k`. `keys` name the rows and must be unique.
    """
    return largest_subset([np.zeros(len(c), np.float32) for c in candidates], candidates, keys=keys, k=k, seed=seed)


def largest_subset(
    values: Sequence[F32], candidates: Sequence[Bool], *, keys: Sequence[str], k: int, seed: int
) -> list[F32]:
    """1.0 at the `k` candidates of largest value ([L] per row, over all rows), else 0.0; equal ones by lot.

    All of them when there are no more than `k`. `keys` name the rows and must be unique.
    """
    flat = np.concatenate([np.zeros(0, dtype=bool), *candidates])
    value = np.concatenate([np.zeros(0, dtype=np.float32), *values])
    lot = np.concatenate([np.zeros(0), *(uniform(seed, key, len(c)) for key, c in zip(keys, candidates, strict=True))])
    places = np.flatnonzero(flat)
    picked = np.zeros(len(flat), dtype=np.float32)
    picked[places[np.lexsort((lot[places], -value[places]))[:k]]] = 1.0
    return np.split(picked, np.cumsum([len(c) for c in candidates])[:-1]) if len(candidates) else []
