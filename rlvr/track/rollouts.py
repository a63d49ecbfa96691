"""Every sampled group as one line of `rollouts.jsonl`, readable by `rlvr view`.

Nothing here depends on the clock (a verdict's seconds are left out), so a synchronous run's file depends on
its seed alone. Numbers are the shortest decimal that reads back to the same float32.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np

from rlvr.types import F32, Group, Origin, Task, Trajectory, Verdict


def group_record(group: Group, *, step: int) -> dict[str, Any]:
    """The group as plain JSON values; `step` is the step that collected it."""
    rewards = group.rewards if group.rewards is not None else [None] * len(group)
    advantages = group.advantages if group.advantages is not None else [None] * len(group)
    rows = zip(group.trajectories, rewards, advantages, strict=True)
    return {
        "step": step,
        "draw": group.draw,
        "task": group.task.id,
        "source": group.task.source,
        "prompt": _prompt(group.task),
        "answer": group.task.answer,
        "dropped": group.dropped,
        "responses": [_response(row, reward, advantage) for row, reward, advantage in rows],
    }


def _response(row: Trajectory, reward: float | None, advantages: F32 | None) -> dict[str, Any]:
    """One trajectory. `versions` are spans [weight version, tokens] over the response; -1 was not sampled."""
    response = row.origin != Origin.PROMPT
    record: dict[str, Any] = {
        "text": row.text,
        "finish": row.finish,
        "tokens": row.response_len,
        "source": row.source,
        "verdict": None if row.verdict is None else _verdict(row.verdict),
        "reward": None if reward is None else _short(reward),
        "advantage": None if advantages is None else _advantage(advantages, row),
        "versions": [[version, len(list(span))] for version, span in groupby(row.version[response].tolist())],
    }
    origins = [Origin(value).name.lower() for value in row.origin[response].tolist()]
    if set(origins) - {"sampled"}:
        record["origins"] = [[name, len(list(span))] for name, span in groupby(origins)]
    named = {"parent": row.parent, "episode": row.episode, "adv_group": row.adv_group}
    return record | {name: value for name, value in named.items() if value is not None}


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "score": _short(verdict.score),
        "correct": verdict.correct,
        "answer_key": verdict.answer_key,
        "parsed": verdict.parsed,
        "error": verdict.error,
        "detail": verdict.detail,
        "version": verdict.version,
    }


def _advantage(advantages: F32, row: Trajectory) -> float | list[float | None] | None:
    """One number when it is constant over the trained tokens, None when none is trained, else one a response token."""
    trained = advantages[row.weight != 0]
    if trained.size == 0:
        return None
    if (trained == trained[0]).all():
        return _short(trained[0])
    return [_short(value) for value in advantages[row.origin != Origin.PROMPT]]


def _prompt(task: Task) -> str | list[dict[str, str]]:
    return task.prompt if isinstance(task.prompt, str) else [dict(message) for message in task.prompt]


def _short(value: float | np.floating[Any]) -> float | None:
    number = float(str(np.float32(value)))
    return number if np.isfinite(number) else None
