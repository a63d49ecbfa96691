"""Per-token estimators of KL(pi_theta || pi_ref) from samples of the policy (Schulman's k1, k2, k3).

In a reward, what counts is the value: k1 and k3 are unbiased, k2 is not. In a loss, what counts is the gradient.
With x = log pi_theta - log pi_ref and r = pi_theta / pi_old, over samples of pi_old = pi_theta (r = 1):

| term | its gradient at one token | in expectation | at r != 1 |
|---|---|---|---|
| k1 | grad log pi | 0: noise alone | biased |
| k2 | x grad log pi | grad KL(pi_theta to pi_ref) | biased |
| k3 | (1 - e^-x) grad log pi | grad KL(pi_ref to pi_theta), the other direction | biased |
| k3 with the gradient of k2 | as k2 | as k2 | biased |
| r k3 | r x grad log pi | as k2 | exact |
| r k1 | r (x + 1) grad log pi | as k2, with more variance | exact |

The straight-through form ("k3+" in verl) reports one estimator and follows the other. The corrected form is that of
DeepSeek-V3.2 and of TRL's `use_bias_correction_kl`: the gradient goes through r as well.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from rlvr.objectives.ratio import log_ratio

Estimator = Literal["k1", "k2", "k3"]
KL_IN_LOSS = frozenset({"k2", "k3"})  # whose own gradient says something
KL_CORRECTED = frozenset({"k1", "k3"})  # whose value is unbiased, so that r times it has the exact gradient
MAX_LOG_RATIO = 10.0


def kl_penalty(logp: Tensor, ref_logp: Tensor, *, estimator: Estimator) -> Tensor:
    """k1 = x, k2 = x^2/2, k3 = exp(-x) - 1 + x with x = logp - ref_logp, [B,T] -> [B,T].

    x is clamped to [-10, 10]. (verl clamps the *value* of k3 at 10 instead, which takes the restoring gradient
    from every token whose probability fell to a twelfth of the reference's.)
    """
    x = (logp - ref_logp).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if estimator == "k1":
        return x
    return 0.5 * x.square() if estimator == "k2" else (-x).expm1() + x


def straight_through(logp: Tensor, ref_logp: Tensor, *, value: Estimator, gradient: Estimator) -> Tensor:
    """The value of one estimator with the gradient of another, [B,T] -> [B,T]; both the same is `kl_penalty`."""
    followed = kl_penalty(logp, ref_logp, estimator=gradient)
    if value == gradient:
        return followed
    return kl_penalty(logp.detach(), ref_logp, estimator=value) + (followed - followed.detach())


def corrected_kl(logp: Tensor, ref_logp: Tensor, old_logp: Tensor, *, estimator: Literal["k1", "k3"]) -> Tensor:
    """r k with r = exp(logp - old_logp) and the gradient through both, [B,T] -> [B,T].

    Over samples of pi_old its gradient is that of KL(pi_theta || pi_ref), however far the policy has moved; r k2 would
    not do, since the value of k2 is biased.
    """
    return log_ratio(logp, old_logp).exp() * kl_penalty(logp, ref_logp, estimator=estimator)
