"""One training run from its resolved recipe: folder, data, engines, resume, handshake, loop, final save."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rlvr import checkpoint, config
from rlvr.buffer import Buffer
from rlvr.engine.handshake import handshake, random_sequences
from rlvr.engine.protocols import Verifiers, WeightSync
from rlvr.engines import Engines, start_engines
from rlvr.explore.base import AddOn, Sample
from rlvr.loop import sampling_of, train
from rlvr.methods import EXPLORE, build_methods, method_class
from rlvr.observer import RunObserver
from rlvr.parts import Loop
from rlvr.prompting import Prompter
from rlvr.recipe import Recipe
from rlvr.reference import ReferenceSchedule
from rlvr.resume import same_recipe, same_reference
from rlvr.rollout.barrier import Act, Barrier
from rlvr.rollout.groups import flat_groups
from rlvr.rollout.meter import Meter
from rlvr.rollout.unlearning import unlearning_batch
from rlvr.run_data import RunData, eval_names, read_data
from rlvr.seeds import stable_seed
from rlvr.stop import Stop
from rlvr.track.display import make_display
from rlvr.track.journal import read
from rlvr.track.run_dir import ROOT, RunDir
from rlvr.track.tracker import Tracker, open_tracker
from rlvr.types import I32, Completion, Group, Metrics, Request, Sampling, Task, Verdict, aside

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}  # of the handshake, in log-probability


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `step` of `steps`; `stopped` by a signal."""

    folder: RunDir
    step: int
    steps: int
    stopped: bool = False


@dataclass
class RunContext:
    """What group-time hooks may ask of the run (`rlvr.explore.base.Context`)."""

    seed: int
    sampler: Meter
    verifiers: Verifiers
    prompter: Prompter
    tasks: Sequence[Task]  # every training task
    sampling: Sampling
    sync: WeightSync | None  # None: what is served never changes
    barrier: Barrier
    settled: Callable[[], Awaitable[None]]  # the evaluation that runs beside the sampling has ended
    step: int = 0

    def at(self, step: int) -> RunContext:
        """The same context for the groups of one step."""
        return replace(self, step=step)

    async def meet(self, group: Group, act: Act, *, first: int = 0) -> tuple[Group, Metrics] | None:
        """Wait for the other draws of the step; see `rlvr.rollout.barrier`."""
        return await self.barrier.meet(self.step, group, act, first=first)

    async def unlearn(self, groups: Sequence[Group], *, eta: float, eps: float) -> Metrics:
        """What is sampled from now on in this step comes from weights that made these rows less likely."""
        assert self.sync is not None, "served weights change within a run"
        await self.settled()
        batch = unlearning_batch(groups)
        return await self.sync.push_unlearned(batch, eta=eta, eps=eps, version=aside(self.step))

    async def close(self) -> None:
        """A meeting that is being held comes to its end."""
        await self.barrier.close()

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Sample on one replica."""
        return await self.sampler.generate(requests)

    def decoded(self, draw: int) -> int:
        """Tokens generated for a draw, since the last call."""
        return self.sampler.taken(draw)

    async def verify(self, task: Task, responses: Sequence[str]) -> list[Verdict]:
        """Score responses."""
        return await self.verifiers.score(task, responses)

    def encode(self, task: Task) -> I32:
        """Prompt token ids."""
        return self.prompter.encode(task)

    def encode_response(self, text: str) -> I32:
        """Token ids of a response that somebody else wrote, ending in the end token."""
        return self.prompter.encode_response(text)

    def decode(self, tokens: I32) -> str:
        """Text of a response."""
        return self.prompter.decode(tokens)


async def run_training(resolved: config.Resolved[Recipe], *, project: Path, since: float | None = None) -> Outcome:
    """Train, or resume, the run that the recipe names.

    The same call resumes: it loads the newest checkpoint and cuts metrics, rollouts and events back to it.
    Raises ConfigError, DataError, EngineError, HandshakeError or CheckpointError, each meant for people.
    """
    recipe = resolved.recipe
    folder = RunDir(ROOT / recipe.run)
    with folder.lock():
        checkpoint.clean(folder.checkpoints)
        newest = checkpoint.newest(folder.checkpoints)
        saved = checkpoint.load(newest) if newest else None
        if saved is not None:
            same_recipe(recipe, folder=folder)
            if saved.step >= recipe.steps and not missing_evaluations(folder, recipe):
                return Outcome(folder, saved.step, recipe.steps)
        data = await asyncio.to_thread(read_data, recipe, project=project)
        folder.write_recipe(config.dump(recipe))
        with open_tracker(
            folder,
            display=make_display(recipe.steps, title=recipe.run),
            resume=saved.step if saved else None,
            tensorboard=recipe.track.tensorboard,
            wandb=recipe.track.wandb,
            config=recipe.model_dump(mode="json"),
            since=since,
        ) as tracker:
            command = f"rlvr train {shlex.quote(str(folder.recipe))}"  # the resolved recipe: overrides are in it
            return await _run(recipe, folder, tracker, data, saved, project=project, command=command)


async def _run(
    recipe: Recipe,
    folder: RunDir,
    tracker: Tracker,
    data: RunData,
    saved: checkpoint.Saved | None,
    *,
    project: Path,
    command: str,
) -> Outcome:
    async with AsyncExitStack() as stack:
        stack.enter_context(data.verifiers)
        if saved is not None:
            same_reference(data.digests, saved.state["digests"])
        note = tracker.display.note
        stop = stack.enter_context(Stop(note))
        for warning in data.warnings:
            note(warning)
        note(f"starting {recipe.resources.trainers} trainer rank(s) and {recipe.resources.samplers} sampler(s) ...")
        engines = await stack.enter_async_context(
            start_engines(
                recipe,
                model_path=data.model_path,
                max_len=longest_prompt(recipe, data, project=project) + recipe.sampling.max_tokens,
                run=recipe.run,
                resume=command,
                project=project,
            )
        )
        loop, observer = build_loop(recipe, folder, tracker, data, engines, stop=stop.event, project=project)
        if saved is not None:
            await restore(loop, saved, observer)
            note(f"resumed at step {saved.step} from {saved.path}")
        note(await shake_hands(engines, recipe, vocab=data.prompter.vocab, version=loop.step))
        if saved is None:
            for addon in loop.addons:
                await addon.prepare(loop.context)
        stop.looping = True
        stop.listen()
        return await _loop(loop, observer)


def longest_prompt(recipe: Recipe, data: RunData, *, project: Path) -> int:
    """Tokens of the longest prompt that may be sampled under: an add-on may put hints or critiques into one."""
    classes = [method_class(EXPLORE, spec.kind, project=project) for spec in recipe.explore]
    return recipe.prompt.max_tokens if any(cls.lengthens for cls in classes) else data.longest_prompt


def build_loop(
    recipe: Recipe,
    folder: RunDir,
    tracker: Tracker,
    data: RunData,
    engines: Engines,
    *,
    stop: asyncio.Event,
    project: Path,
) -> tuple[Loop, RunObserver]:
    """The loop of a recipe on engines that run, and what watches it; before any step, with nothing restored."""
    methods, meter = build_methods(recipe, project=project), Meter(engines.pool)
    observer = RunObserver(
        recipe=recipe,
        folder=folder,
        tracker=tracker,
        sampler=engines.pool,
        verifiers=data.verifiers,
        encoder=data.prompter,
        eval_sets=data.eval_sets,
        digests=data.digests,
        stop=stop,
        blocked=engines.pool.blocked,
    )
    loop = Loop(
        recipe=recipe,
        tasks=data.stream.draw,
        policy=engines.policy,
        sync=engines.sync,
        context=RunContext(
            recipe.seed,
            meter,
            data.verifiers,
            data.prompter,
            data.stream.tasks,
            sampling_of(recipe),
            sync=engines.sync,
            barrier=Barrier(recipe.prompts),
            settled=observer.settled,
        ),
        sample=compose(methods.hooks, flat_groups(meter, data.verifiers, data.prompter, seed=recipe.seed)),
        buffer=Buffer(
            slots=(recipe.max_lag + 1) * recipe.prompts,
            group_limit=recipe.limits.group,
            max_dropped=recipe.max_draws * recipe.prompts,
            together=any(addon.barrier for addon in methods.hooks),
        ),
        observer=observer,
        surrogate=methods.surrogate,
        addons=methods.hooks,
        stop=stop,
        reference=ReferenceSchedule(recipe.reference),
    )
    return loop, observer


async def _loop(loop: Loop, observer: RunObserver) -> Outcome:
    try:
        await train(loop)
        await observer.save(loop)
    finally:
        for task in list(observer.running):
            task.cancel()
        await asyncio.gather(*observer.running, return_exceptions=True)
        await loop.context.close()
    unfinished = loop.step < loop.recipe.steps or missing_evaluations(observer.folder, loop.recipe)
    return Outcome(observer.folder, loop.step, loop.recipe.steps, stopped=loop.stop.is_set() and unfinished)


def compose(addons: Sequence[AddOn], sample: Sample) -> Sample:
    """Every add-on's sampler around the flat one, the first of the recipe outermost."""
    for addon in reversed(addons):
        sample = addon.sampler(sample)
    return sample


async def restore(loop: Loop, saved: checkpoint.Saved, observer: RunObserver) -> None:
    """Put everything back as it was after step `saved.step`."""
    await loop.policy.restore(saved.policy)
    loop.step, loop.update = saved.step, saved.state["update"]
    loop.buffer.load_state_dict(dict(saved.buffer))
    for addon in loop.addons:
        addon.load_state_dict(saved.state["addons"].get(addon.name, {}))
    loop.reference.load_state_dict(saved.state.get("reference", {}))
    observer.last_saved = saved.step
    for name, digest in saved.state["digests"].items():
        if observer.digests.get(name, digest) != digest:
            observer.tracker.display.note(f"warning: {name} has changed since the checkpoint was written")


async def shake_hands(engines: Engines, recipe: Recipe, *, vocab: int, version: int) -> str:
    """The start-up handshake; returns a line about it."""
    started = time.perf_counter()
    sequences = random_sequences(
        4, length=2 * engines.block + 5, vocab=vocab, seed=stable_seed(recipe.seed, "handshake")
    )
    measured = await handshake(
        engines.policy,
        engines.sync,
        engines.pool.replicas,
        tolerance=TOLERANCE[recipe.model.dtype],
        sequences=sequences,
        version=version,
        seed=stable_seed(recipe.seed, "handshake"),
    )
    gap = max((v for k, v in measured.items() if "gap" in k), default=float("nan"))
    return f"handshake: sampler and trainer agree to {gap:.1e} ({time.perf_counter() - started:.1f} s)"


def missing_evaluations(folder: RunDir, recipe: Recipe) -> bool:
    """Whether a kill came between the last checkpoint and the end of the last evaluation."""
    done = {record["dataset"] for record in read(folder.evals) if record["step"] >= recipe.steps}
    return recipe.evaluate.every > 0 and not done.issuperset(eval_names(recipe.data))
