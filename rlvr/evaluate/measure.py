"""One evaluation from its target: data, verifiers, cached samples, an engine only for what is missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from rlvr import check
from rlvr.engine.protocols import Sampler
from rlvr.errors import ConfigError, DataError
from rlvr.evaluate.cache import DIGESTS, SAMPLES, SampleCache, cached, missing, model_digest
from rlvr.evaluate.progress import Counter
from rlvr.evaluate.run import EvalResult, call_size, evaluate, make_gate, together
from rlvr.evaluate.samples import Draw, fresh
from rlvr.evaluate.settings import Setting
from rlvr.evaluate.target import Target
from rlvr.models import load_tokenizer, resolve_model
from rlvr.prompting import Prompter
from rlvr.recipe import Recipe
from rlvr.run_data import bad_rows, eval_tasks
from rlvr.stop import Stop
from rlvr.types import Sampling, Task
from rlvr.verify.pool import VerifierPool
from rlvr.verify.specs import verifier_specs


@dataclass(frozen=True)
class Measured:
    """A result with how it was sampled."""

    result: EvalResult
    setting: Setting
    sampling: Sampling
    generated: int  # samples that were not in the cache


@dataclass(frozen=True)
class _Set:
    """One dataset on its way."""

    name: str
    tasks: Sequence[Task]
    setting: Setting
    sampling: Sampling
    cache: SampleCache
    missing: int


async def measure(target: Target, *, project: Path, console: Console) -> tuple[list[Measured], str]:
    """Evaluate every dataset; returns the results and the model's digest.

    Samples that are on disk are read; an engine is started only when some are missing. Raises ConfigError,
    DataError, EngineError or VerifierError, each meant for people; CancelledError when a signal ends it.
    """
    recipe = target.recipe
    if recipe.model.path is None:
        raise ConfigError("model.path: names no model (`model: NAME`); `scratch` models are built by `rlvr sft`")

    def say(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    path = resolve_model(recipe.model.path, project=project)
    read = eval_tasks(recipe.data, project=project)
    tasks = _limited(read, target.settings, limit=recipe.evaluate.tasks)
    digest = model_digest(path, revision=recipe.model.revision, memory=project / DIGESTS)
    async with AsyncExitStack() as stack:
        verifiers = stack.enter_context(_verifiers(recipe, tasks, project=project))
        stop = stack.enter_context(Stop(say))
        tasks = await asyncio.to_thread(_usable, tasks, verifiers, drop=recipe.data.on_bad_rows == "drop", say=say)
        sets = _open(target, tasks, digest=digest, project=project, stack=stack)
        lacking, total = sum(one.missing for one in sets), sum(len(one.tasks) * one.setting.n for one in sets)
        say(f"{total} samples, {total - lacking} of them from {SAMPLES}")
        engine = _engine(path, recipe, sets) if lacking else nullcontext((None, None))
        sampler, prompter = await stack.enter_async_context(engine)
        stop.listen()
        counter = stack.enter_context(Counter(console, total=total, cached=total - lacking))
        sizes = [call_size(one.setting.n, max_tokens=one.sampling.max_tokens) for one in sets]
        longest = max(one.sampling.max_tokens for one in sets)
        gate = make_gate(max(sizes), max_tokens=longest, samplers=recipe.resources.samplers)

        async def one(part: _Set) -> EvalResult:
            draw: Draw | None = None
            if sampler is not None and prompter is not None:
                draw = fresh(sampler, prompter, sampling=part.sampling, dataset=part.name, seed=recipe.seed)
            return await evaluate(
                part.tasks, dataset=part.name, draw=cached(part.cache, draw, prompt=recipe.prompt, seed=recipe.seed),
                verifiers=verifiers, n=part.setting.n, ks=part.setting.k, seed=recipe.seed,
                max_tokens=part.sampling.max_tokens, gate=gate, limit=recipe.limits.group, progress=counter.scored,
            )  # fmt: skip

        results = await together(one(part) for part in sets)
    made = zip(sets, results, strict=True)
    return [Measured(result, part.setting, part.sampling, part.missing) for part, result in made], digest


def _limited(
    read: Mapping[str, Sequence[Task]], settings: Mapping[str, Setting], *, limit: int | None
) -> Mapping[str, list[Task]]:
    """The first `limit` tasks of every dataset, once it is known that n samples are enough for its k."""
    tasks = {name: list(rows[:limit]) for name, rows in read.items()}
    for name, rows in tasks.items():
        if max(settings[name].k) > settings[name].n:
            raise ConfigError(
                f"evaluate.k: pass@{max(settings[name].k)} of {name} needs at least that many samples a task; got "
                f"n={settings[name].n}. Raise -n, or lower -k."
            )
        if not rows:
            raise DataError(f"{name}: no task to evaluate")
    return tasks


def _usable(
    tasks: Mapping[str, list[Task]], verifiers: VerifierPool, *, drop: bool, say: Callable[[str], None]
) -> Mapping[str, list[Task]]:
    """The tasks whose gold answers can be used. Raises DataError where some cannot, unless `drop`."""
    bad = bad_rows(verifiers, [task for rows in tasks.values() for task in rows], drop=drop)
    if bad:
        say(f"{len(bad)} rows are left out, as their answers cannot be used (data.on_bad_rows)")
    return {name: [task for task in rows if id(task) not in bad] for name, rows in tasks.items()}


def _verifiers(recipe: Recipe, tasks: Mapping[str, list[Task]], *, project: Path) -> VerifierPool:
    return VerifierPool(
        verifier_specs(recipe.verifier, [t for rows in tasks.values() for t in rows], project=project),
        processes=recipe.resources.verifiers,
        cpu_seconds=recipe.limits.verify_cpu,
        wall_seconds=recipe.limits.verify_wall,
    )


def _open(
    target: Target, tasks: Mapping[str, list[Task]], *, digest: str, project: Path, stack: AsyncExitStack
) -> list[_Set]:
    """The datasets with their caches; datasets that are sampled alike share one."""
    recipe, caches = target.recipe, dict[Path, SampleCache]()
    room = check.context_length(recipe.model, project=project)
    sets = []
    for name, rows in tasks.items():
        asked = target.settings[name]
        most = asked.max_tokens if room is None else min(asked.max_tokens, room - recipe.prompt.max_tokens)
        sampling = Sampling(
            temperature=asked.temperature, top_p=asked.top_p, max_tokens=max(1, most), stop=recipe.sampling.stop
        )
        extra = {"dtype": recipe.model.dtype, "vllm": recipe.vllm}
        cache = SampleCache(project / SAMPLES, model=digest, sampling=sampling, extra=extra)
        if cache.path not in caches:
            caches[cache.path] = stack.enter_context(cache)
        lacking = missing(caches[cache.path], rows, prompt=recipe.prompt, n=asked.n, seed=recipe.seed)
        sets.append(_Set(name, rows, asked, sampling, caches[cache.path], lacking))
    return sets


@asynccontextmanager
async def _engine(path: str, recipe: Recipe, sets: Sequence[_Set]) -> AsyncIterator[tuple[Sampler, Prompter]]:
    from rlvr.engines import sampler_only

    model = recipe.model
    tokenizer = load_tokenizer(path, revision=model.revision, trust_remote_code=model.trust_remote_code)
    prompter = Prompter(tokenizer, recipe.prompt)
    async with sampler_only(
        model_path=path,
        dtype=model.dtype,
        max_len=max(prompter.check(one.tasks) + one.sampling.max_tokens for one in sets),
        seed=recipe.seed,
        resources=recipe.resources,
        limits=recipe.limits,
        overrides=recipe.vllm,
        trust_remote_code=model.trust_remote_code,
        revision=model.revision,
    ) as sampler:
        yield sampler, prompter
