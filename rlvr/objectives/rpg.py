"""The KL-regularised policy gradients of RPG (2505.17508), token by token; the reference is pi_old itself.

J(theta) = E_{pi_theta}[A] - beta D, with w = pi_theta / pi_old and samples from pi_old. `regularised` times w is the
weight that multiplies grad log pi_theta in grad J; `penalty` has that gradient by itself:

| form | D | weight | regularised = weight / w | penalty, per sample |
|---|---|---|---|---|
| fkl | KL(pi_old to pi_theta) | w A + beta | A + beta / w | -log w |
| ufkl | the same, unnormalised | w A - beta (w - 1) | A - beta (1 - 1 / w) | w - log w - 1 |
| rkl | KL(pi_theta to pi_old) | w (A - beta (log w + 1)) | A - beta (log w + 1) | w log w |
| urkl | the same, unnormalised | w (A - beta log w) | A - beta log w | w log w - w + 1 |

For a policy that sums to 1 the unnormalised forms have the same expectation as the others, with less variance.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Form = Literal["fkl", "ufkl", "rkl", "urkl"]


def regularised(advantages: Tensor, log_w: Tensor, *, form: Form, beta: float) -> Tensor:
    """The advantage with the KL in it, [B,T]; see the table."""
    if form == "fkl":
        return advantages + beta * (-log_w).exp()
    if form == "ufkl":
        return advantages + beta * (-log_w).expm1()
    return advantages - beta * (log_w + 1.0 if form == "rkl" else log_w)


def penalty(log_w: Tensor, *, form: Form) -> Tensor:
    """D per sample of pi_old, [B,T], differentiable; see the table."""
    w = log_w.exp()
    if form == "fkl":
        return -log_w
    if form == "ufkl":
        return log_w.expm1() - log_w
    return w * log_w if form == "rkl" else w * log_w - log_w.expm1()
