"""Adaptive entropy bonus of Skywork-OR1 (2505.22312, section 3.2.5): a bonus that is there while entropy is too low.

    e_k     = mean token entropy of the policy over the responses of step k, weights at its start        nats
    alpha_k = c_k * 1[e_k <= target]
    l[b,t] <- l[b,t] - alpha_k * H[b,t]                                                  [B,T], H with gradient
    c_{k+1} = clip(c_k + delta, 0, max)  where e_k < target,    clip(c_k - delta, 0, max)  otherwise

Defaults are the paper's (target 0.2, delta 0.005, c_0 = 0). The bounds of c are the released code's, whose scripts run
with delta 1e-4 and max 0.005; the paper states none, and without a floor a policy that starts above the target
collects a debt which delays the bonus. With several updates in a step, each looks at e over its own responses for the
indicator, still with the weights at the start of the step; c moves once a step. Fidelity: close.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import NonNegativeFloat, model_validator

from rlvr.explore.base import AddOn, AddOnConfig, Knobs, Update, stream_mean, token_mean
from rlvr.types import Group, Metrics

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView


class Config(AddOnConfig):
    """`target` in nats; `initial` is c_0, `delta` its change a step and `max` its bound, in loss units per nat."""

    target: NonNegativeFloat = 0.2
    delta: NonNegativeFloat = 0.005
    initial: NonNegativeFloat = 0.0
    max: NonNegativeFloat = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.initial > self.max:
            raise ValueError(f"c starts within its bounds: got initial={self.initial} above max={self.max}")
        return self


class AdaptiveEntropy(AddOn):
    """loss -= alpha_k * entropy, with alpha_k switched and moved by the entropy itself."""

    kind = "adaptive_entropy"
    Config = Config
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})
    token_needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def __init__(self, config: Any, *, name: str = "", seed: int = 0) -> None:
        super().__init__(config, name=name, seed=seed)
        self.coef: float = config.initial  # c_k

    def knobs(self, update: Update) -> Knobs | None:
        """`coef` is alpha_k; `active` counts the tokens that get the bonus."""
        trained = update.trained("entropy", old=True)
        entropy = token_mean([row.streams["entropy"] for row in update.rows], trained)
        alpha = self.coef if entropy is not None and entropy <= self.config.target else 0.0
        active = sum(int(use.sum()) for use in trained) if alpha else 0
        return Knobs(scalars={"coef": alpha}, metrics={"active": float(active), "coef": alpha})

    def token_loss(self, view: TokenView, loss: Tensor) -> Tensor:
        """See the module."""
        coef = view.knobs.get("coef", 0.0)
        return loss - coef * view.streams["entropy"] if coef else loss

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """Moves c by `delta`; a step without a finite entropy leaves it."""
        entropy = stream_mean(groups, "entropy")
        if entropy is None:
            return {"next_coef": self.coef}
        step = self.config.delta if entropy < self.config.target else -self.config.delta
        self.coef = min(max(self.coef + step, 0.0), self.config.max)
        return {"next_coef": self.coef, "entropy": entropy}

    def state_dict(self) -> dict[str, Any]:
        """c_k."""
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.coef = float(state["coef"])
