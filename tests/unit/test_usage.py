"""What a sampler did between two readings, with a clock of our own, and what a pool makes of several replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from rlvr.cluster import ActorDied
from rlvr.cluster_samplers import SamplerPool
from rlvr.engine.usage import Usage, usage_metrics


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_mean_in_flight_is_weighted_by_time_and_leaves_idle_time_out() -> None:
    clock = Clock()
    usage = Usage(clock)
    clock.now += 50  # nothing is in flight
    usage.begin()
    clock.now += 1  # 1 request for 1 s
    usage.begin()
    usage.begin()
    clock.now += 2  # 3 requests for 2 s
    usage.end()
    usage.end()
    usage.end()
    clock.now += 7
    first = usage.counts()
    assert (first["busy_seconds"], first["request_seconds"], first["running"]) == (3.0, 7.0, 0.0)
    usage.begin()
    clock.now += 4
    second = usage.counts()  # one that is still in flight counts as far as it has come
    said = usage_metrics([first], [second])
    assert (said["time/running"], said["time/sampling"]) == (1.0, 4.0)
    assert usage_metrics([{}], [first])["time/running"] == pytest.approx(7 / 3)


def counts(**changes: float) -> dict[str, float]:
    names = ("prefix_queries", "prefix_hits", "decoded", "busy_seconds", "request_seconds")
    return {"version": 3.0, "running": 0.0} | dict.fromkeys(names, 0.0) | changes


def test_replicas_add_up() -> None:
    one = counts(prefix_queries=100, prefix_hits=64, decoded=30, busy_seconds=2, request_seconds=20)
    two = counts(prefix_queries=300, prefix_hits=96, decoded=50, busy_seconds=6, request_seconds=12)
    assert usage_metrics([{}, {}], [one, two]) == {
        "time/running": 4.0,
        "time/sampling": 4.0,
        "time/decoded": 80.0,
        "time/prefix_hits": 160.0,
        "time/prefix_share": 0.4,
    }
    assert set(usage_metrics([one, two], [one, two]).values()) == {0.0}
    assert set(usage_metrics([], []).values()) == {0.0}


def test_a_pool_tells_each_step_apart_and_counts_a_new_replica_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = SamplerPool(lambda index: index, replicas=2, start_limit=1, limit=5)
    readings: dict[int, Mapping[str, float] | None] = {0: counts(decoded=10), 1: counts(decoded=5)}

    async def call(replica: Any, method: str, *_: Any, limit: float | None = None) -> Any:
        if method == "stats" and readings[replica.index] is None:
            raise ActorDied("gone")
        return readings[replica.index]

    monkeypatch.setattr("rlvr.cluster_samplers.Replica.call", call)
    monkeypatch.setattr("rlvr.cluster_samplers.stop", lambda handle: None)

    async def go() -> list[float]:
        said = [await pool.usage(limit=1)]
        readings[0] = counts(decoded=17)
        said.append(await pool.usage(limit=1))
        readings[1] = None  # it is gone, and nothing of it counts
        said.append(await pool.usage(limit=1))
        await pool.replace(pool.replicas[1])
        readings[1] = counts(decoded=2)
        said.append(await pool.usage(limit=1))
        return [s["time/decoded"] for s in said]

    assert asyncio.run(go()) == [15.0, 7.0, 0.0, 2.0]
