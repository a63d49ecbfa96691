"""Where groups wait: at most `slots` draws are in the house at once, and the oldest started are trained first.

Synchronous is `slots = prompts`: a slot is free again only after the weights were pushed, so nothing is ever
sampled from old weights. With `slots = (max_lag + 1) * prompts` a group is at most `max_lag` updates old.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from rlvr.errors import EngineError
from rlvr.types import Group

ATTEMPTS = 3  # a group that runs into its time limit is drawn again so many times


@dataclass
class Buffer:
    """Slots for groups, in draw order. One asyncio task works on each unfinished draw."""

    slots: int
    group_limit: float  # seconds for one group
    max_dropped: int  # dropped groups in a row of one take, beyond which the run stops
    together: bool = False  # the draws of a step meet while they are sampled: none is finished without the others
    next_draw: int = 0
    active: dict[int, Group | None] = field(default_factory=dict)  # draw -> finished group, in draw order
    dropped: list[Group] = field(default_factory=list)  # since the last take
    timeouts: int = 0
    _taken: set[int] = field(default_factory=set)
    _explore: Callable[[int], Awaitable[Group]] | None = None
    _tasks: dict[int, asyncio.Task[Group]] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _error: BaseException | None = None

    @asynccontextmanager
    async def workers(self, explore: Callable[[int], Awaitable[Group]], *, idle: bool = False) -> AsyncIterator[None]:
        """Keep every slot busy with `explore(draw)` while the block runs; cancels what is left at its end.

        With `idle` nothing is started: the run has no step left.
        """
        self._explore = explore
        if not idle:
            for draw in [d for d, group in self.active.items() if group is None]:
                self._start(draw)
            self._fill()
        try:
            yield
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def take(self, count: int) -> list[Group]:
        """The `count` oldest started groups, all finished, in draw order; they keep their slots until `release`.

        Raises:
            EngineError: when too many groups were dropped meanwhile (dynamic sampling finds nothing to learn from).
        """
        while True:
            self._check()
            oldest = [d for d in self.active if d not in self._taken][:count]
            groups = [g for d in oldest if (g := self.active[d]) is not None]
            if len(groups) == count:
                self._taken |= set(oldest)
                return groups
            self._changed.clear()
            await self._changed.wait()

    def release(self, groups: Sequence[Group], *, idle: bool = False) -> None:
        """Free the slots of groups that were trained on; new draws start unless `idle`."""
        for group in groups:
            self.active.pop(group.draw)
            self._taken.discard(group.draw)
        if not idle:
            self._fill()

    def pop_dropped(self) -> list[Group]:
        """Groups that were dropped since the last call, in draw order."""
        out, self.dropped = sorted(self.dropped, key=lambda g: g.draw), []
        return out

    def state_dict(self) -> dict[str, Any]:
        """Finished groups are kept (not with `together`), unfinished draws start again, groups in training are gone."""
        waiting = {d: None if self.together else g for d, g in self.active.items() if d not in self._taken}
        return {"next_draw": self.next_draw, "active": waiting, "dropped": list(self.dropped)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`; call it before `workers`."""
        self.next_draw, self.active = state["next_draw"], dict(state["active"])
        self.dropped = list(state["dropped"])

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if len(self.dropped) > self.max_dropped:
            reasons: dict[str, int] = {}
            for group in self.dropped:
                reasons[str(group.dropped)] = reasons.get(str(group.dropped), 0) + 1
            tasks = ", ".join(sorted({g.task.id for g in self.dropped})[:5])
            raise EngineError(
                f"{len(self.dropped)} groups were dropped while collecting one step ({reasons}), e.g. tasks {tasks}; "
                f"the limit is {self.max_dropped}. The tasks are too easy or too hard for this model: change the data, "
                "raise `max_draws`, or train on every group with `keep: all`."
            )

    def _fill(self) -> None:
        while len(self.active) < self.slots:
            draw, self.next_draw = self.next_draw, self.next_draw + 1
            self.active[draw] = None
            self._start(draw)

    def _start(self, draw: int) -> None:
        task = asyncio.create_task(self._limited(draw), name=f"draw-{draw}")
        self._tasks[draw] = task
        task.add_done_callback(lambda done: self._settle(draw, done))

    def _settle(self, draw: int, task: asyncio.Task[Group]) -> None:
        self._tasks.pop(draw, None)
        if task.cancelled():
            return
        self._changed.set()
        if error := task.exception():
            self._error = error  # `take` raises it in the loop
            return
        group = task.result()
        if group.dropped:
            self.active.pop(draw)
            self.dropped.append(group)
            if len(self.dropped) <= self.max_dropped:
                self._fill()
        else:
            self.active[draw] = group

    async def _limited(self, draw: int) -> Group:
        assert self._explore is not None
        for _ in range(ATTEMPTS):
            try:
                async with asyncio.timeout(self.group_limit):
                    return await self._explore(draw)
            except TimeoutError:
                self.timeouts += 1
        raise EngineError(
            f"draw {draw} ran {ATTEMPTS} times into its limit of {self.group_limit:g} s for one group. "
            "Either the sampler or a verifier is stuck (see time/ metrics and `rlvr doctor`), or "
            "`limits.group` is too small for `sampling.max_tokens`."
        )
