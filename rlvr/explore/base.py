"""An exploration method is an add-on: identity by default, it overrides what its paper changes.

Add-ons of a recipe apply in the order of `explore:`. Every instance has a unique `name` (its kind, with
`#2`, `#3` ... for repeats): the prefix of its metrics and the key of its state, knobs and marks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from rlvr.types import F32, Bool, Completion, Group, Metrics, Request, Row, Sampling, Streams, Task, Verdict

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView
    from rlvr.recipe import Recipe


class AddOnConfig(BaseModel):
    """Base of every add-on's Config: strict and frozen, with finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Draw:
    """One draw of a task and how it is to be sampled; `step` is the step that is collecting it."""

    task: Task
    index: int
    step: int
    group: int  # G
    sampling: Sampling
    first: int = 0  # the number of its first response; what the seeds count from when a draw is sampled in rounds
    ctx: Context | None = None  # the run, at this step: for samplers that generate and verify by themselves


Sample = Callable[[Draw], Awaitable[Group]]


class Context(Protocol):
    """What group-time hooks may ask of the run."""

    seed: int
    step: int
    tasks: Sequence[Task]  # every training task
    sampling: Sampling  # of the recipe, without a seed

    def at(self, step: int) -> Context: ...
    async def meet(
        self, group: Group, act: Callable[[Sequence[Group]], Awaitable[Metrics]], *, first: int = 0
    ) -> tuple[Group, Metrics] | None: ...  # of a `barrier` add-on: see `rlvr.rollout.barrier`
    async def unlearn(self, groups: Sequence[Group], *, eta: float, eps: float) -> Metrics: ...
    async def close(self) -> None: ...  # at the end of the run
    async def generate(self, requests: Sequence[Request]) -> list[Completion]: ...
    def decoded(self, draw: int) -> int: ...  # tokens generated for a draw, since the last call
    async def verify(self, task: Task, responses: Sequence[str]) -> list[Verdict]: ...
    def encode(self, task: Task) -> Any: ...
    def encode_response(self, text: str) -> Any: ...  # with exactly one end token
    def decode(self, tokens: Any) -> str: ...


@dataclass(frozen=True)
class Update:
    """One optimizer update as `knobs` sees it: its rows, and the measured streams (current weights) by row."""

    rows: Sequence[Row]
    stats: Streams  # of `AddOn.measures`, one dict per row
    update: int  # index over the whole run
    step: int
    seed: int  # derives from (run seed, update); hash it with Row.key and the token index
    clip: tuple[float, float]  # the objective's (low, high); infinite where it does not clip the token's ratio
    scale: F32 = field(default_factory=lambda: np.zeros(0, np.float32))  # [B] of `TokenBatch`: the reduction

    def trained(self, name: str, *, old: bool = False) -> list[Bool]:
        """[L] per row: trained tokens whose measured stream `name` is finite (with `old` that of `AddOn.needs`)."""
        streams = [row.streams for row in self.rows] if old else self.stats
        return [(row.weight != 0) & np.isfinite(s[name]) for row, s in zip(self.rows, streams, strict=True)]


@dataclass(frozen=True)
class Knobs:
    """What an add-on hands to the ranks for one update, and what it says about it."""

    scalars: Mapping[str, float] = field(default_factory=dict)
    marks: Sequence[F32] | None = None  # [L] per row
    metrics: Metrics = field(default_factory=dict)  # without prefix; "active" is compulsory where marks are set


class AddOn:
    """Base class. Subclasses set `kind` and `Config` and override hooks.

    `needs` are streams measured before credit (old weights), `measures` before each update (current weights),
    `token_needs` in the loss forward, with gradient, `token_reads` the same without. A stream is named as
    `rlvr/engine/forward.py` lists them, those of `needs` also with "old_" before the
    name (of the policy at the start of the step, as they are without it) or "ref_" (of the reference).
    A stream with a parameter is named by `rlvr.types.stream`; such names are set in `__init__`, from the config.
    """

    kind: ClassVar[str] = ""
    Config: ClassVar[type[AddOnConfig]] = AddOnConfig
    needs: frozenset[str] = frozenset()
    measures: frozenset[str] = frozenset()
    token_needs: frozenset[str] = frozenset()
    token_reads: frozenset[str] = frozenset()
    barrier: ClassVar[bool] = False  # the draws of a step meet while they are sampled (`Context.meet`)
    selects: ClassVar[bool] = False  # takes the policy loss away from single tokens, or weighs them
    reweighs: ClassVar[bool] = False  # does so by the token's own loss or advantage, and adds no term of its own
    wants_updates: ClassVar[bool] = False  # has no gradient of its own where the policy is still the old one

    lengthens: ClassVar[bool] = False  # samples under prompts longer than the tasks', up to prompt.max_tokens

    def __init__(self, config: Any, *, name: str = "", seed: int = 0) -> None:
        self.config = config
        self.name = name or self.kind
        self.seed = seed

    def problems(self, recipe: Recipe) -> Sequence[str]:
        """What in the recipe cannot work with it, in words for people: `rlvr check` refuses such a recipe."""
        return []

    async def prepare(self, ctx: Context) -> None:
        """Once, before the first step (not on resume)."""

    def tasks(self, task: Task, draw: int) -> Task:
        """Which task comes (curricula, replayed or hinted tasks)."""
        return task

    def sampler(self, sample: Sample) -> Sample:
        """Sampling time: wrap how a draw becomes a group."""
        return sample

    async def guide(self, group: Group, ctx: Context) -> Group:
        """Group time: demonstrations, hints, retries, replay. Comes before dynamic sampling."""
        return group

    def reward(self, groups: Sequence[Group]) -> Sequence[Group]:
        """Reward time: shaped `rewards` [G] of every group; error rows are ignored afterwards."""
        return groups

    def advantage(self, groups: Sequence[Group]) -> Sequence[Group]:
        """Advantage time: per-token `advantages`; batch statistics live here."""
        return groups

    def updates(self, updates: Sequence[Sequence[int]], groups: Sequence[Group]) -> Sequence[Sequence[int]]:
        """Append or reorder updates, each a list of group positions."""
        return updates

    def replay(self, ctx: Context) -> Sequence[Group]:
        """Rows of earlier steps, of any tasks, for one more update after the step's; from its state alone.

        The groups bring their rewards and advantages: no estimator, no other group and no metric of groups sees them,
        nor do they come back in `observe`. They have the streams of `needs`, except that `old_logp` is their behaviour
        log-prob, which must be known: the ratio is exact at any age. Every add-on's `knobs` and loss hooks see them, in
        an update without a row of this step. Their `draw` is negative, a number for each.
        """
        return []

    def knobs(self, update: Update) -> Knobs | None:
        """Scalars and selections of one update, made on the controller with global statistics."""
        return None

    def token_advantage(self, view: TokenView) -> Tensor:
        """Loss time, on the ranks, before the surrogate: the advantages [B,T] that it sees; pure and stateless.

        Each add-on gets what those before it returned, detached. For what `advantage` cannot do: advantages that
        depend on the current weights, or on a selection (`view.mark`).
        """
        return view.advantages

    def token_loss(self, view: TokenView, loss: Tensor) -> Tensor:
        """Loss time, on the ranks: pure and stateless; [B,T] in, [B,T] out."""
        return loss

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """After the step, in draw order: the only hook that changes state. Returns metrics without prefix."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What the checkpoint keeps: JSON, and `bytes` for what is large."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""


def token_mean(values: Sequence[F32], masks: Sequence[Bool]) -> float | None:
    """Mean over the masked tokens of all rows ([L] each); None where there is no such token."""
    tokens = sum(int(mask.sum()) for mask in masks)
    return (
        sum(float(v[mask].sum(dtype=np.float64)) for v, mask in zip(values, masks, strict=True)) / tokens
        if tokens
        else None
    )


def stream_mean(groups: Sequence[Group], name: str) -> float | None:
    """Mean of a stream of `needs` over the trained tokens of rows with a verdict, where it is finite."""
    rows = [t for g in groups for t, ok in zip(g.trajectories, g.valid, strict=True) if ok]
    return token_mean([t.streams[name] for t in rows], [(t.weight != 0) & np.isfinite(t.streams[name]) for t in rows])
