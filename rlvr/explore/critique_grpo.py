"""Critique-GRPO (2506.03106): a refined answer takes a place in the group, trained under the question alone.

    y'_i ~ pi(. | question, y_i, critique of y_i)   for each response of the policy
    y' = the first y'_i that is right; it replaces the last wrong row
    l_t = -A f(pi(y'_t | question, y'_<t)),   f(p) = p / (p + gamma)      A: the recipe's, over the group [B,T]

The critique says whether y_i is right (`right`, `wrong`), and with `{truth}` in it what the answer is (the paper's
simple_gt). The log-probs under the refinement's prompt belong to another conditional and are dropped (unknown), the
prompt is kept (`Trajectory.generated_under`). Where no refinement is right the group stays as it was (the released code
puts in the best of the wrong ones), as where the engine fails; so it does where all responses are right, whose
advantages are 0. Exactly one row is replaced: the released configuration fills all places with one refinement, which
leaves no variance. A refinement shorter than `shortest` of the response it refines only copies the truth and is not
taken (ours). Critiques written by a stronger model are left out. The clip of sampled tokens is the recipe's, the code's
is off; it divides by the standard deviation unawares (`advantage: grpo`). The whole token loss so far is replaced at
the refinement's tokens. `refine: false` turns it off.
Fidelity: close.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field, PositiveFloat, field_validator

from rlvr.errors import DataError, EngineError
from rlvr.explore.base import AddOn, AddOnConfig, Context, Knobs, Update
from rlvr.objectives.off_policy import shaped_probability
from rlvr.rollout.guidance import (
    filled,
    foreign,
    last_user,
    resampled,
    told,
    trained_under,
    with_last_user,
    with_rows,
)
from rlvr.types import Group, Metrics, Task, Trajectory

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView

REFINE = (
    "{prompt}\n\nAn earlier solution:\n{response}\n\nCritique: {critique}\n\n"
    "Write a new solution that mends what is wrong in it, step by step."
)


class Config(AddOnConfig):
    """`template` of the refinement's question, critiques of `right` and `wrong` responses; `gamma` of the shaping."""

    refine: bool = True
    template: str = REFINE
    right: str = "The solution is right; the answer is {truth}."
    wrong: str = "The solution is wrong; the right answer is {truth}."
    gamma: PositiveFloat = 0.1
    shortest: float = Field(0.5, ge=0.0)

    @field_validator("template")
    @classmethod
    def _places(cls, template: str) -> str:
        if "{prompt}" not in template or "{response}" not in template:
            raise ValueError(f"template needs {{prompt}} and {{response}}, got {template!r}")
        return template


class CritiqueGRPO(AddOn):
    """The last wrong row becomes a right refinement; loss = -A f(pi) on it."""

    kind = "critique_grpo"
    Config = Config
    selects: ClassVar[bool] = True
    lengthens: ClassVar[bool] = True

    async def guide(self, group: Group, ctx: Context) -> Group:
        """The group with one wrong row replaced, where a refinement is right."""
        wrong = np.flatnonzero(group.judged & ~group.correct)  # what others put in stays
        if not self.config.refine or not len(wrong):
            return group
        asked = np.flatnonzero(group.judged).tolist()
        prompts = [self.refining(group.task, group.trajectories[i]) for i in asked]
        try:
            refined = await resampled(group, prompts, ctx, name=self.name, stage=0)
        except DataError:
            return with_rows(group, {}, {f"{self.name}/too_long": 1.0})
        except (EngineError, TimeoutError):
            return with_rows(group, {}, {f"{self.name}/failed": 1.0})
        right = [(i, t) for i, t in zip(asked, refined, strict=True) if is_right(t)]
        taken = [t for i, t in right if t.response_len >= self.config.shortest * group.trajectories[i].response_len]
        said = {"tried": 1.0, "refined": float(len(refined)), "right": float(len(right)), "taken": float(bool(taken))}
        said["too_short"] = float(len(right) - len(taken))
        rows = {int(wrong[-1]): trained_under(taken[0], ctx.encode(group.task))} if taken else {}
        return with_rows(group, rows, {f"{self.name}/{key}": value for key, value in said.items()})

    def refining(self, task: Task, t: Trajectory) -> Task:
        """The task that asks for a refinement of one response."""
        critique = self.config.right if is_right(t) else self.config.wrong
        values = {"prompt": last_user(task), "response": t.text, "critique": filled(critique, {"truth": task.answer})}
        return with_last_user(task, filled(self.config.template, values))

    def knobs(self, update: Update) -> Knobs | None:
        """Marks are 1 at the refinements' tokens; `active` counts them."""
        if not self.config.refine:
            return None
        marks = foreign(update.rows, self.name)
        return Knobs(marks=marks, metrics={"active": float(sum(mark.sum() for mark in marks))})

    def token_loss(self, view: TokenView, loss: Tensor) -> Tensor:
        """-A f(pi) at marked tokens."""
        if view.mark is None:
            return loss
        return loss.where(view.mark <= 0, -view.advantages * shaped_probability(view.logp, gamma=self.config.gamma))

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """Groups `tried`; responses `refined`, `right`, `taken`, right but `too_short`, `too_long`, `failed`."""
        return told(groups, self.name) if self.config.refine else {}


def is_right(t: Trajectory) -> bool:
    """Whether its verdict says so."""
    return t.verdict is not None and t.verdict.error is None and t.verdict.correct
