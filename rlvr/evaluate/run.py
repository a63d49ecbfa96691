"""Draws n samples of every task, scores them, and says what that means for pass@k.

An evaluation sees raw verdicts only. A verdict that is an error is neither right nor wrong: it is left out
of every estimate and counted beside it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any, TypeVar

import numpy as np

from rlvr.engine.protocols import Verifiers
from rlvr.errors import ConfigError, DataError, EngineError
from rlvr.evaluate.interval import Estimate, estimate
from rlvr.evaluate.pass_at_k import maj_at_k, pass_at_k
from rlvr.evaluate.samples import Draw, Sample
from rlvr.types import Task, Verdict

T = TypeVar("T")
IN_FLIGHT = (256, 4096)  # samples asked of one engine at once, least and most
TOKENS_IN_FLIGHT = 1 << 21  # between the two: enough that it never waits, few enough that a long one is not late
CALL_TOKENS = 8192  # tokens that one call may come to: a long sample is a call of its own, and is kept as it ends


@dataclass(frozen=True, slots=True)
class Scored:
    """One sample with its raw verdict."""

    sample: Sample
    verdict: Verdict

    @property
    def key(self) -> str | None:
        """The canonical answer, None where nothing could be read."""
        return self.verdict.answer_key if self.verdict.parsed else None


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What n samples of one task came to. `valid` is n less the errors; correct, unparsed and distinct are of those."""

    id: str
    valid: int
    correct: int
    errors: Mapping[str, int]  # by kind
    truncated: int  # of all n samples
    unparsed: int  # no answer could be read
    distinct: int  # different parsed answers
    length: float  # mean tokens of all n samples
    task: Task = field(repr=False)
    scored: tuple[Scored, ...] = field(repr=False)

    def majority(self, k: int) -> float | None:
        """maj@k of the valid samples; None when nothing was parsed."""
        rows = [row for row in self.scored if row.verdict.error is None]
        return maj_at_k([row.key for row in rows], [row.verdict.correct for row in rows], k)


@dataclass(frozen=True, slots=True)
class EvalResult:
    """One dataset, evaluated once. Estimates are over the tasks that have enough valid samples."""

    dataset: str
    n: int
    ks: tuple[int, ...]
    scores: dict[str, Estimate]  # "pass@k" for every k; "maj@n" where answers have keys (0 for a task without any)
    short: dict[str, int]  # "pass@k" -> tasks left out of it, because errors left fewer than k samples
    tasks: tuple[TaskResult, ...]

    def record(self, step: int) -> dict[str, Any]:
        """One line of evals.jsonl: no clock, so that it depends on weights and seed alone."""
        line: dict[str, Any] = {"step": step, "dataset": self.dataset, "n": self.n, "tasks": len(self.tasks)}
        line |= {name: asdict(score) for name, score in self.scores.items()}
        return line | self.counts() | ({"short": self.short} if self.short else {})

    def counts(self) -> dict[str, Any]:
        """Errors, truncation, parse failures, diversity, length; rates are of all samples, `unparsed` of valid ones."""
        rows = self.tasks
        samples, valid = self.n * len(rows), sum(row.valid for row in rows)
        kinds: Counter[str] = Counter()
        for row in rows:
            kinds.update(row.errors)
        out: dict[str, Any] = {
            "errors": kinds.total(),
            "truncated": sum(row.truncated for row in rows) / samples,
            "unparsed": sum(row.unparsed for row in rows) / valid if valid else 0.0,
            "solved": sum(row.correct > 0 for row in rows),
            "distinct": float(np.mean([row.distinct for row in rows])),
            "length_mean": float(np.mean([row.length for row in rows])),
        }
        return out | ({"error_kinds": dict(sorted(kinds.items()))} if kinds else {})


async def evaluate(
    tasks: Sequence[Task],
    *,
    dataset: str,
    draw: Draw,
    verifiers: Verifiers,
    n: int,
    ks: Sequence[int],
    seed: int,
    max_tokens: int,
    gate: asyncio.Semaphore | None = None,
    limit: float = 1800.0,
    progress: Callable[[Sequence[Scored]], None] = lambda _: None,
) -> EvalResult:
    """Evaluate `tasks` with n samples each, as `draw` gives them; `progress` hears of samples as they are scored.

    A task's samples are asked for in calls of about CALL_TOKENS tokens; `gate` bounds the calls in flight (and may be
    shared with other datasets), `limit` is the seconds that one call may take. Raises ConfigError when k > n,
    DataError without tasks, EngineError beyond the limit or when every verdict of the dataset is an error.
    """
    if max(ks) > n:
        raise ConfigError(f"evaluate.k: pass@{max(ks)} needs at least {max(ks)} samples a task; got evaluate.n={n}")
    if not tasks:
        raise DataError(f"{dataset}: no task to evaluate")
    size = call_size(n, max_tokens=max_tokens)
    gate = gate or make_gate(size, max_tokens=max_tokens)

    async def one(task: Task, indices: Sequence[int]) -> list[Scored]:
        async with gate:
            try:
                async with asyncio.timeout(limit):
                    samples = await draw(task, indices)
                    verdicts = await verifiers.score(task, [sample.text for sample in samples])
            except TimeoutError:
                raise EngineError(
                    f"evaluation of {dataset}: task {task.id} took more than {limit:.0f} s (limits.group). "
                    "Raise the limit, or lower evaluate.max_tokens."
                ) from None
        scored = [Scored(sample, verdict) for sample, verdict in zip(samples, verdicts, strict=True)]
        progress(scored)
        return scored

    spans = [range(start, min(start + size, n)) for start in range(0, n, size)]
    calls = await together(one(task, span) for task in tasks for span in spans)
    parts = (calls[i : i + len(spans)] for i in range(0, len(calls), len(spans)))
    results = [judge(task, list(chain(*part))) for task, part in zip(tasks, parts, strict=True)]
    return await asyncio.to_thread(summarise, results, dataset=dataset, n=n, ks=ks, seed=seed)


def call_size(n: int, *, max_tokens: int) -> int:
    """How many of a task's n samples one call asks for."""
    return max(1, min(n, CALL_TOKENS // max_tokens))


def make_gate(size: int, *, max_tokens: int, samplers: int = 1) -> asyncio.Semaphore:
    """As many calls of `size` samples as keep `samplers` engines busy, and no more."""
    least, most = IN_FLIGHT
    samples = min(max(TOKENS_IN_FLIGHT // max_tokens, least), most)
    return asyncio.Semaphore(max(1, samplers * samples // size))


def summarise(results: Sequence[TaskResult], *, dataset: str, n: int, ks: Sequence[int], seed: int) -> EvalResult:
    """Estimates from per-task counts. Raises EngineError when no task has a valid sample for some k."""
    valid = np.array([row.valid for row in results])
    correct = np.array([row.correct for row in results])
    asked = tuple(sorted(set(ks)))
    scores: dict[str, Estimate] = {}
    short: dict[str, int] = {}
    for k in asked:
        enough = valid >= k
        if not enough.any():
            kinds = sum((Counter(row.errors) for row in results), Counter())
            raise EngineError(
                f"{dataset}: pass@{k} cannot be estimated: no task has {k} or more verdicts without error "
                f"({kinds.total()} errors in all: {', '.join(f'{kind} {m}' for kind, m in kinds.most_common())}). "
                "Look at the verifier and at its limits."
            )
        scores[f"pass@{k}"] = estimate(pass_at_k(valid[enough], correct[enough], k), seed=seed)
        if not enough.all():
            short[f"pass@{k}"] = int((~enough).sum())
    votes = majorities(results, n)
    if votes is not None:
        scores[f"maj@{n}"] = estimate(votes, seed=seed)
    return EvalResult(dataset=dataset, n=n, ks=asked, scores=scores, short=short, tasks=tuple(results))


def majorities(results: Sequence[TaskResult], k: int) -> list[float] | None:
    """maj@k of every task with a valid verdict (0 where nothing could be read); None where no answer has a key."""
    votes = [row.majority(k) for row in results if row.valid > 0]
    return [vote or 0.0 for vote in votes] if any(vote is not None for vote in votes) else None


def judge(task: Task, scored: Sequence[Scored]) -> TaskResult:
    """The counts of one task."""
    valid = [row for row in scored if row.verdict.error is None]
    return TaskResult(
        id=task.id,
        valid=len(valid),
        correct=sum(row.verdict.correct for row in valid),
        errors=dict(Counter(row.verdict.error for row in scored if row.verdict.error is not None)),
        truncated=sum(row.sample.finish == "length" for row in scored),
        unparsed=sum(not row.verdict.parsed for row in valid),
        distinct=len({row.key for row in valid} - {None}),
        length=float(np.mean([row.sample.tokens for row in scored])),
        task=task,
        scored=tuple(scored),
    )


async def together(jobs: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order; the first failure cancels the others and is raised as it is."""
    running = [asyncio.create_task(job) for job in jobs]
    try:
        return await asyncio.gather(*running)
    finally:
        for job in running:
            job.cancel()
        await asyncio.gather(*running, return_exceptions=True)
