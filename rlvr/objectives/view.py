"""What a loss term sees of one micro-batch: tensors [B,T], all float32, padded with `weight` 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class TokenView:
    """One micro-batch on one rank. Padding (and the prompt) has weight 0 and finite values everywhere.

    Only `logp` and `streams` asked for with gradient (see `AddOn.token_needs`) carry gradient.
    A behaviour log-prob that is unknown was replaced by `old_logp` and has `known` 0.
    """

    logp: Tensor  # [B,T] log pi_theta, with gradient
    old_logp: Tensor  # [B,T] at the start of the step, detached
    behaviour_logp: Tensor  # [B,T] from the sampler, detached
    known: Tensor  # [B,T] 1 where the behaviour log-prob is known
    advantages: Tensor  # [B,T] detached
    weight: Tensor  # [B,T] policy-loss weight
    ref_logp: Tensor | None = None  # [B,T] detached
    streams: Mapping[str, Tensor] = field(default_factory=dict)  # [B,T] named token scalars
    mark: Tensor | None = None  # [B,T] this add-on's selection (set before its token_loss)
    knobs: Mapping[str, float] = field(default_factory=dict)  # this add-on's scalars

    @property
    def mask(self) -> Tensor:
        """[B,T] 1.0 where the token is trained on."""
        return (self.weight != 0).to(self.logp.dtype)
