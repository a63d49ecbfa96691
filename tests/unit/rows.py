"""Small groups for unit tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlvr.rollout.groups import trajectory
from rlvr.types import Completion, Group, Task, Verdict


def make_group(
    draw: int,
    *,
    scores: Sequence[float],
    errors: Sequence[str | None] | None = None,
    finishes: Sequence[Any] | None = None,
    lengths: Sequence[int] | None = None,
    version: int = 0,
    prompt: int = 2,
) -> Group:
    """One group of responses (3 tokens each by default) with the given raw scores."""
    errors = errors or [None] * len(scores)
    finishes = finishes or ["stop"] * len(scores)
    lengths = lengths or [3] * len(scores)
    tokens = np.arange(1, prompt + 1, dtype=np.int32)
    rows = []
    for i, (score, error, finish, n) in enumerate(zip(scores, errors, finishes, lengths, strict=True)):
        done = Completion(
            key=f"{draw}/{i}",
            tokens=np.arange(n, dtype=np.int32) + 5 + i,
            finish=finish,
            logprobs=np.full(n, -0.5 - 0.1 * i, dtype=np.float32),
            versions=np.full(n, version, dtype=np.int32),
        )
        verdict = Verdict(score=score, correct=score > 0.5, error=error)
        rows.append(trajectory(tokens, done, f"text {i}", verdict, temperature=1.0))
    task = Task(id=f"t{draw}", prompt="?", answer="1", source="unit")
    return Group(task=task, draw=draw, trajectories=tuple(rows), prompt_len=prompt)
