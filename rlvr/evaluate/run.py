"""Samples every task n times, scores the responses, and says what that means for pass@k.

An evaluation sees raw verdicts only. A verdict that is an error is neither right nor wrong: it is left out
of every estimate and counted beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np

from rlvr.engine.protocols import Sampler, Verifiers
from rlvr.errors import ConfigError, DataError, EngineError
from rlvr.evaluate.pass_at_k import Estimate, estimate, maj_at_n, pass_at_k
from rlvr.rollout.groups import Encoder
from rlvr.seeds import stable_seed
from rlvr.types import I32, Completion, Request, Sampling, Task, Verdict

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What n samples of one task came to. `valid` is n less the errors; the other counts are of valid samples."""

    id: str
    valid: int
    correct: int
    errors: int
    truncated: int  # of all n samples
    distinct: int  # different parsed answers
    majority: float | None  # maj@n; None when nothing was parsed
    length: float  # mean tokens of all n samples


@dataclass(frozen=True, slots=True)
class EvalResult:
    """One dataset, evaluated once. Estimates are over the tasks that have enough valid samples."""

    dataset: str
    n: int
    scores: dict[str, Estimate]  # "pass@k" for every k; "maj@n" where answers have keys (0 for a task without any)
    short: dict[str, int]  # "pass@k" -> tasks left out of it, because errors left fewer than k samples
    tasks: tuple[TaskResult, ...]

    def record(self, step: int) -> dict[str, Any]:
        """One line of evals.jsonl: no clock, so that it depends on weights and seed alone."""
        samples = self.n * len(self.tasks)
        rows = self.tasks
        line: dict[str, Any] = {"step": step, "dataset": self.dataset, "n": self.n, "tasks": len(rows)}
        line |= {name: asdict(score) for name, score in self.scores.items()}
        line |= {
            "errors": sum(row.errors for row in rows),
            "truncated": sum(row.truncated for row in rows) / samples,
            "solved": sum(row.correct > 0 for row in rows),
            "distinct": float(np.mean([row.distinct for row in rows])),
            "length_mean": float(np.mean([row.length for row in rows])),
        }
        return line | ({"short": self.short} if self.short else {})

    def details(self) -> list[dict[str, Any]]:
        """Every task's counts, JSON-able."""
        return [asdict(row) for row in self.tasks]


async def evaluate(
    tasks: Sequence[Task],
    *,
    dataset: str,
    sampler: Sampler,
    verifiers: Verifiers,
    encoder: Encoder,
    sampling: Sampling,
    n: int,
    ks: Sequence[int],
    seed: int,
    concurrency: int = 64,
    limit: float = 1800.0,
) -> EvalResult:
    """Evaluate `tasks` with n samples each.

    Sample i of a task has the key "eval/<dataset>/<task id>/<i>" and a seed from (seed, "eval", task id, i):
    two evaluations with one seed are paired. `concurrency` tasks are in flight at once; `limit` is the
    seconds that one of them may take. Raises ConfigError when k > n, DataError without tasks, EngineError
    beyond the limit or when every verdict of the dataset is an error.
    """
    if max(ks) > n:
        raise ConfigError(f"evaluate.k: pass@{max(ks)} needs at least {max(ks)} samples a task; got evaluate.n={n}")
    if not tasks:
        raise DataError(f"{dataset}: no task to evaluate")
    gate = asyncio.Semaphore(concurrency)

    async def one(task: Task) -> TaskResult:
        requests = _requests(task, dataset=dataset, tokens=encoder.encode(task), sampling=sampling, n=n, seed=seed)
        async with gate:
            try:
                async with asyncio.timeout(limit):
                    completions = await sampler.generate(requests)
                    verdicts = await verifiers.score(task, [encoder.decode(c.tokens) for c in completions])
            except TimeoutError:
                raise EngineError(
                    f"evaluation of {dataset}: task {task.id} took more than {limit:.0f} s (limits.group). "
                    "Raise the limit, or lower evaluate.max_tokens."
                ) from None
        return _judge(task, completions, verdicts)

    results = await _all(one(task) for task in tasks)
    return summarise(results, dataset=dataset, n=n, ks=ks, seed=seed)


def summarise(results: Sequence[TaskResult], *, dataset: str, n: int, ks: Sequence[int], seed: int) -> EvalResult:
    """Estimates from per-task counts. Raises EngineError when no task has a valid sample for some k."""
    valid = np.array([row.valid for row in results])
    correct = np.array([row.correct for row in results])
    scores: dict[str, Estimate] = {}
    short: dict[str, int] = {}
    for k in sorted(set(ks)):
        enough = valid >= k
        if not enough.any():
            raise EngineError(
                f"{dataset}: pass@{k} cannot be estimated: no task has {k} or more verdicts without error "
                f"({sum(row.errors for row in results)} errors in all). Look at the verifier and at its limits."
            )
        scores[f"pass@{k}"] = estimate(pass_at_k(valid[enough], correct[enough], k), seed=seed)
        if not enough.all():
            short[f"pass@{k}"] = int((~enough).sum())
    if any(row.majority is not None for row in results):
        votes = [row.majority or 0.0 for row in results if row.valid > 0]
        scores[f"maj@{n}"] = estimate(votes, seed=seed)
    return EvalResult(dataset=dataset, n=n, scores=scores, short=short, tasks=tuple(results))


def _requests(task: Task, *, dataset: str, tokens: I32, sampling: Sampling, n: int, seed: int) -> list[Request]:
    return [
        Request(
            key=f"eval/{dataset}/{task.id}/{i}",
            tokens=tokens,
            sampling=replace(sampling, seed=stable_seed(seed, "eval", task.id, i)),
        )
        for i in range(n)
    ]


def _judge(task: Task, completions: Sequence[Completion], verdicts: Sequence[Verdict]) -> TaskResult:
    valid = [verdict for verdict in verdicts if verdict.error is None]
    keys = [verdict.answer_key if verdict.parsed else None for verdict in valid]
    return TaskResult(
        id=task.id,
        valid=len(valid),
        correct=sum(verdict.correct for verdict in valid),
        errors=len(verdicts) - len(valid),
        truncated=sum(completion.finish == "length" for completion in completions),
        distinct=len(set(keys) - {None}),
        majority=maj_at_n(keys, [verdict.correct for verdict in valid]),
        length=float(np.mean([len(completion.tokens) for completion in completions])),
    )


async def _all(jobs: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order; the first failure cancels the others and is raised as it is."""
    running = [asyncio.create_task(job) for job in jobs]
    try:
        return await asyncio.gather(*running)
    finally:
        for job in running:
            job.cancel()
        await asyncio.gather(*running, return_exceptions=True)
