"""Ray as we start it: on the loopback alone, with limits on every wait and errors that people can read."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio
import ray

from rlvr.cluster import ActorDied, RayFanout, answer, ray_session
from rlvr.errors import ConfigError, EngineError


@ray.remote
class Probe:
    """An actor that does what it is told."""

    async def call(self, method: str, *args: object) -> object:
        match method:
            case "echo":
                return args
            case "sleep":
                await asyncio.sleep(60)
            case "refuse":
                raise ConfigError(["a: wrong", "b: wrong"])
            case "crash":
                raise ZeroDivisionError("by zero")
            case "die":
                os._exit(3)
        return None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def probe() -> AsyncIterator[object]:
    async with ray_session(address=None, cpus=2):
        yield Probe.options(num_cpus=0)


@pytest.mark.asyncio(loop_scope="module")
async def test_everything_listens_on_the_loopback(probe: ray.actor.ActorClass) -> None:
    actor = probe.remote()
    assert await answer(actor.call.remote("echo", 1), limit=60, what="probe") == (1,)
    family = {os.getpid()} | {p.pid for p in psutil.Process().children(recursive=True)}
    open_to = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.pid in family}
    assert open_to and open_to <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.mark.asyncio(loop_scope="module")
async def test_every_way_to_fail_has_its_error(probe: ray.actor.ActorClass) -> None:
    actor = probe.remote()
    with pytest.raises(EngineError, match=r"probe, sleep: no answer within 0.5 s"):
        await answer(actor.call.remote("sleep"), limit=0.5, what="probe, sleep")
    with pytest.raises(ConfigError, match="a: wrong\nb: wrong"):
        await answer(actor.call.remote("refuse"), limit=30, what="probe")
    with pytest.raises(EngineError, match="probe failed: ZeroDivisionError: by zero"):
        await answer(actor.call.remote("crash"), limit=30, what="probe")
    with pytest.raises(ActorDied, match="probe: the process is gone"):
        await answer(actor.call.remote("die"), limit=30, what="probe")


@pytest.mark.asyncio(loop_scope="module")
async def test_the_fanout_names_the_replica(probe: ray.actor.ActorClass) -> None:
    actors = [probe.remote(), probe.remote()]
    assert RayFanout(actors, limit=30).start("echo", 7)() == [(7,), (7,)]
    await answer(actors[0].call.remote("echo"), limit=30, what="probe")
    with pytest.raises(ActorDied, match="probe 1"):
        await answer(actors[1].call.remote("die"), limit=30, what="probe 1")
    with pytest.raises(ActorDied, match=r"sampler replica 1, echo: the process is gone"):
        RayFanout(actors, limit=30).start("echo")()
    with pytest.raises(EngineError, match=r"sampler replica 0, sleep: no answer within 0.5 s .*limits.push"):
        RayFanout(actors[:1], limit=0.5).start("sleep")()
