"""Where the draws of one step meet: for a method that must see all of them before any goes on.

A step has `parties` draws (`max_lag: 0` and `keep: all`, else others would come between them). Each brings a group and
waits; with the last one there, `act` is called once with what they brought, in the order of the draws, whoever came
first. A wait ends with the draw's own limit (`limits.group`) or with the run: where a draw fails, the run ends.

A draw that ran into its limit comes again. What counts is what it brought first, and it gets that back: what it would
sample after the meeting is no longer from the weights before. One that the meeting was held without, because it
replaces a group that was dropped, is late: it gets None.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from rlvr.types import Group, Metrics

Act = Callable[[Sequence[Group]], Awaitable[Metrics]]
Place = tuple[int, int]  # of a draw and of its first response: a method may sample a draw in rounds


@dataclass
class _Meeting:
    step: int
    brought: dict[Place, Group] = field(default_factory=dict)
    full: asyncio.Event = field(default_factory=asyncio.Event)
    held: asyncio.Task[Metrics] | None = None


class Barrier:
    """One meeting of `parties` draws a step."""

    def __init__(self, parties: int) -> None:
        self._parties = parties
        self._meeting = _Meeting(step=-1)

    async def meet(self, step: int, group: Group, act: Act, *, first: int = 0) -> tuple[Group, Metrics] | None:
        """What this draw brought and what `act` returned; None for a draw that is late."""
        meeting = self._meeting
        if meeting.step != step:
            meeting = self._meeting = _Meeting(step)
        place = (group.draw, first)
        if meeting.held is None:
            meeting.brought.setdefault(place, group)
            if len(meeting.brought) == self._parties:
                there = [meeting.brought[at] for at in sorted(meeting.brought)]
                meeting.held = asyncio.create_task(_call(act, there), name=f"meeting-{step}")
                meeting.full.set()
        if place not in meeting.brought:
            return None
        await meeting.full.wait()
        assert meeting.held is not None
        return meeting.brought[place], await asyncio.shield(meeting.held)  # a draw that gives up does not end it

    async def close(self) -> None:
        """Let a meeting that is being held come to its end: what it changed is then put back."""
        if self._meeting.held is not None:
            await asyncio.gather(self._meeting.held, return_exceptions=True)


async def _call(act: Act, groups: Sequence[Group]) -> Metrics:
    return await act(groups)
