"""Flat groups: G independent responses to one prompt, scored, as training rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np

from rlvr.engine.protocols import Sampler, Verifiers
from rlvr.explore.base import Draw, Sample
from rlvr.seeds import stable_seed
from rlvr.types import F32, I32, Completion, Group, Origin, Request, Task, Trajectory, Verdict


class Encoder(Protocol):
    """Tasks to token ids and back."""

    def encode(self, task: Task) -> I32:
        """Prompt token ids [L]."""
        ...

    def decode(self, tokens: I32) -> str:
        """Text of a response."""
        ...


def flat_groups(sampler: Sampler, verifiers: Verifiers, encoder: Encoder, *, seed: int) -> Sample:
    """The base of every sampler: `draw.group` responses, each with a seed of its own.

    The text of one, and what is judged, begins with `Task.begun`; `prompt_len` is the prompt's without it.
    """

    async def sample(draw: Draw) -> Group:
        prompt = encoder.encode(draw.task)
        asked = len(encoder.encode(replace(draw.task, begun=""))) if draw.task.begun else len(prompt)
        requests = [
            Request(
                key=f"{draw.index}/{i}",
                tokens=prompt,
                sampling=replace(draw.sampling, seed=stable_seed(seed, "sample", draw.index, i)),
                home=draw.index,
            )
            for i in range(draw.first, draw.first + draw.group)
        ]
        completions = await sampler.generate(requests)
        texts = [encoder.decode(np.concatenate([prompt[asked:], c.tokens])) for c in completions]
        verdicts = await verifiers.score(draw.task, texts)
        rows = zip(completions, texts, verdicts, strict=True)
        return Group(
            task=draw.task,
            draw=draw.index,
            trajectories=tuple(
                trajectory(prompt, c, text, v, temperature=draw.sampling.temperatures(np.arange(len(c.tokens))))
                for c, text, v in rows
            ),
            prompt_len=asked,
        )

    return sample


def trajectory(
    prompt: I32,
    completion: Completion,
    text: str,
    verdict: Verdict,
    *,
    temperature: float | F32,
    source: str = "policy",
) -> Trajectory:
    """One row of a flat group: the prompt, then the sampled tokens, each trained on with weight 1.

    `temperature` is one number, or one for each sampled token.
    """
    n, m = len(prompt), len(completion.tokens)
    heat = np.ones(n + m, dtype=np.float32)
    heat[n:] = temperature
    sampled = np.arange(n + m) >= n
    blank = np.zeros(n, dtype=np.float32)
    return Trajectory(
        tokens=np.concatenate([prompt, completion.tokens]).astype(np.int32),
        origin=np.where(sampled, Origin.SAMPLED, Origin.PROMPT).astype(np.int8),
        weight=sampled.astype(np.float32),
        logprobs=np.concatenate([blank, completion.logprobs]).astype(np.float32),
        version=np.concatenate([np.full(n, -1), completion.versions]).astype(np.int32),
        temperature=heat,
        text=text,
        finish=completion.finish,
        verdict=verdict,
        source=source,
    )


def joined(group: Group, more: Group) -> Group:
    """One group of the responses of two rounds of the same draw, in order, with the counts of both."""
    at = len(group)
    moved = (t if t.parent is None else replace(t, parent=(t.parent[0] + at, t.parent[1])) for t in more.trajectories)
    counts = {key: group.counts.get(key, 0.0) + more.counts.get(key, 0.0) for key in {**group.counts, **more.counts}}
    return group.with_(trajectories=(*group.trajectories, *moved), counts=counts)


def informative(group: Group) -> bool:
    """Whether dynamic sampling keeps a group: its **raw** correctness differs among rows without error.

    DAPO (2503.14476): filtering on the shaped reward would keep nearly every group.
    """
    correct = group.correct[group.valid]
    return len(correct) > 1 and bool(correct.any()) and not bool(correct.all())


def drop_reason(group: Group, *, keep: str) -> str | None:
    """Why a group is not trained on, or None."""
    if not group.valid.any():
        return "every verdict is an error"
    if keep == "informative" and not informative(group):
        correct = group.correct[group.valid]
        return "one row" if len(correct) < 2 else "all right" if correct.all() else "all wrong"
    return None
