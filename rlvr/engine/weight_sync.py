"""Pushing weights from the trainer to every sampler replica, driven by the trainer's ranks.

A push: pause every replica with its cache cleared, open the update, send, close it with the version, resume. Both
sides are active at once, every wait has a limit, and after a failure the transfer group is built anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import torch

from rlvr.engine.weight_sync_send import Fanout, Sender, ShmSender, VllmSender
from rlvr.engine.weight_sync_source import DeepSpeedWeightSource
from rlvr.errors import EngineError
from rlvr.types import Metrics

__all__ = ["DeepSpeedWeightSource", "Fanout", "TrainerSide"]


class TrainerSide:
    """One trainer rank's end of the weight transfer. `push` is a collective of all ranks; rank 0 has the fanout.

    `module` is the Hugging Face module inside the DeepSpeed engine, `dtype` what the samplers hold ("float32" or
    "bfloat16"), `replica_world` the devices of one replica, `limit` seconds for one transfer. `run_id` must be
    unique to the run on this machine: it names the folder in shared memory.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        zero_stage: int,
        dtype: str,
        rank: int,
        world_size: int,
        transport: Literal["shm", "nccl", "ipc"],
        run_id: str,
        device: str,
        replicas: int,
        replica_world: int,
        limit: float,
    ) -> None:
        self._rank, self._world_size, self._device = rank, world_size, device
        source = DeepSpeedWeightSource(module, zero_stage=zero_stage, dtype=getattr(torch, dtype))
        self._bytes = sum(m.dtype.itemsize * torch.Size(m.shape).numel() for m in source.metadata())
        self._sender: Sender
        if transport == "shm":
            self._sender = ShmSender(source, rank=rank, run_id=run_id)
        else:
            world = replicas * replica_world
            self._sender = VllmSender(source, transport=transport, rank=rank, sampler_world=world, limit=limit)
        self._joined = False

    def push(self, version: int, fanout: Fanout | None) -> Metrics:
        """Send the current weights; every replica serves `version` afterwards, with an empty prefix cache.

        Raises `EngineError`, on every rank, when a replica or the transport fails or exceeds its limit. Replicas are
        resumed in any case; one whose update did not finish refuses requests until a push succeeds.
        """
        started = time.perf_counter()
        fanout = fanout if self._rank == 0 else None
        try:
            if not self._joined:
                self._together(version, "join", lambda: self._sender.join(fanout))
                self._joined = True
            self._together(version, "pause", lambda: _call(fanout, "begin_update"))
            self._together(version, "send", lambda: self._sender.send(fanout))
            self._together(version, "finish", lambda: _call(fanout, "finish_update", version))
        except EngineError:
            self.reset()
            _resume_anyway(fanout)
            raise
        self._together(version, "resume", lambda: _call(fanout, "resume"))
        return {"time/push": time.perf_counter() - started, "sync/bytes": float(self._bytes)}

    def reset(self) -> None:
        """Build the transfer group anew at the next push: after a failure, or when a replica was started again."""
        self._joined = False
        self._sender.leave()

    def close(self) -> None:
        """Release everything."""
        self._joined = False
        self._sender.close()

    def _together(self, version: int, what: str, step: Callable[[], None]) -> None:
        """Run a step on every rank; when rank 0 fails, all ranks raise."""
        failure: EngineError | None = None
        try:
            step()
        except EngineError as error:  # it may be a kind that the caller knows
            failure = error
        except (RuntimeError, ValueError, OSError) as error:
            failure = EngineError(f"{type(error).__name__}: {error}")
            failure.__cause__ = error
        message = self._of_rank_0(str(failure) if failure else None)
        if failure is None and message:
            failure = EngineError(message)
        if failure:
            failure.add_note(f"(push of version {version}: {what})")
            raise failure

    def _of_rank_0(self, message: str | None) -> str | None:
        if self._world_size == 1:
            return message
        box = [message]
        device = torch.device("cuda", torch.cuda.current_device()) if self._device == "gpu" else None
        torch.distributed.broadcast_object_list(box, src=0, device=device)
        return box[0]


def _call(fanout: Fanout | None, method: str, *args: int) -> None:
    if fanout is not None:
        fanout.start(method, *args)()


def _resume_anyway(fanout: Fanout | None) -> None:
    """Resume after a failure, which is the error worth showing."""
    try:
        _call(fanout, "resume")
    except EngineError:
        return
