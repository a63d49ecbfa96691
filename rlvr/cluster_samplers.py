"""The sampler replicas as one `Sampler`: least-loaded routing, and a replica that dies is replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlvr.cluster import ActorDied, answer, stop
from rlvr.engine.usage import usage_metrics
from rlvr.errors import EngineError, ReplicaBroken
from rlvr.types import F32, I32, Completion, Metrics, Request

RESTARTS = 3  # of one replica in one run
HOMES = 4096  # draws whose replica is remembered
RETRY = 0.2  # seconds between two attempts on a replica that waits for its weights


class Replica:
    """One sampler actor, and how much it has in hand."""

    def __init__(self, index: int, handle: Any, *, limit: float) -> None:
        self.index, self.handle, self.limit = index, handle, limit
        self.load = 0
        self.restarts = 0
        self.ready = asyncio.Event()
        self.seen: Mapping[str, float] = {}  # its counts at the last reading

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
        self._make, self._start_limit, self._limit = make, start_limit, limit
        self.replicas = [Replica(i, make(i), limit=limit) for i in range(replicas)]
        self.rejoin: Callable[[Replica, Any], Awaitable[None]] | None = None  # see `RaySync`
        self.blocked = asyncio.Event()  # a new replica waits for the next push
        self._calls = 0
        self._homes: dict[int, Replica] = {}  # by `Request.home`, the newest last

    @property
    def handles(self) -> list[Any]:
        """The actors, in replica order."""
        return [r.handle for r in self.replicas]

    @property
    def restarts(self) -> int:
        """How often a replica was replaced."""
        return sum(r.restarts for r in self.replicas)

    async def start(self) -> None:
        """Start every engine (the weights are those of the model's folder)."""
        await asyncio.gather(*(r.call("start", limit=self._start_limit) for r in self.replicas))
        for replica in self.replicas:
            replica.ready.set()

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Sample; when the replica is lost meanwhile the whole call starts again on a living one.

        Raises EngineError when no replica can serve within the limit.
        """
        async with asyncio.timeout(self._limit):
            while True:
                replica = self._route(requests)
                await replica.ready.wait()
                handle = replica.handle
                replica.load += len(requests)
                try:
                    return await self._sample(replica, requests)
                except ReplicaBroken:
                    await asyncio.sleep(RETRY)  # until the push that mends it
                except ActorDied:
                    if self.rejoin is None:
                        raise
                    await self.rejoin(replica, handle)
                finally:
                    replica.load -= len(requests)

    def _route(self, requests: Sequence[Request]) -> Replica:
        """The replica that served this home before, while it lives; else the least loaded one, from now on its home."""
        home = requests[0].home if requests else None
        known = None if home is None else self._homes.pop(home, None)
        if known is None or not known.ready.is_set():
            known = min(self.replicas, key=lambda r: (not r.ready.is_set(), r.load, r.index))
        if home is not None:
            self._homes[home] = known
            if len(self._homes) > HOMES:
                del self._homes[next(iter(self._homes))]
        return known

    async def _sample(self, replica: Replica, requests: Sequence[Request]) -> list[Completion]:
        """One attempt, under keys of its own: what is left of an earlier one cannot collide with it."""
        self._calls += 1
        tagged = [replace(request, key=f"{request.key}@{self._calls}") for request in requests]
        completions = await replica.call("generate", tagged)
        return [replace(c, key=r.key) for c, r in zip(completions, requests, strict=True)]

    async def replace(self, replica: Replica) -> None:
        """A new process in place of a dead one; it is started but has no current weights yet."""
        replica.ready.clear()
        replica.restarts += 1
        if replica.restarts > RESTARTS:
            raise EngineError(
                f"sampler replica {replica.index} died {replica.restarts} times. Look at its log below the Ray "
                "session folder (out of memory is the usual reason: lower `vllm.gpu_memory_utilization`, "
                "`sampling.max_tokens` or `vllm.kv_cache_memory_bytes`); the run resumes with the same command."
            )
        stop(replica.handle)
        replica.handle, replica.seen = self._make(replica.index), {}
        await replica.call("start", limit=self._start_limit)

    async def usage(self, *, limit: float) -> Metrics:
        """What the replicas did since the last call (`rlvr.engine.usage`); one that is gone says nothing."""
        found = await asyncio.gather(*(self._stats(replica, limit=limit) for replica in self.replicas))
        told = [(replica, now) for replica, now in zip(self.replicas, found, strict=True) if now]
        metrics = usage_metrics([replica.seen for replica, _ in told], [now for _, now in told])
        for replica, now in told:
            replica.seen = now
        return metrics

    async def _stats(self, replica: Replica, *, limit: float) -> Mapping[str, float]:
        try:
            return await replica.call("stats", limit=limit)
        except ActorDied:  # whoever samples next replaces it
            return {}

    async def each(self, method: str, *args: Any) -> list[Any]:
        """The same call on every replica."""
        return await asyncio.gather(*(r.call(method, *args) for r in self.replicas))
