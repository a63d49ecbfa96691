"""GHPO (2507.10628): a question that the whole group fails is asked again with the beginning of its solution.

    no response of the group is right:  for w in ratios:  x_w = x + the first round(w |s|) characters of the solution s
                                        sample G responses to x_w; stop at the first w where any is right
    the group's rows become those, generated **and trained** under x_w: on-policy, with ratios as ever

s is the task's longest hint. Where no ratio helps, or the prompt with the hint is over `prompt.max_tokens`, or the task
has no hint, or the engine fails, the group stays as it was (counted); a group with a right answer costs nothing. At
most 1 + len(ratios) generations a prompt. The released code rebuilds the prompts of groups that were already rescued
when it goes on to the next ratio, so that some are trained under another prompt than they were generated under; here
each row keeps its own. The paper also has a cold start with hints for everybody; the released code does not use it, and
it is left out, as is the reward for format. `template` says how a hint joins the question. `ratios: []` turns it off.
Fidelity: close.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field, field_validator

from rlvr.errors import ConfigError, DataError, EngineError
from rlvr.explore.base import AddOn, AddOnConfig, Context
from rlvr.rollout.guidance import all_wrong, filled, last_user, resampled, told, with_last_user, with_rows
from rlvr.types import Group, Metrics, Task

Ratio = Annotated[float, Field(gt=0.0, lt=1.0)]
HINTED = "{prompt}\n\nThe following text is the beginning of a solution, which you may refer to:\n{hint}"


class Config(AddOnConfig):
    """`ratios` of the solution that are shown, one after the other, ascending; `template` of the hinted question."""

    ratios: tuple[Ratio, ...] = (0.25, 0.5, 0.75)
    template: str = HINTED

    @field_validator("ratios")
    @classmethod
    def _ascending(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        if list(ratios) != sorted(set(ratios)):
            raise ValueError(f"ratios must ascend, got {list(ratios)}")
        return ratios

    @field_validator("template")
    @classmethod
    def _places(cls, template: str) -> str:
        if "{prompt}" not in template or "{hint}" not in template:
            raise ValueError(f"template needs {{prompt}} and {{hint}}, got {template!r}")
        return template


class GHPO(AddOn):
    """A failed group is sampled again under prompts with more and more of the solution."""

    kind = "ghpo"
    Config = Config
    lengthens: ClassVar[bool] = True

    async def prepare(self, ctx: Context) -> None:
        """Raises ConfigError where no task has a hint."""
        if self.config.ratios and not any(task.hints for task in ctx.tasks):
            raise ConfigError(
                f"explore: {self.name} shows beginnings of solutions, and no training task has a hint (`Task.hints`). "
                "Choose a dataset with hints (of arithmetic: `hints: true`)."
            )

    async def guide(self, group: Group, ctx: Context) -> Group:
        """The first retry with a right answer in place of a group without one."""
        if not self.config.ratios or not all_wrong(group):
            return group
        mine = np.flatnonzero(group.own).tolist()  # what others put in stays
        if not group.task.hints:
            return self._noted(group, without=1)
        for stage, ratio in enumerate(self.config.ratios):
            hinted = hinted_task(group.task, ratio, template=self.config.template)
            try:
                rows = await resampled(group, [hinted] * len(mine), ctx, name=self.name, stage=stage)
            except DataError:
                return self._noted(group, tried=1, tried_rows=stage * len(mine), too_long=1)
            except (EngineError, TimeoutError):
                return self._noted(group, tried=1, tried_rows=stage * len(mine), failed=1)
            if any(t.verdict and t.verdict.correct and not t.verdict.error for t in rows):
                kept = self._noted(group, tried=1, tried_rows=(stage + 1) * len(mine), rescued=1, ratio_sum=ratio)
                kept = with_rows(kept, dict(zip(mine, rows, strict=True)), {})
                return kept.with_(prompt_len=int((rows[0].origin == 0).sum()))
        return self._noted(group, tried=1, tried_rows=len(self.config.ratios) * len(mine))

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """Of the groups: `tried` again, `rescued`, `without` a hint, `too_long` with it, `failed`; `ratio_mean`."""
        if not self.config.ratios:
            return {}
        said = told(groups, self.name)
        total, rescued = said.pop("ratio_sum", 0.0), said.get("rescued", 0.0)
        active = sum(t.source == self.name for g in groups for t in g.trajectories)
        return said | {"active": float(active)} | ({"ratio_mean": total / rescued} if rescued else {})

    def _noted(self, group: Group, **notes: float) -> Group:
        return with_rows(group, {}, {f"{self.name}/{key}": float(value) for key, value in notes.items()})


def hinted_task(task: Task, ratio: float, *, template: str) -> Task:
    """The task with the first round(ratio * characters) of its longest hint in the question."""
    solution = max(task.hints, key=len)
    hint = solution[: round(len(solution) * ratio)]
    return with_last_user(task, filled(template, {"prompt": last_user(task), "hint": hint}))
