"""Supervised fine-tuning: demonstrations as rows of the policy's supervised channel, global token mean."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rlvr import checkpoint, config
from rlvr.batching import micro_batches, token_batch
from rlvr.errors import DataError
from rlvr.export import SCRATCH, export_run
from rlvr.models import load_tokenizer, resolve_model
from rlvr.objectives.schedule import learning_rate
from rlvr.prompting import Prompter
from rlvr.recipe import Prompt, SftRecipe
from rlvr.resume import same_recipe
from rlvr.run_data import read_sets
from rlvr.seeds import stable_seed
from rlvr.tasks import TaskStream
from rlvr.track.display import Display, PlainDisplay, make_display
from rlvr.track.run_dir import ROOT, RunDir
from rlvr.track.tracker import Tracker, open_tracker
from rlvr.types import I32, Metrics, Plan, Row, Task, TokenBatch

SHOWN = frozenset({"sft_loss", "sft_tokens", "grad_norm", "skipped_updates", "lr"})


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `step` of `steps`; `already` when it was complete before."""

    path: Path
    step: int
    steps: int
    already: bool = False


class Trainer(Protocol):
    """What of `rlvr.engine.protocols.Policy` fine-tuning uses."""

    async def step(self, batch: TokenBatch, plan: Plan) -> Metrics: ...
    async def save(self, path: Path) -> None: ...
    async def restore(self, path: Path) -> None: ...


class LocalTrainer:
    """One DeepSpeed rank in this process."""

    def __init__(self, rank: Any, *, token_budget: int) -> None:
        self._rank, self._budget = rank, token_budget

    async def step(self, batch: TokenBatch, plan: Plan) -> Metrics:
        """One optimizer update."""
        rows = batch.picked
        micro = micro_batches([len(r.tokens) for r in rows], ranks=1, token_budget=self._budget)[0]
        return self._rank.step(rows, micro, batch.scale, batch.sft_scale, plan)

    async def save(self, path: Path) -> None:
        """Write the state below `path`."""
        self._rank.save(path)

    async def restore(self, path: Path) -> None:
        """Inverse of `save`."""
        self._rank.restore(path)


class Demonstrations:
    """The rows of every step: a pure function of (seed, step)."""

    def __init__(self, stream: TaskStream, tokenizer: Any, prompt: Prompt, *, rows: int, seed: int) -> None:
        self._stream, self._tokenizer, self._rows, self._seed = stream, tokenizer, rows, seed
        self._prompter = Prompter(tokenizer, prompt)
        _ = self._prompter.end  # refused here, not at the first row
        self._encode = lru_cache(maxsize=1 << 16)(self._encoded)

    def step(self, step: int) -> tuple[Row, ...]:
        """The rows of step `step` (0-based). Raises DataError for one that the model cannot hold."""
        draws = range(step * self._rows, (step + 1) * self._rows)
        return tuple(self._row(draw, self._stream.draw(draw)) for draw in draws)

    def _row(self, draw: int, task: Task) -> Row:
        pick = stable_seed(self._seed, "demo", draw) % len(task.demos)
        tokens, start = self._encode(_Key(task), pick)
        length = len(tokens)
        zeros, supervised = np.zeros(length, np.float32), np.ones(length, np.float32)
        supervised[:start] = 0.0
        return Row(
            key=f"{draw}/0", group=draw, tokens=tokens, weight=zeros, logprobs=np.full(length, np.nan, np.float32),
            version=np.full(length, -1, np.int32), temperature=np.ones(length, np.float32), advantages=zeros,
            sft_weight=supervised,
        )  # fmt: skip

    def _encoded(self, key: _Key, pick: int) -> tuple[I32, int]:
        """Token ids of prompt, demonstration and end, and where the demonstration starts."""
        prompt = self._prompter.encode(key.task)
        tokens = np.concatenate([prompt, self._prompter.encode_response(key.task.demos[pick])])
        if len(tokens) > self._tokenizer.model_max_length:
            raise DataError(
                f"dataset {key.task.source!r}, row {key.task.id!r}: prompt and demonstration {pick} have {len(tokens)} "
                f"tokens, the model holds {self._tokenizer.model_max_length}. Leave it out, or take a longer model."
            )
        return tokens, len(prompt)


@dataclass(frozen=True)
class _Key:
    """A task as a cache key: its id within its dataset."""

    task: Task

    def __hash__(self) -> int:
        return hash((self.task.source, self.task.id))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and (self.task.source, self.task.id) == (other.task.source, other.task.id)


async def run_sft(resolved: config.Resolved[SftRecipe], *, project: Path) -> Outcome:
    """Fine-tune, or resume, the run that the recipe names, and export it to `runs/NAME/export`.

    Raises ConfigError, DataError, EngineError or CheckpointError, each meant for people.
    """
    recipe = resolved.recipe
    folder = RunDir(ROOT / recipe.run)
    with folder.lock():
        checkpoint.clean(folder.checkpoints)
        newest = checkpoint.newest(folder.checkpoints)
        saved = checkpoint.load(newest) if newest else None
        if saved is not None:
            same_recipe(recipe, folder=folder)
        if saved is None or saved.step < recipe.steps:
            step = await _train(resolved, folder, saved, project=project)
            if step < recipe.steps:
                return Outcome(folder.path, step, recipe.steps)
        elif (folder.path / "export" / "config.json").is_file():
            return Outcome(folder.path, saved.step, recipe.steps, already=True)
        export_run(folder, project=project)
    return Outcome(folder.path, recipe.steps, recipe.steps)


async def _train(
    resolved: config.Resolved[SftRecipe], folder: RunDir, saved: checkpoint.Saved | None, *, project: Path
) -> int:
    """Steps done when training ended: all of them, or fewer after a signal."""
    recipe = resolved.recipe
    sets, _, notes = read_sets(recipe.data, project=project)
    tasks = [demonstrated(some) for some in sets]
    without = sum(map(len, sets)) - sum(map(len, tasks))
    notes += [f"{without} tasks have no demonstration and are left out"] if without else []
    model = base_model(recipe, [t for some in tasks for t in some], folder, project=project)
    folder.write_recipe(config.dump(recipe))
    m = recipe.model
    tokenizer = load_tokenizer(model, revision=m.revision, trust_remote_code=m.trust_remote_code)
    stream = TaskStream(tasks, [source.weight for source in recipe.data.train], seed=recipe.seed)
    rows = Demonstrations(stream, tokenizer, recipe.prompt, rows=recipe.rows, seed=recipe.seed)
    command = f"rlvr sft {shlex.quote(str(folder.recipe))}"  # the resolved recipe: overrides are in it
    async with start_trainer(recipe, model_path=model, resume=command, project=project) as trainer:
        if saved is not None:
            await trainer.restore(saved.policy)
        with open_tracker(
            folder,
            display=display(recipe.steps, title=recipe.run),
            resume=saved.step if saved else None,
            tensorboard=recipe.track.tensorboard,
            wandb=recipe.track.wandb,
            config=recipe.model_dump(mode="json"),
        ) as tracker:
            for note in notes:
                tracker.display.note(note)
            return await _loop(recipe, folder, trainer, tracker, rows, start=saved.step if saved else 0)


async def _loop(
    recipe: SftRecipe, folder: RunDir, trainer: Trainer, tracker: Tracker, rows: Demonstrations, *, start: int
) -> int:
    """The steps from `start` on, saving when due, after the last one and on a signal."""
    o, every = recipe.optimizer, recipe.checkpoint.every
    with stopping() as stopped:
        for step in range(start, recipe.steps):
            began = time.perf_counter()
            lr = learning_rate(step, lr=o.lr, schedule=o.schedule, warmup=o.warmup, total=recipe.steps)
            table = rows.step(step)
            batch = token_batch(table, range(len(table)), scale=np.zeros(len(table), np.float32))
            metrics = await trainer.step(batch, Plan(update=step, lr=lr, version=0, first=True))
            done = step + 1
            shown = {f"train/{name}": value for name, value in metrics.items() if name in SHOWN}
            tracker.step({"step": done, **shown, "time/step": time.perf_counter() - began})
            if done == recipe.steps or stopped() or (every > 0 and done % every == 0):
                checkpoint.commit(
                    await checkpoint.write(folder.checkpoints, step=done, state={}, buffer={}, policy=trainer.save)
                )
                checkpoint.prune(folder.checkpoints, keep=recipe.checkpoint.keep, best=None)
            if stopped():
                return done
            await asyncio.sleep(0)
    return recipe.steps


class stopping:
    """Within the block the first SIGINT or SIGTERM only sets a flag; the second acts as usual."""

    def __enter__(self) -> Callable[[], bool]:
        self._flag = False
        self._before = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}
        return lambda: self._flag

    def _note(self, number: int, frame: object) -> None:
        self._flag = True
        self.__exit__()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Lines(PlainDisplay):
    """Twenty lines for a whole run: a step of fine-tuning is short."""

    def __init__(self, steps: int, *, title: str) -> None:
        super().__init__(steps, title=title, stream=sys.stdout)
        self._every = max(1, steps // 20)

    def step(self, metrics: Mapping[str, float]) -> None:
        """A line now and then."""
        done = int(metrics["step"])
        if done % self._every == 0:
            loss = metrics.get("train/sft_loss", float("nan"))
            self.note(f"step {done}  loss {loss:.3f}  {metrics['time/step']:.2f} s")


def display(steps: int, *, title: str) -> Display:
    """The live display in a terminal, a few lines elsewhere."""
    return make_display(steps, title=title) if sys.stdout.isatty() else Lines(steps, title=title)


def demonstrated(tasks: Sequence[Task]) -> list[Task]:
    """The tasks with a demonstration. Raises DataError where none has one."""
    kept = [task for task in tasks if task.demos]
    if not kept:
        raise DataError(
            f"dataset {tasks[0].source!r}: none of its {len(tasks)} tasks has a demonstration (`Task.demos`), and "
            "fine-tuning learns from nothing else. Choose a dataset with worked solutions."
        )
    return kept


def base_model(recipe: SftRecipe, tasks: Sequence[Task], folder: RunDir, *, project: Path) -> str:
    """The folder (or Hub name) of the initial weights; a scratch model is built once, in `RUN/base`."""
    if recipe.model.scratch is None:
        return resolve_model(recipe.checkpoint.start_from or str(recipe.model.path), project=project)
    target = folder.path / SCRATCH
    if not (target / "config.json").is_file():
        from rlvr.engine.scratch import build

        partial = folder.path / f".{SCRATCH}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        seed = stable_seed(recipe.seed, "scratch")
        build(recipe.model.scratch, texts(tasks, recipe.prompt), path=partial, seed=seed)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(partial, target)
    return str(target)


def texts(tasks: Sequence[Task], prompt: Prompt) -> list[str]:
    """All that the tokenizer of a scratch model has to know."""
    out = [prompt.system or "", prompt.template.replace("{prompt}", ""), "\n\n"]
    for task in tasks:
        out += [task.prompt] if isinstance(task.prompt, str) else [m["content"] for m in task.prompt]
        out += [task.answer, *task.demos]
    return out


@asynccontextmanager
async def start_trainer(recipe: SftRecipe, *, model_path: str, resume: str, project: Path) -> AsyncIterator[Trainer]:
    """One rank in this process, or several as Ray actors; they end with the block."""
    from rlvr.engine.deepspeed_policy import PolicySpec, RankPolicy, environment, leave

    r, model = recipe.resources, recipe.model
    specs = [
        PolicySpec(
            model_path=model_path, dtype=model.dtype, gradient_checkpointing=model.gradient_checkpointing,
            trust_remote_code=model.trust_remote_code, revision=model.revision, device=r.device,
            optimizer=recipe.optimizer, deepspeed=recipe.deepspeed, project=str(project), seed=recipe.seed,
            rank=rank, world_size=r.trainers, threads=r.threads,
        )
        for rank in range(r.trainers)
    ]  # fmt: skip
    if r.trainers == 1 and r.address is None:
        rank = RankPolicy(specs[0])
        try:
            yield LocalTrainer(rank, token_budget=r.token_budget)
        finally:
            rank.close()
            leave()
        return
    from rlvr.cluster import RankActor, ray_session
    from rlvr.cluster_policy import RayPolicy

    async with ray_session(address=r.address, cpus=max(2, r.trainers)):
        env, gpus = environment(r.device, threads=r.threads), float(r.device == "gpu")
        actors = [RankActor.options(num_cpus=0, num_gpus=gpus).remote(env) for _ in specs]
        policy = RayPolicy(actors, token_budget=r.token_budget, limit=recipe.limits.step, resume=resume)
        await policy.start(specs, limit=recipe.limits.start)
        yield policy
