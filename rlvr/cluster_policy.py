"""The trainer ranks as one `Policy`, and the weight sync from them to the samplers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from rlvr.batching import micro_batches
from rlvr.cluster import ActorDied, answer
from rlvr.cluster_samplers import Replica, SamplerPool
from rlvr.engine.protocols import Which
from rlvr.errors import EngineError, ReplicaBroken
from rlvr.packing import pack_rows, unpack_streams
from rlvr.types import F32, Metrics, Plan, Row, Streams, TokenBatch

Send = Callable[[int], Awaitable[Metrics]]  # the transfer of what is to be served, given its version


class RayPolicy:
    """Splits every call over the ranks. One lock orders all calls."""

    def __init__(self, ranks: Sequence[Any], *, token_budget: int, limit: float, resume: str) -> None:
        self._ranks, self._budget, self._limit, self._resume = list(ranks), token_budget, limit, resume
        self.lock = asyncio.Lock()
        self.settled = True  # False between the first update of a step and its push
        self.pool_to_sleep: SamplerPool | None = None  # colocation: who has the GPU when we do not
        self._resident = True
        self._table: tuple[tuple[Row, ...], Any] | None = None

    async def start(self, specs: Sequence[Any], *, limit: float) -> None:
        """Build every rank; they meet at rank 0's address."""
        address, port = await answer(self._ranks[0].rendezvous.remote(), limit=limit, what="trainer rank 0")
        specs = [replace(spec, master_addr=address, master_port=port) for spec in specs]
        await self._all([r.start.remote(s) for r, s in zip(self._ranks, specs, strict=True)], "start", limit=limit)

    async def measure(self, batch: TokenBatch, needs: Iterable[str], model: Which = "policy") -> Streams:
        """Forward without gradient over all ranks; see `protocols.Policy`."""
        async with self.lock:
            shares = self._split(batch)
            names = frozenset(needs)
            parts = await self._call("measure", batch.rows, [(share, names, model) for share in shares])
        merged: dict[int, dict[str, F32]] = {}
        for positions, columns in parts:
            merged |= zip(positions, unpack_streams(columns, len(positions)), strict=True)
        return [merged[row] for row in batch.index]

    async def step(self, batch: TokenBatch, plan: Plan) -> Metrics:
        """One optimizer update over all ranks; the metrics are already global."""
        async with self.lock:
            self.settled = False
            scale = dict(zip(batch.index, batch.scale.tolist(), strict=True))
            sft = dict(zip(batch.index, batch.sft_scale.tolist(), strict=True))
            marks = {name: dict(zip(batch.index, rows, strict=True)) for name, rows in plan.marks.items()}
            plan = replace(plan, marks=marks)
            args = [(share, scale, sft, plan) for share in self._split(batch)]
            metrics = (await self._call("step", batch.rows, args))[0]
        return {f"train/{name}": value for name, value in metrics.items()}

    async def move_reference(self, *, alpha: float, reset_optimizer: bool) -> None:
        """See `protocols.Policy`."""
        await self._every("move_reference", alpha, reset_optimizer)

    async def save(self, path: Path) -> None:
        """Every rank writes its part below `path`."""
        await self._every("save", str(path))

    async def restore(self, path: Path) -> None:
        """Inverse of `save`."""
        await self._every("restore", str(path))

    async def export(self, path: Path) -> None:
        """Rank 0 writes a Hugging Face folder."""
        await self._every("export", str(path))

    async def perturb(self, *, scale: float, seed: int) -> None:
        """See `protocols.Policy`."""
        await self._every("perturb", scale, seed)

    async def unperturb(self) -> None:
        """See `protocols.Policy`."""
        await self._every("unperturb")

    async def connect(self, pool: SamplerPool, side: Mapping[str, Any], *, limit: float) -> None:
        """(Re)build the weight transfer to the pool's current replicas."""
        await self._all([r.connect.remote(pool.handles, limit, side) for r in self._ranks], "connect", limit=limit)

    async def disconnect(self) -> None:
        """Close the transfer; a rank that is gone has nothing to close."""
        await asyncio.wait({asyncio.wrap_future(r.disconnect.remote().future()) for r in self._ranks}, timeout=5)

    async def push(self, version: int, *, limit: float) -> Metrics:
        """The transfer itself; a collective of all ranks. The caller holds `lock`."""
        return (await self._all([r.push.remote(version) for r in self._ranks], "push", limit=limit))[0]

    async def push_unlearned(self, batch: TokenBatch, *, eta: float, eps: float, version: int) -> Metrics:
        """See `protocols.WeightSync`; a collective of all ranks. The caller holds `lock`."""
        scale = dict(zip(batch.index, batch.scale.tolist(), strict=True))
        args = [(share, scale, eta, eps, version) for share in self._split(batch)]
        return (await self._call("push_unlearned", batch.rows, args))[0]

    async def resident(self, wanted: bool) -> None:
        """Colocation: bring the trainer's state onto the GPU (the samplers sleep), or take it away."""
        if self.pool_to_sleep is None or self._resident == wanted:
            return
        if wanted:
            await self.pool_to_sleep.each("sleep")
        await self._all([r.call.remote("reload" if wanted else "offload") for r in self._ranks], "offload")
        self._resident = wanted

    def _split(self, batch: TokenBatch) -> list[list[tuple[int, ...]]]:
        lengths = [len(batch.rows[i].tokens) for i in batch.index]
        shares = micro_batches(lengths, ranks=len(self._ranks), token_budget=self._budget)
        return [[tuple(batch.index[p] for p in micro) for micro in share] for share in shares]

    async def _call(self, method: str, rows: tuple[Row, ...], args: Sequence[tuple[Any, ...]]) -> list[Any]:
        await self.resident(True)
        if self._table is None or self._table[0] is not rows:
            self._table = (rows, ray.put(pack_rows(rows)))
        table = [self._table[1]]
        calls = [getattr(r, method).remote(table, *a) for r, a in zip(self._ranks, args, strict=True)]
        return await self._all(calls, method)

    async def _every(self, method: str, *args: Any) -> None:
        async with self.lock:
            await self.resident(True)
            await self._all([r.call.remote(method, *args) for r in self._ranks], method)

    async def _all(self, refs: Sequence[Any], what: str, *, limit: float | None = None) -> list[Any]:
        waits = [
            answer(ref, limit=limit or self._limit, what=f"trainer rank {rank}, {what}")
            for rank, ref in enumerate(refs)
        ]
        try:
            return list(await asyncio.gather(*waits))
        except ActorDied as error:
            raise EngineError(f"{error} The last checkpoint is whole; resume with: {self._resume}") from error


class RaySync:
    """`WeightSync`: the transfer from the trainer's side; replicas that died are replaced and join it."""

    def __init__(self, policy: RayPolicy, pool: SamplerPool, side: Mapping[str, Any], *, limit: float) -> None:
        self._policy, self._pool, self._side, self._limit = policy, pool, side, limit
        self.version = 0  # what the samplers serve
        self._send = partial(policy.push, limit=limit)  # how it was made and sent, given the version
        pool.rejoin = self._rejoin

    async def connect(self) -> None:
        """Set the transfer up for the pool's current replicas."""
        async with self._policy.lock:
            await self._policy.connect(self._pool, self._side, limit=self._limit)

    async def push(self, version: int) -> Metrics:
        """Every replica serves `version` afterwards. A dead one is replaced first, and the push tried once more.

        The metrics are of the push, and of what the replicas did since the one before it.
        """
        metrics = await self._serve(version, partial(self._policy.push, limit=self._limit))
        return metrics | await self._pool.usage(limit=self._limit)

    async def push_unlearned(self, batch: TokenBatch, *, eta: float, eps: float, version: int) -> Metrics:
        """See `protocols.WeightSync`."""
        return await self._serve(version, partial(self._unlearned, batch, eta, eps))

    async def _unlearned(self, batch: TokenBatch, eta: float, eps: float, version: int) -> Metrics:
        return await self._policy.push_unlearned(batch, eta=eta, eps=eps, version=version)

    async def _serve(self, version: int, send: Send) -> Metrics:
        async with self._policy.lock:
            try:
                metrics = await self._push(version, send)
            except EngineError:
                dead = [r for r in self._pool.replicas if await self._is_dead(r)]
                if not dead:
                    raise
                await self._replace(dead)
                metrics = await self._push(version, send)
            self._policy.settled = True
            self._pool.blocked.clear()
            for replica in self._pool.replicas:
                replica.ready.set()
        return metrics

    async def _push(self, version: int, send: Send) -> Metrics:
        colocated = self._policy.pool_to_sleep is not None
        if colocated:
            await self._policy.resident(True)
            await self._pool.each("wake", ["weights"])
        metrics = await send(version)
        self.version, self._send = version, send
        if colocated:
            await self._policy.resident(False)
            await self._pool.each("wake", ["kv_cache"])
        return metrics

    async def _is_dead(self, replica: Replica) -> bool:
        try:
            await replica.call("check", limit=self._limit)
        except ReplicaBroken:
            return False
        except EngineError:
            return True
        return False

    async def _replace(self, dead: Sequence[Replica]) -> None:
        await asyncio.gather(*(self._pool.replace(replica) for replica in dead))
        await self._policy.connect(self._pool, self._side, limit=self._limit)

    async def _rejoin(self, replica: Replica, handle: Any) -> None:
        """Replace a replica whose actor `handle` is gone, once however many callers noticed.

        Between two steps it gets at once what the others serve, made anew where that is not the trainer's weights: an
        unlearning step gives the same again. Inside a step it waits for the push, since half a step's weights are no
        version.
        """
        async with self._policy.lock:
            if replica.handle is handle:
                await self._replace([replica])
                if self._policy.settled:
                    await self._push(self.version, self._send)
                    replica.ready.set()
                else:
                    self._pool.blocked.set()
        await replica.ready.wait()
