"""A real vLLM replica in its own event loop, a trainer's stand-in, and ways to break the replica."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from rlvr.engine import weight_sync_worker
from rlvr.engine.protocols import Which
from rlvr.engine.vllm_args import Transport, environment
from rlvr.engine.vllm_sampler import VllmSampler
from rlvr.engine.weight_sync import TrainerSide
from rlvr.errors import EngineError
from rlvr.types import F32, I32, Metrics, Request, Sampling, Streams, TokenBatch
from tests.engines.tiny import tiny_model

T = TypeVar("T")
BLOCK = 32


class BreakableExtension(weight_sync_worker.WorkerExtension):
    """The worker's methods, and one that takes the cure of tied heads away."""

    def set_cure(self, on: bool) -> None:
        weight_sync_worker.repack_tied = _REPACK if on else lambda model: 0


_REPACK = weight_sync_worker.repack_tied


class BreakableSampler(VllmSampler):
    """A replica whose cache may outlive a push, and whose loading may fail."""

    worker_extension = f"{__name__}.BreakableExtension"
    keep_cache = False
    fail: str | None = None

    async def _pause(self) -> None:
        if self.keep_cache:
            await self._live.pause_generation(mode="keep", clear_cache=False)
        else:
            await super()._pause()

    async def receive(self, info: dict[str, Any]) -> None:
        if self.fail == "receive":
            info = info | {"path": info["path"] + ".missing"}
        if self.fail == "hang":
            await asyncio.sleep(3600)
        await super().receive(info)


class Replica:
    """A sampler with the thread that runs its event loop."""

    def __init__(self, model: Path, *, dtype: str, device: str, transport: Transport, index: int) -> None:
        os.environ.update(environment(device, threads=2))
        self.model = model
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        overrides = {"block_size": BLOCK} | ({"gpu_memory_utilization": 0.1} if device == "gpu" else {})
        self.sampler = BreakableSampler(
            model_path=str(model), dtype=dtype, device=device, max_len=512, transport=transport, replica=index,
            overrides=overrides,
        )  # fmt: skip
        self.do(self.sampler.start())

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.submit(work).result(timeout=120)

    def close(self) -> None:
        self.do(self.sampler.close())
        self.loop.call_soon_threadsafe(self.loop.stop)


class LocalFanout:
    """The replicas of this process."""

    def __init__(self, replicas: Sequence[Replica], *, limit: float = 60) -> None:
        self.replicas, self.limit = replicas, limit
        self.calls: list[str] = []

    def start(self, method: str, *args: Any) -> Callable[[], list[Any]]:
        self.calls.append(method)
        futures = [r.submit(getattr(r.sampler, method)(*args)) for r in self.replicas]

        def wait() -> list[Any]:
            answers = []
            for i, future in enumerate(futures):
                try:
                    answers.append(future.result(timeout=self.limit))
                except FutureTimeout:
                    future.cancel()
                    raise EngineError(f"sampler replica {i}, {method}: no answer within {self.limit:g} s") from None
                except EngineError:
                    raise
                except Exception as error:  # what Ray does with an actor's exception
                    raise EngineError(f"sampler replica {i}, {method} failed: {error}") from error
            return answers

        return wait


class TorchPolicy:
    """A plain module as the trainer, for the handshake. It pushes to replicas as well."""

    def __init__(
        self, model: Path, replicas: Sequence[Replica], *, dtype: str = "float32", limit: float = 60,
        device: str = "cpu", transport: Transport = "shm",
    ) -> None:  # fmt: skip
        where = "cuda" if device == "gpu" else "cpu"
        self.module = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval().to(where)
        self.fanout = LocalFanout(replicas, limit=limit)
        self.side = TrainerSide(
            self.module, zero_stage=0, dtype=dtype, rank=0, world_size=1, transport=transport,
            run_id="tests", device=device, replicas=len(replicas), replica_world=1, limit=limit,
        )  # fmt: skip
        self._saved: dict[str, torch.Tensor] = {}
        self.skip = False

    async def push(self, version: int) -> Metrics:
        return {} if self.skip else await asyncio.to_thread(self.side.push, version, self.fanout)

    async def measure(self, batch: TokenBatch, needs: Iterable[str], model: Which = "policy") -> Streams:
        assert list(needs) == ["logp"] and model == "policy"
        return [{"logp": self.logp(row.tokens)} for row in batch.picked]

    def logp(self, tokens: I32, *, temperature: float | F32 = 1.0) -> F32:
        """[L], index 0 is 0. `temperature` is one number, or one for each token."""
        ids = torch.tensor(tokens, dtype=torch.long, device=self.module.device)
        with torch.no_grad():
            heat = torch.as_tensor(np.broadcast_to(temperature, tokens.shape).astype(np.float32), device=ids.device)
            logits = self.module(ids[None]).logits[0, :-1].float() / heat[1:, None]
        rows = torch.log_softmax(logits, -1).gather(1, ids[1:, None])[:, 0]
        return np.concatenate([[0.0], rows.cpu().numpy()]).astype(np.float32)

    async def perturb(self, *, scale: float, seed: int) -> None:
        assert not self._saved
        noise = torch.Generator().manual_seed(seed)
        self._saved = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        with torch.no_grad():
            for p in self.module.parameters():
                p.add_(scale * torch.randn(p.shape, generator=noise).to(p))

    async def unperturb(self) -> None:
        with torch.no_grad():
            for name, p in self.module.named_parameters():
                p.copy_(self._saved[name])
        self._saved = {}


@contextmanager
def running(
    folder: Path, *, tied: bool, dtype: str = "float32", device: str = "cpu", transport: Transport = "shm"
) -> Iterator[Replica]:
    """A replica of a tiny model."""
    replica = Replica(tiny_model(folder, tied=tied), dtype=dtype, device=device, transport=transport, index=0)
    try:
        yield replica
    finally:
        replica.close()


class Scored:
    """A replica as the handshake sees it, from another event loop."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica

    async def score(self, sequences: Sequence[I32]) -> list[F32]:
        return await asyncio.wrap_future(self.replica.submit(self.replica.sampler.score(sequences)))


def requests(
    n: int, *, key: str, max_tokens: int = 21, prompt: int = 12, temperature: float = 1.0, vocab: int = 128
) -> list[Request]:
    """Seeded requests of different lengths; `key` makes their names unique."""
    rng = np.random.default_rng(7)
    return [
        Request(
            f"{key}/{i}",
            rng.integers(2, vocab, prompt + i % 5).astype(np.int32),
            Sampling(max_tokens=max_tokens, seed=i, temperature=temperature),
        )
        for i in range(n)
    ]
