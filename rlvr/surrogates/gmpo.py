"""GMPO (2507.20673): the geometric mean of a response's token ratios, each clipped in log space.

    d   = logp - old_logp,    s = sign A
    d'  = s min(s d, s clip(d, -eps, eps))                                    all [B,T]
    l_i = -A_i exp(mean_t d')                                                 over the trained tokens of row i

A geometric mean is less moved by single tokens than PPO's arithmetic one, so the clip can be wide: ratios in
[e^-0.4, e^0.4]. Reduction: the mean over responses, with a global count (verl takes a plain mean over the
micro-batch). Fidelity: exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveFloat

from rlvr.explore.base import AddOnConfig
from rlvr.recipe import Reduction
from rlvr.surrogates.base import Surrogate

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView


class Config(AddOnConfig):
    """`eps` bounds log-ratios: tokens are clipped to ratios [e^-eps, e^eps]."""

    eps: PositiveFloat = 0.4


class Gmpo(Surrogate):
    """loss = -A exp(mean of clipped log-ratios)."""

    kind = "gmpo"
    Config = Config
    reduction: ClassVar[Reduction] = "sequence"
    wants_updates: ClassVar[bool] = True

    @property
    def per_response(self) -> bool:
        """Always."""
        return True

    def loss(self, view: TokenView) -> tuple[Tensor, dict[str, Tensor]]:
        """See the module; `clip_high` and `clip_low` mark tokens whose log-ratio is held."""
        import torch

        from rlvr.objectives.ratio import log_ratio, row_mean

        eps, sign = self.config.eps, view.advantages.sign()
        gap = log_ratio(view.logp, view.old_logp)
        held = sign * torch.minimum(sign * gap, sign * gap.clamp(-eps, eps))
        ratio = row_mean(held, view.mask).exp()
        at = gap.detach()
        marks = {"clip_high": (sign > 0) & (at > eps), "clip_low": (sign < 0) & (at < -eps)}
        return -view.advantages * ratio, {name: mark.to(at.dtype) for name, mark in marks.items()}
