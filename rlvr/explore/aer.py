"""Adaptive entropy regularisation after AER (2510.10959): more bonus for hard prompts, held near a target entropy.

    H*       = tau * H_0              H_0: mean token entropy of the first step's responses, weights at its start
    lambda_g = max(0, rho - p_g) / rho                      p_g: share of right answers among the group's verdicts
    l[b,t]  <- l[b,t] - alpha * lambda_g(b) * H[b,t]                                    [B,T], H with gradient
    alpha   <- clip(alpha + eta * (H* - H_k), 0, alpha_max)                     after step k, H_k as H_0 was measured

**A reconstruction, not the paper's algorithm.** The abstract names the three parts (a coefficient by difficulty,
a target anchored to the initial entropy, a global coefficient under feedback); lambda, the rule of alpha, and the
values of rho, eta and alpha_max are ours. tau = 0.4 is the value that summaries of the paper report as best. No code
was released that we know of. Being part of the token loss, the bonus takes the objective's reduction.
Fidelity: reconstructed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from rlvr.explore.base import AddOn, AddOnConfig, Knobs, Update, stream_mean
from rlvr.types import Group, Metrics

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView


class Config(AddOnConfig):
    """`alpha` is its first value; `alpha` and `alpha_max` in loss units per nat, `eta` in those per nat of error."""

    tau: PositiveFloat = 0.4
    rho: float = Field(0.5, gt=0.0, le=1.0)
    alpha: NonNegativeFloat = 0.0
    eta: NonNegativeFloat = 0.005
    alpha_max: NonNegativeFloat = 0.05

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.alpha > self.alpha_max:
            raise ValueError(f"alpha starts within its bounds: got alpha={self.alpha} above alpha_max={self.alpha_max}")
        return self


class Aer(AddOn):
    """loss -= alpha * lambda_g * entropy."""

    kind = "aer"
    Config = Config
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})
    token_needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def __init__(self, config: Any, *, name: str = "", seed: int = 0) -> None:
        super().__init__(config, name=name, seed=seed)
        self.alpha: float = config.alpha
        self.initial: float | None = None  # H_0

    def reward(self, groups: Sequence[Group]) -> Sequence[Group]:
        """Notes lambda_g, which comes from raw verdicts, beside the group's tokens for `knobs`; the rewards stay."""
        return [self._noted(group) for group in groups]

    def knobs(self, update: Update) -> Knobs | None:
        """Marks are lambda_g, 0 on rows whose group is of an earlier step; `active` counts the tokens with a bonus."""
        if not self.alpha:
            return Knobs(metrics={"active": 0.0, "alpha": 0.0})
        nothing = np.zeros(1, np.float32)
        marks = [row.streams.get(self._note, nothing) * (row.weight != 0) for row in update.rows]
        active = sum(int(np.count_nonzero(mark)) for mark in marks)
        return Knobs(scalars={"alpha": self.alpha}, marks=marks, metrics={"active": float(active), "alpha": self.alpha})

    def token_loss(self, view: TokenView, loss: Tensor) -> Tensor:
        """See the module."""
        return loss if view.mark is None else loss - view.knobs["alpha"] * view.mark * view.streams["entropy"]

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """The first step sets the anchor; each moves alpha towards the target."""
        entropy = stream_mean(groups, "entropy")
        if entropy is None:
            return {"next_alpha": self.alpha}
        if self.initial is None:
            self.initial = entropy
        target = self.config.tau * self.initial
        self.alpha = min(max(self.alpha + self.config.eta * (target - entropy), 0.0), self.config.alpha_max)
        return {"next_alpha": self.alpha, "target": target, "entropy": entropy}

    def state_dict(self) -> dict[str, Any]:
        """alpha and H_0."""
        return {"alpha": self.alpha, "initial": self.initial}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.alpha, self.initial = float(state["alpha"]), state["initial"]

    @property
    def _note(self) -> str:
        return f"{self.name}/difficulty"

    def _noted(self, group: Group) -> Group:
        factor = difficulty(group, rho=self.config.rho)
        rows = tuple(
            replace(t, streams={**t.streams, self._note: np.full(len(t.tokens), factor, np.float32)})
            for t in group.trajectories
        )
        return group.with_(trajectories=rows)


def difficulty(group: Group, *, rho: float) -> float:
    """lambda_g in [0, 1] of a group: 1 where no answer is right, 0 from a share of `rho`; 0 without a verdict."""
    valid = group.valid
    return max(0.0, rho - float(group.correct[valid].mean())) / rho if valid.any() else 0.0
