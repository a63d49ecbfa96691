"""Ray: starting it, the two kinds of actors, and waiting for them with a limit.

One node: loopback only, dashboard off. Several nodes: the launch scripts start the cluster with token
authentication and give its address (`resources.address`, or RAY_ADDRESS).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import ray
from ray._private import ray_constants
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from rlvr.errors import EngineError, RLVRError
from rlvr.packing import Column, pack_streams, unpack_rows
from rlvr.types import Metrics, Row


class ActorDied(EngineError):
    """The process of an actor is gone."""


@asynccontextmanager
async def ray_session(*, address: str | None, cpus: int, limit: float = 120) -> AsyncIterator[None]:
    """Connect to a cluster, or start one on this machine that ends with the block.

    Raises EngineError when no cluster answers at the address, or Ray does not start.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
    own: dict[str, Any] = {"num_cpus": cpus, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        await _reachable(address, limit=min(limit, 60))
    else:
        _loopback_only()
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "namespace": "rlvr"}
    try:
        await asyncio.to_thread(ray.init, address=address or "local", **quiet, **({} if address else own))
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"the cluster at {address} (resources.address or RAY_ADDRESS)" if address else "a local Ray"
        raise EngineError(f"{where} cannot be used: {first_line(error)}. See `rlvr doctor`.") from error
    try:
        yield
    finally:
        await asyncio.to_thread(ray.shutdown)


async def _reachable(address: str, *, limit: float) -> None:
    """Raise EngineError unless something listens at host:port (Ray itself would try for many minutes)."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto" and the like
    try:
        async with asyncio.timeout(limit):
            _, writer = await asyncio.open_connection(host, int(port))
    except (OSError, TimeoutError) as error:
        raise EngineError(
            f"resources.address: nothing answers at {address} ({error}). Start the cluster first (launch/ shows how), "
            "or leave the key out to run on this machine."
        ) from error
    writer.close()


async def wait_for_gpus(wanted: Sequence[float], *, limit: float) -> None:
    """Wait until nodes with these GPUs (one number per actor) have joined; EngineError when they never do."""
    end = asyncio.get_running_loop().time() + limit
    while True:
        free = sorted(float(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"])
        if _fits(wanted, free):
            return
        if asyncio.get_running_loop().time() > end:
            raise EngineError(
                f"resources: {sum(wanted):g} GPUs are needed, up to {max(wanted):g} on one node; within {limit:g} s "
                f"the nodes had {free}. Lower trainers, samplers or tensor_parallel, or add nodes."
            )
        await asyncio.sleep(1)


def _fits(wanted: Sequence[float], free: Sequence[float]) -> bool:
    """First fit of the largest first."""
    left = list(free)
    for need in sorted(wanted, reverse=True):
        place = next((i for i, have in enumerate(left) if have >= need), None)
        if place is None:
            return False
        left[place] -= need
    return True


def _loopback_only() -> None:
    """Make Ray take 127.0.0.1 as this node's address: its servers then listen on the loopback alone.

    `_node_ip_address="127.0.0.1"` is replaced by an outside address unless clusters are switched off, which Ray
    decides by a constant in this process and by a variable in those that it starts.
    """
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False


async def answer(ref: ray.ObjectRef, *, limit: float, what: str) -> Any:
    """The value of a remote call, within `limit` seconds.

    Raises:
        ActorDied: the actor's process is gone.
        EngineError: the limit has passed, or the call raised (errors meant for people pass unchanged).
    """
    try:
        return await asyncio.wait_for(asyncio.wrap_future(ref.future()), limit)
    except TimeoutError as error:
        raise EngineError(
            f"{what}: no answer within {limit:g} s. See the actor's log below the Ray session folder; "
            "raise the matching key of `limits:` if the work is really that long."
        ) from error
    except asyncio.CancelledError:
        ray.cancel(ref)  # an asynchronous actor stops the work too
        raise
    except RayTaskError as error:
        raise plain(error, what) from error
    except RayActorError as error:
        raise ActorDied(f"{what}: the process is gone ({first_line(error)}).") from error


def stop(actor: Any) -> None:
    """End an actor's process, if it still lives, and what it holds."""
    ray.kill(actor, no_restart=True)


def plain(error: RayTaskError, what: str) -> RLVRError:
    """The error for people inside a remote one."""
    cause = error.cause
    if isinstance(cause, RLVRError):
        return cause
    if isinstance(cause, RayActorError):
        return ActorDied(f"{what}: a process that it needs is gone ({first_line(cause)}).")
    return EngineError(f"{what} failed: {type(cause).__name__}: {cause}\n{error}")


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@ray.remote
class SamplerActor:
    """One vLLM replica. The environment is set before vLLM (and OpenMP) is imported."""

    def __init__(self, env: Mapping[str, str], spec: Mapping[str, Any]) -> None:
        os.environ.update(env)
        from rlvr.engine.vllm_sampler import VllmSampler

        self.sampler = VllmSampler(**spec)

    async def call(self, method: str, *args: Any) -> Any:
        """Await a method of the sampler. When its engine is dead the process ends, and the pool replaces it."""
        try:
            return await getattr(self.sampler, method)(*args)
        except EngineError:
            if self.sampler.dead:
                os._exit(1)
            raise


@ray.remote
class RankActor:
    """One DeepSpeed rank."""

    def __init__(self, env: Mapping[str, str]) -> None:
        os.environ.update(env)
        self._table: tuple[str, tuple[Row, ...]] = ("", ())
        self.side: Any = None

    def rendezvous(self) -> tuple[str, int]:
        """Address and a free port of this process's machine."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def start(self, spec: Any) -> None:
        """Build model and optimizer; all ranks at once."""
        from rlvr.engine.deepspeed_policy import RankPolicy

        self.policy = RankPolicy(spec)

    def connect(self, samplers: Sequence[Any], limit: float, side: Mapping[str, Any]) -> None:
        """(Re)build the trainer's end of the weight transfer for these replicas."""
        from rlvr.engine.weight_sync import TrainerSide

        policy = self.policy
        if self.side is not None:
            self.side.close()
        self.fanout = RayFanout(samplers, limit=limit)
        self.side = TrainerSide(
            policy.module, zero_stage=policy.zero_stage, rank=policy.rank, replicas=len(samplers), limit=limit, **side
        )

    def disconnect(self) -> None:
        """Close the trainer's end of the transfer and remove what it left in shared memory."""
        if self.side is not None:
            self.side.close()

    def push(self, version: int) -> dict[str, float]:
        """Send the weights to every replica (a collective of all ranks)."""
        return self.side.push(version, self.fanout)

    def push_unlearned(
        self, table: Sequence[ray.ObjectRef], micro: Any, scale: Any, eta: float, eps: float, version: int
    ) -> Metrics:
        """Unlearn, send, put back: in one call, so that nothing else ever sees the changed weights of the trainer."""
        try:
            seen = self.policy.unlearn(self._rows(table[0]), micro, scale, eta=eta, eps=eps)
            return seen | self.side.push(version, self.fanout)
        finally:
            self.policy.unperturb()

    def measure(self, table: Sequence[ray.ObjectRef], *args: Any) -> tuple[list[int], dict[str, Column]]:
        """`RankPolicy.measure` with its answer packed: positions, and the streams of these rows."""
        found = self.policy.measure(self._rows(table[0]), *args)
        return list(found), pack_streams(list(found.values()))

    def step(self, table: Sequence[ray.ObjectRef], *args: Any) -> Metrics:
        """`RankPolicy.step`."""
        return self.policy.step(self._rows(table[0]), *args)

    def _rows(self, ref: ray.ObjectRef) -> tuple[Row, ...]:
        """A table of rows travels once and is kept until the next one."""
        if self._table[0] != ref.hex():
            self._table = (ref.hex(), unpack_rows(ray.get(ref)))
        return self._table[1]

    def call(self, method: str, *args: Any) -> Any:
        """Any other method of the rank."""
        return getattr(self.policy, method)(*args)


class RayFanout:
    """Calls a method on every sampler replica at once, from inside a rank."""

    def __init__(self, samplers: Sequence[Any], *, limit: float) -> None:
        self._samplers, self._limit = samplers, limit

    def start(self, method: str, *args: Any) -> Callable[[], list[Any]]:
        """Start the calls; the returned function waits for them.

        Raises:
            EngineError: a replica failed, died or exceeded the limit.
        """
        refs = [sampler.call.remote(method, *args) for sampler in self._samplers]

        def wait() -> list[Any]:
            answers = []
            for replica, ref in enumerate(refs):
                what = f"sampler replica {replica}, {method}"
                try:
                    answers.append(ray.get(ref, timeout=self._limit))
                except GetTimeoutError as error:
                    raise EngineError(
                        f"{what}: no answer within {self._limit:g} s (`limits.push`). A weight transfer needs both "
                        "sides; a sampler stuck in a long prefill or a lost network link stops it."
                    ) from error
                except RayTaskError as error:
                    raise plain(error, what) from error
                except RayActorError as error:
                    raise ActorDied(f"{what}: the process is gone ({first_line(error)}).") from error
            return answers

        return wait
