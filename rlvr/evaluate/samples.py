"""Where responses come from: a sampler, or the cache of what was sampled before."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from rlvr.engine.protocols import Sampler
from rlvr.rollout.groups import Encoder
from rlvr.seeds import stable_seed
from rlvr.types import Finish, Request, Sampling, Task


@dataclass(frozen=True, slots=True)
class Sample:
    """One response as a verifier sees it."""

    text: str
    tokens: int
    finish: Finish


Draw = Callable[[Task, Sequence[int]], Awaitable[list[Sample]]]  # the samples of a task that have these numbers


def sample_seed(seed: int, task: Task, index: int) -> int:
    """The seed of sample `index` of a task: it does not depend on n, so that more samples keep the first ones."""
    return stable_seed(seed, "eval", task.id, index)


def fresh(sampler: Sampler, encoder: Encoder, *, sampling: Sampling, dataset: str, seed: int) -> Draw:
    """Samples from the engine. Sample i of a task has the key "eval/<dataset>/<task id>/<i>"."""

    async def draw(task: Task, indices: Sequence[int]) -> list[Sample]:
        tokens = encoder.encode(task)
        requests = [
            Request(
                key=f"eval/{dataset}/{task.id}/{i}",
                tokens=tokens,
                sampling=replace(sampling, seed=sample_seed(seed, task, i)),
            )
            for i in indices
        ]
        completions = await sampler.generate(requests)
        return [Sample(encoder.decode(c.tokens), len(c.tokens), c.finish) for c in completions]

    return draw
