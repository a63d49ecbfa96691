"""The sampler replicas as one `Sampler`: least-loaded routing, and a replica that dies is replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from rlvr.cluster import ActorDied, answer
from rlvr.errors import EngineError
from rlvr.types import F32, I32, Completion, Request

RESTARTS = 3  # of one replica in one run


class Replica:
    """One sampler actor, and how much it has in hand."""

    def __init__(self, index: int, handle: Any, *, limit: float) -> None:
        self.index, self.handle, self.limit = index, handle, limit
        self.load = 0
        self.restarts = 0
        self.ready = asyncio.Event()

    async def call(self, method: str, *args: Any, limit: float | None = None) -> Any:
        """Await a method of the remote sampler."""
        what = f"sampler replica {self.index}, {method}"
        return await answer(self.handle.call.remote(method, *args), limit=limit or self.limit, what=what)

    async def score(self, sequences: Sequence[I32]) -> list[F32]:
        """Log-probabilities of given sequences (see `protocols.Scorer`)."""
        return await self.call("score", list(sequences))


class SamplerPool:
    """All requests of one `generate` call go to one replica, so that a group shares its prompt's prefix."""

    def __init__(self, make: Callable[[int], Any], *, replicas: int, start_limit: float, limit: float) -> None:
        self._make, self._start_limit = make, start_limit
        self.replicas = [Replica(i, make(i), limit=limit) for i in range(replicas)]
        self._reviving: dict[int, asyncio.Task[None]] = {}
        self.join: Callable[[], Awaitable[None]] | None = None  # gives a new replica the current weights
        self.restarts = 0

    @property
    def handles(self) -> list[Any]:
        """The actors, in replica order."""
        return [r.handle for r in self.replicas]

    async def start(self) -> None:
        """Start every engine (the weights are those of the model's folder)."""
        await asyncio.gather(*(r.call("start", limit=self._start_limit) for r in self.replicas))
        for replica in self.replicas:
            replica.ready.set()

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Sample; when the replica dies meanwhile the whole call starts again on a living one."""
        while True:
            replica = min(self.replicas, key=lambda r: (not r.ready.is_set(), r.load, r.index))
            await replica.ready.wait()
            replica.load += len(requests)
            try:
                return await replica.call("generate", list(requests))
            except ActorDied:
                await self.revive(replica)
            finally:
                replica.load -= len(requests)

    async def revive(self, replica: Replica) -> None:
        """Replace a dead replica, once however many callers noticed; returns when it serves current weights."""
        if replica.index not in self._reviving:
            replica.ready.clear()
            self._reviving[replica.index] = asyncio.create_task(self._replace(replica))
        await asyncio.shield(self._reviving[replica.index])

    async def _replace(self, replica: Replica) -> None:
        replica.restarts += 1
        self.restarts += 1
        try:
            if replica.restarts > RESTARTS:
                raise EngineError(
                    f"sampler replica {replica.index} died {replica.restarts} times. Look at its log below the Ray "
                    "session folder (out of memory is the usual reason: lower `vllm.gpu_memory_utilization`, "
                    "`sampling.max_tokens` or VLLM_CPU_KVCACHE_SPACE); the run resumes with the same command."
                )
            replica.handle = self._make(replica.index)
            await replica.call("start", limit=self._start_limit)
            if self.join is not None:
                await self.join()
            replica.ready.set()
        finally:
            self._reviving.pop(replica.index, None)

    async def each(self, method: str, *args: Any) -> list[Any]:
        """The same call on every replica."""
        return await asyncio.gather(*(r.call(method, *args) for r in self.replicas))
