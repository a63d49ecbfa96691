"""OTB, the optimal token baseline (2602.07078): a baseline for every position, weighted by the energy seen so far.

    w_it = 1 - 2 pi_old(y_it) + sum_v pi_old(v)^2        squared norm of d log pi(y_it) / d logits, in [0, 2]
    W_it = sum_{j <= t} w_ij
    B_t  = sum_i R_i W_it / sum_i W_it                   over the responses of the group that are alive at t
    A_it = R_i - B_t                                     [L] each, on trained tokens

t counts a row's trained tokens. `sum_v pi^2` is the stream `sum_sq` of the weights at the start of the step, reduced in
the forward, at the sampling temperature. Where only one response is left it is its own baseline and gets 0.
Differs from the released code (verl): no epsilon in the denominator (where all W are 0 the plain mean of the alive rows
stands in, the limit of equal weights), and no factor rho^2 for truncated importance weights, since the baseline
needs none to be unbiased and with `max_lag: 0` rho is 1. The recipe's objective applies instead of plain REINFORCE.
Fidelity: close.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlvr.advantages.base import F64, Estimator, shaped, silent
from rlvr.advantages.rows import scatter
from rlvr.explore.base import AddOnConfig
from rlvr.types import Group, Trajectory


def token_energy(logp: F64, sum_sq: F64) -> F64:
    """w_t of a row's trained tokens, [n], [n] -> [n]; rounding below 0 is cut off."""
    return np.maximum(1.0 - 2.0 * np.exp(logp) + sum_sq, 0.0)


def otb(rewards: F64, energies: Sequence[F64]) -> list[F64]:
    """Rewards [G] and w of the trained tokens, [n_i] each -> advantages [n_i] each; error rows (NaN) get 0."""
    out = [np.zeros(len(energy)) for energy in energies]
    rows = [i for i in np.flatnonzero(~np.isnan(rewards)) if len(energies[i])]
    if not rows or silent(rewards):
        return out
    kept = rewards[rows][:, None]
    alive = np.arange(max(len(energies[i]) for i in rows)) < np.array([len(energies[i]) for i in rows])[:, None]
    weight = np.zeros(alive.shape)
    for place, i in enumerate(rows):
        weight[place, : len(energies[i])] = np.cumsum(energies[i])
    weight = np.where(weight.sum(0) > 0, weight, alive)  # no energy yet: the plain mean
    baseline = (kept * weight).sum(0) / weight.sum(0)
    advantages = np.where(alive.sum(0) > 1, kept - baseline, 0.0)
    for place, i in enumerate(rows):
        out[i] = advantages[place, : len(energies[i])]
    return out


class Config(AddOnConfig):
    """Nothing to set."""


class OTB(Estimator):
    """A baseline for every position."""

    kind = "otb"
    Config = Config
    needs = frozenset({"old_logp", "sum_sq"})

    def advantage(self, groups: Sequence[Group]) -> Sequence[Group]:
        """A number for every trained token."""
        return [scatter(g, otb(shaped(g), [_energy(t) for t in g.trajectories])) for g in groups]


def _energy(t: Trajectory) -> F64:
    where = t.weight != 0
    logp, sum_sq = (t.streams[name][where].astype(np.float64) for name in ("old_logp", "sum_sq"))
    known = np.isfinite(logp) & np.isfinite(sum_sq)  # else the token is not in the loss, and has no energy
    return np.where(known, token_energy(np.where(known, logp, 0.0), np.where(known, sum_sq, 0.0)), 0.0)
