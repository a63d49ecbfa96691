"""The two ways in which weights leave the trainer: files in shared memory, and vLLM's own nccl and ipc senders."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import torch

from rlvr.engine.weight_sync_source import DeepSpeedWeightSource
from rlvr.errors import EngineError

if TYPE_CHECKING:
    from vllm.distributed.weight_transfer.base import TrainerInitInfo, TrainerWeightTransferEngine

SHM = Path("/dev/shm")
PREFIX = "rlvr-"
BUCKET_BYTES = 256 << 20


class Fanout(Protocol):
    """The sampler replicas as rank 0 sees them."""

    def start(self, method: str, *args: Any) -> Callable[[], list[Any]]:
        """Start a method of every replica at once; the returned function waits for all of them.

        It raises `EngineError`, naming the replica, when one fails, is gone or exceeds the time limit.
        """
        ...


class Sender(Protocol):
    """One transport. Every method is called on every rank; only rank 0 has a fanout."""

    def join(self, fanout: Fanout | None) -> None:
        """Meet the replicas; again after one of them was started anew."""
        ...

    def send(self, fanout: Fanout | None) -> None:
        """Send all weights."""
        ...

    def leave(self) -> None:
        """Give up what connects to the replicas; `join` builds it anew."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


class ShmSender:
    """Buckets of safetensors in a private folder of shared memory, one file at a time.

    The folder is locked for as long as its process lives, so the next sender on this machine can tell what a killed
    run left behind, and removes it.
    """

    def __init__(self, source: DeepSpeedWeightSource, *, rank: int, run_id: str, root: Path = SHM) -> None:
        self._source = source
        self._release: Callable[[], object] | None = None
        if rank == 0:
            remove_stale(root)
            prefix = f"{PREFIX}{re.sub(r'[^A-Za-z0-9_.-]', '_', run_id)}-"
            self.folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
            lock = os.open(self.folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._release = weakref.finalize(self, _release, self.folder, lock)

    def join(self, fanout: Fanout | None) -> None:
        """Replicas need nothing beforehand."""

    def send(self, fanout: Fanout | None) -> None:
        """Write a bucket, let every replica load it, remove it, and so on."""
        if fanout is None:
            for _ in self._source:  # gathering is a collective
                pass
            return
        try:
            for bucket in buckets(self._source, limit=BUCKET_BYTES):
                path = self.folder / "weights.safetensors"
                try:
                    self._write(bucket, path)
                    fanout.start("receive", {"path": str(path)})()
                finally:
                    path.unlink(missing_ok=True)
        finally:
            self._source.drain()

    def _write(self, bucket: dict[str, torch.Tensor], path: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        need = sum(t.numel() * t.element_size() for t in bucket.values())
        free = shutil.disk_usage(self.folder).free
        advice = "free some, or give the container more shared memory (docker: --shm-size)"
        if need > free:
            raise EngineError(
                f"{need / 1e6:.1f} MB of weights do not fit into {self.folder.parent} ({free / 1e6:.1f} MB free); "
                + advice
            )
        try:
            save_file(bucket, path)
        except (SafetensorError, OSError) as error:
            raise EngineError(f"cannot write {path}: {error}; {advice}") from error

    def leave(self) -> None:
        """Nothing is held between two pushes."""

    def close(self) -> None:
        """Remove the folder."""
        if self._release is not None:
            self._release()


def _release(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def remove_stale(root: Path) -> None:
    """Remove the folders of senders whose process is gone: nobody holds their lock."""
    for folder in root.glob(f"{PREFIX}*"):
        with suppress(OSError):  # not ours, or gone meanwhile
            lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(lock)


def buckets(source: DeepSpeedWeightSource, *, limit: int) -> Iterator[dict[str, torch.Tensor]]:
    """The source's tensors on the CPU, in dictionaries of at most `limit` bytes (a larger tensor alone)."""
    bucket: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in source:
        nbytes = tensor.numel() * tensor.element_size()
        if bucket and size + nbytes > limit:
            yield bucket
            bucket, size = {}, 0
        bucket[name] = tensor.cpu().contiguous()
        size += nbytes
    if bucket:
        yield bucket


class VllmSender:
    """vLLM's own trainer engines, "nccl" and "ipc", behind a client that knows versions, replicas and limits."""

    def __init__(
        self,
        source: DeepSpeedWeightSource,
        *,
        transport: Literal["nccl", "ipc"],
        rank: int,
        sampler_world: int,
        limit: float,
    ) -> None:
        self._source, self._transport, self._rank = source, transport, rank
        self._sampler_world, self._limit = sampler_world, limit
        self._client = FanoutClient()
        self._engine: TrainerWeightTransferEngine[Any] | None = None

    def join(self, fanout: Fanout | None) -> None:
        """Build the transfer group anew."""
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        self.leave()
        self._client.fanout = fanout
        info, source = self.init_info(), vllm_source(self._source)
        self._engine = limited(
            lambda: WeightTransferTrainerFactory.trainer_init(info, client=self._client, source=source),
            limit=self._limit,
            what=f"meeting the samplers ({self._transport})",
        )

    def init_info(self) -> TrainerInitInfo:
        """What vLLM's factory builds the sender from. World: this sender, then every worker of every replica."""
        if self._transport == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            return IPCTrainerInitInfo(rank=self._rank, packed=True)
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_ip, get_open_port

        return NCCLTrainerInitInfo(
            rank=self._rank,
            master_address=get_ip(),
            master_port=get_open_port(),
            world_size=1 + self._sampler_world,
        )

    def send(self, fanout: Fanout | None) -> None:
        """Send all weights; a transfer that exceeds the limit is aborted."""
        if self._engine is None:
            raise EngineError("not joined; push() joins first")
        self._client.fanout = fanout
        try:
            with self._watched():
                self._engine.send_weights()
        finally:
            self._source.drain()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Abort the communicator when the limit is over: NCCL itself would wait for ever for a peer that is gone."""
        expired = threading.Event()

        def abort() -> None:
            expired.set()
            self.leave()

        timer = threading.Timer(self._limit, abort)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            if expired.is_set():
                raise EngineError(_late(f"the transfer ({self._transport})", self._limit))

    def leave(self) -> None:
        """Leave the transfer group."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None

    close = leave


T = TypeVar("T")


def limited(step: Callable[[], T], *, limit: float, what: str) -> T:
    """The result of `step`, run in a thread on this thread's device; `EngineError` when it exceeds `limit` seconds.

    For calls into NCCL that cannot be interrupted: the thread is left behind.
    """
    done: Future[T] = Future()
    device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def run() -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)
            done.set_result(step())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True, name=what).start()
    try:
        return done.result(timeout=limit)
    except FutureTimeout:
        raise EngineError(_late(what, limit)) from None


def _late(what: str, limit: float) -> str:
    return (
        f"{what} was not finished within {limit:g} s (limits.push); a sampler may have died, or the network between "
        "trainer and samplers is down"
    )


class FanoutClient:
    """vLLM's `VLLMWeightSyncClient` over our fanout. Start and finish belong to the push, which knows the version.

    Each replica adds its own `rank_offset` to what it is told here (see `VllmSampler.init_transfer`).
    """

    fanout: Fanout | None = None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Every replica meets the trainer; returns when all have."""
        self._call("init_transfer", init_info)

    def start_weight_update(self) -> None:
        """The push has already begun the update on every replica."""

    def update_weights(self, update_info: Any) -> None:
        """Every replica receives one payload."""
        self._call("receive", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """The push finishes the update, with its version."""

    def _call(self, method: str, *args: Any) -> None:
        if self.fanout is None:
            raise EngineError(f"{method} outside of rank 0")
        self.fanout.start(method, *args)()


def vllm_source(source: DeepSpeedWeightSource) -> Any:
    """The source as an instance of vLLM's `WeightSource`."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class Adapter(WeightSource):
        def metadata(self) -> list[ParamMeta]:
            return [ParamMeta(m.name, m.dtype, m.shape) for m in source.metadata()]

        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            return iter(source)

    return Adapter()
