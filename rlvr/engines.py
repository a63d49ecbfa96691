"""Starting the engines of a run from plain values: samplers, trainer ranks, and the sync between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlvr.cluster import RankActor, SamplerActor, ray_session, wait_for_gpus
from rlvr.cluster_policy import RayPolicy, RaySync
from rlvr.cluster_samplers import SamplerPool
from rlvr.methods import build_methods
from rlvr.recipe import Limits, Recipe, Resources
from rlvr.reference import uses_reference
from rlvr.seeds import stable_seed

if TYPE_CHECKING:
    from rlvr.engine.deepspeed_setup import PolicySpec

CPU_BLOCK = 32  # KV block of the CPU sampler: the smallest that starts, so that short sequences share a prefix
GPU_BLOCK = 16


@dataclass(frozen=True)
class Engines:
    """What a training run talks to."""

    policy: RayPolicy
    sync: RaySync
    pool: SamplerPool
    block: int  # tokens of one KV block


@asynccontextmanager
async def start_engines(
    recipe: Recipe, *, model_path: str, max_len: int, run: str, resume: str, project: Path
) -> AsyncIterator[Engines]:
    """Ray, the samplers and the trainer ranks of one run; everything ends with the block.

    `max_len` is the longest sequence (prompt and response). Raises EngineError when something does not start
    within `limits.start`.
    """
    resources, limits = recipe.resources, recipe.limits
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            ray_session(address=resources.address, cpus=_cpus(resources), limit=limits.start)
        )
        if resources.device == "gpu":
            wanted = [_sampler_gpus(resources)] * resources.samplers + [_rank_gpus(resources)] * resources.trainers
            await wait_for_gpus(wanted, limit=limits.start)
        pool = sampler_pool(
            resources,
            limits,
            model_path=model_path,
            dtype=recipe.model.dtype,
            max_len=max_len,
            seed=recipe.seed,
            overrides=recipe.vllm,
            trust_remote_code=recipe.model.trust_remote_code,
            revision=recipe.model.revision,
        )
        policy = _policy(resources, limits, resume=resume)
        specs = rank_specs(recipe, model_path=model_path, project=project)
        if resources.colocate:  # one after the other: each measures what memory is free
            await pool.start()
            await pool.each("sleep")
            await policy.start(specs, limit=limits.start)
            policy.pool_to_sleep = pool
        else:
            await asyncio.gather(pool.start(), policy.start(specs, limit=limits.start))
        side = {
            "dtype": recipe.model.dtype,
            "world_size": resources.trainers,
            "transport": transport(resources),
            # of this run alone on this machine, and the same on resume: what a kill left is found and removed
            "run_id": f"{run}-{stable_seed(str(project.resolve()), run):016x}",
            "device": resources.device,
            "replica_world": resources.tensor_parallel,
        }
        sync = RaySync(policy, pool, side, limit=limits.push)
        await sync.connect()
        try:
            yield Engines(policy=policy, sync=sync, pool=pool, block=block_size(resources, recipe.vllm))
        finally:
            await policy.disconnect()


@asynccontextmanager
async def sampler_only(
    *,
    model_path: str,
    dtype: str,
    max_len: int,
    seed: int,
    resources: Resources,
    limits: Limits,
    overrides: Mapping[str, Any],
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> AsyncIterator[SamplerPool]:
    """Samplers with the weights of a folder, for evaluation."""
    async with ray_session(address=resources.address, cpus=_cpus(resources), limit=limits.start):
        pool = sampler_pool(
            resources,
            limits,
            model_path=model_path,
            dtype=dtype,
            max_len=max_len,
            seed=seed,
            overrides=overrides,
            trust_remote_code=trust_remote_code,
            revision=revision,
        )
        await pool.start()
        yield pool


def sampler_pool(
    resources: Resources,
    limits: Limits,
    *,
    model_path: str,
    dtype: str,
    max_len: int,
    seed: int,
    overrides: Mapping[str, Any],
    trust_remote_code: bool,
    revision: str | None,
) -> SamplerPool:
    """The replicas as actors, not yet started."""
    from rlvr.engine.vllm_args import environment

    eager = bool(overrides.get("enforce_eager", True))
    env = environment(resources.device, threads=resources.threads, eager=eager)
    spec = {
        "model_path": model_path,
        "dtype": dtype,
        "device": resources.device,
        "seed": seed,
        "max_len": max(max_len, 2 * block_size(resources, overrides) + 8),
        "tensor_parallel": resources.tensor_parallel,
        "transport": transport(resources),
        "overrides": {"block_size": block_size(resources, overrides)} | dict(overrides),
        "trust_remote_code": trust_remote_code,
        "revision": revision,
    }
    gpus = _sampler_gpus(resources)

    def make(replica: int) -> Any:
        options = {"num_cpus": 0, "num_gpus": gpus, "max_concurrency": 4096}
        return SamplerActor.options(**options).remote(env, spec | {"replica": replica})

    return SamplerPool(make, replicas=resources.samplers, start_limit=limits.start, limit=limits.group)


def _policy(resources: Resources, limits: Limits, *, resume: str) -> RayPolicy:
    from rlvr.engine.deepspeed_env import environment

    gpus = _rank_gpus(resources)
    env = environment(resources.device, threads=resources.threads)
    ranks = [RankActor.options(num_cpus=0, num_gpus=gpus).remote(env) for _ in range(resources.trainers)]
    return RayPolicy(ranks, token_budget=resources.token_budget, limit=limits.step, resume=resume)


def rank_specs(recipe: Recipe, *, model_path: str, project: Path) -> list[PolicySpec]:
    """What every trainer rank is built from; where they meet is filled in by `RayPolicy.start`."""
    from rlvr.engine.deepspeed_setup import PolicySpec

    r, model = recipe.resources, recipe.model
    hooks = build_methods(recipe, project=project).hooks
    return [
        PolicySpec(
            model_path=model_path,
            dtype=model.dtype,
            gradient_checkpointing=model.gradient_checkpointing,
            trust_remote_code=model.trust_remote_code,
            revision=model.revision,
            device=r.device,
            optimizer=recipe.optimizer,
            deepspeed=recipe.deepspeed,
            objective=recipe.objective,
            kl=recipe.kl,
            addons=recipe.explore,
            project=str(project),
            reference=uses_reference(recipe.kl, hooks),
            reference_update=recipe.reference.update,
            seed=recipe.seed,
            rank=rank,
            world_size=r.trainers,
            threads=r.threads,
            limit=recipe.limits.step,
        )
        for rank in range(r.trainers)
    ]


def _rank_gpus(resources: Resources) -> float:
    return 0.0 if resources.device == "cpu" else 0.5 if resources.colocate else 1.0


def _sampler_gpus(resources: Resources) -> float:
    return 0.0 if resources.device == "cpu" else 0.5 if resources.colocate else float(resources.tensor_parallel)


def transport(resources: Resources) -> str:
    """How weights travel."""
    return "shm" if resources.device == "cpu" else "ipc" if resources.colocate else "nccl"


def block_size(resources: Resources, overrides: Mapping[str, Any]) -> int:
    """Tokens of one KV block."""
    return int(overrides.get("block_size", CPU_BLOCK if resources.device == "cpu" else GPU_BLOCK))


def _cpus(resources: Resources) -> int:
    return max(2, resources.trainers + resources.samplers)
