"""Per-token estimators of KL(pi_theta || pi_ref) from samples of pi_theta (Schulman's k1, k2, k3).

In the loss, what counts is the gradient. Over samples of pi_theta: E[grad k1] = 0 (k1 in a loss does nothing
but add noise), E[grad k2] = grad KL(pi_theta || pi_ref), E[grad k3] = grad KL(pi_ref || pi_theta). In the
reward, what counts is the value: k1 and k3 are unbiased, k2 is not.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]
KL_IN_LOSS = frozenset({"k2", "k3"})
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
