"""An exploration method is an add-on: identity by default, it overrides what its paper changes.

Add-ons of a recipe apply in the order of `explore:`. Every instance has a unique `name` (its kind, with
`#2`, `#3` ... for repeats): the prefix of its metrics and the key of its state, knobs and marks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from rlvr.types import F32, Completion, Group, Metrics, Request, Row, Sampling, Streams, Task, Verdict

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


Sample = Callable[[Draw], Awaitable[Group]]


class Context(Protocol):
    """What group-time hooks may ask of the run."""

    seed: int
    step: int
    tasks: Sequence[Task]  # every training task

    def at(self, step: int) -> Context: ...
    async def generate(self, requests: Sequence[Request]) -> list[Completion]: ...
    async def verify(self, task: Task, responses: Sequence[str]) -> list[Verdict]: ...
    def encode(self, task: Task) -> Any: ...
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


@dataclass(frozen=True)
class Knobs:
    """What an add-on hands to the ranks for one update, and what it says about it."""

    scalars: Mapping[str, float] = field(default_factory=dict)
    marks: Sequence[F32] | None = None  # [L] per row
    metrics: Metrics = field(default_factory=dict)  # without prefix; "active" is compulsory where marks are set


class AddOn:
    """Base class. Subclasses set `kind` and `Config` and override hooks.

    `needs` are streams measured before credit (old weights), `measures` before each update (current weights),
    `token_needs` in the loss forward, with gradient. Names of streams: "old_logp", "ref_logp", "logp", "entropy".
    """

    kind: ClassVar[str] = ""
    Config: ClassVar[type[AddOnConfig]] = AddOnConfig
    needs: ClassVar[frozenset[str]] = frozenset()
    measures: ClassVar[frozenset[str]] = frozenset()
    token_needs: ClassVar[frozenset[str]] = frozenset()
    barrier: ClassVar[bool] = False
    selects: ClassVar[bool] = False  # takes the policy loss away from single tokens, or weighs them

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

    def knobs(self, update: Update) -> Knobs | None:
        """Scalars and selections of one update, made on the controller with global statistics."""
        return None

    def token_loss(self, view: TokenView, loss: Tensor) -> Tensor:
        """Loss time, on the ranks: pure and stateless; [B,T] in, [B,T] out."""
        return loss

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """After the step, in draw order: the only hook that changes state. Returns metrics without prefix."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What the checkpoint keeps (JSON)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
