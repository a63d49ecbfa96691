"""A toy policy and a sampler that is a pure function of the draw: what methods are tried on without an engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from rlvr.engine.forward import is_sequence, sequence
from rlvr.explore.base import Draw
from rlvr.objectives.streams import reduction
from rlvr.rollout.barrier import Act, Barrier
from rlvr.seeds import stable_seed
from rlvr.types import (
    F32,
    Completion,
    Finish,
    Group,
    Metrics,
    Origin,
    Request,
    Row,
    Sampling,
    Task,
    Trajectory,
    Verdict,
    aside,
)

VOCAB, PROMPT, GROUP, TASKS = 11, 3, 6, 4
PLAIN_STREAMS = ("logp", "entropy", "sum_sq")


class Toy(torch.nn.Module):
    """A bigram policy: logits of token t from token t-1, in float64."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.nn.Parameter(torch.randn(VOCAB, VOCAB, generator=generator, dtype=torch.float64))

    def streams(self, tokens: Tensor, temperature: Tensor, names: Iterable[str] = PLAIN_STREAMS) -> dict[str, Tensor]:
        """Token streams of [B,T] (or [L]) tokens; 0 at the first."""
        logp = (self.table[tokens[..., :-1]] / temperature[..., 1:, None]).log_softmax(-1)
        flat, targets = logp.flatten(0, -2), tokens[..., 1:].flatten()
        values = {name: reduction(name)(flat, targets).unflatten(0, logp.shape[:-1]) for name in names}
        return {name: torch.nn.functional.pad(value, (1, 0)) for name, value in values.items()}

    def measure(self, t: Trajectory | Row, names: Iterable[str] = PLAIN_STREAMS) -> dict[str, F32]:
        """Streams of one row without gradient: 0 where it is not trained on, or [d] of a sequence stream."""
        tokens, temperature = torch.from_numpy(t.tokens).long(), torch.from_numpy(t.temperature).double()
        whole = [name for name in names if is_sequence(name)]
        with torch.no_grad():
            out = self.streams(tokens, temperature, [name for name in names if name not in whole])
            states = self.table[tokens[:-1]][torch.from_numpy(t.weight[1:] != 0)]
            ranks = {name: sequence(name, states) for name in whole}
        made = {name: (value.numpy() * (t.weight != 0)).astype(np.float32) for name, value in out.items()}
        return made | {name: value.numpy() for name, value in ranks.items()}


def near(policy: Toy, *, seed: int, scale: float) -> Toy:
    """A policy a little way from `policy`."""
    moved = Toy(seed)
    with torch.no_grad():
        moved.table.mul_(scale).add_(policy.table)
    return moved


OLD = Toy(0)
CURRENT, REFERENCE, SAMPLER = near(OLD, seed=1, scale=0.3), near(OLD, seed=2, scale=0.3), near(OLD, seed=3, scale=0.02)
ASIDE = near(OLD, seed=4, scale=0.1)  # what samples after a step of unlearning


@dataclass
class ToyContext:
    """`Context` for group-time hooks."""

    seed: int = 7
    step: int = 0
    tasks: Sequence[Task] = ()
    sampling: Sampling = field(default_factory=Sampling)
    barrier: Barrier = field(default_factory=lambda: Barrier(TASKS))
    unlearned: bool = False

    async def meet(self, group: Group, act: Act, *, first: int = 0) -> tuple[Group, Metrics] | None:
        return await self.barrier.meet(self.step, group, act, first=first)

    async def unlearn(self, groups: Sequence[Group], *, eta: float, eps: float) -> Metrics:
        self.unlearned = True
        return {"p_before": 0.5, "p_after": 0.4}

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [_completion(r.key, r.sampling, stable_seed("context", r.key)) for r in requests]

    async def verify(self, task: Task, responses: Sequence[str]) -> list[Verdict]:
        return [_verdict(text) for text in responses]

    def encode(self, task: Task) -> np.ndarray:
        assert isinstance(task.prompt, str)
        asked = np.arange(PROMPT + min(len(task.prompt) - 1, 5), dtype=np.int32)  # a hinted prompt is longer
        return np.concatenate([asked, _begun(task)])

    def encode_response(self, text: str) -> np.ndarray:
        return np.array([*map(int, text.split()), VOCAB - 1], dtype=np.int32)

    def decoded(self, draw: int) -> int:
        return 0

    def decode(self, tokens: np.ndarray) -> str:
        return " ".join(map(str, tokens))


def toy_task(index: int) -> Task:
    """A task with two right demonstrations and a wrong one, and hints."""
    return Task(str(index), "?", "!", demos=("1 3", "1 2", "2 2 4 6 8"), hints=("2", "2 4", "2 4 6"))


def _begun(task: Task) -> np.ndarray:
    return np.array([*map(int, task.begun.split())], dtype=np.int32)


def _verdict(text: str) -> Verdict:
    if text == "":
        return Verdict(score=0.0, correct=False, error="timeout")
    right = sum(map(int, text.split())) % 2 == 0
    return Verdict(score=float(right), correct=right, answer_key=text[-1])


def _completion(key: str, sampling: Sampling, seed: int) -> Completion:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 9))
    tokens = rng.integers(0, VOCAB, n).astype(np.int32)[: sampling.max_tokens]
    finish: Finish = "length" if n > sampling.max_tokens else "stop"
    top = np.stack([tokens, (tokens + 1) % VOCAB], -1), np.log(np.full((len(tokens), 2), 0.4, np.float32))
    zeros = np.zeros(len(tokens), np.int32)
    return Completion(key, tokens, zeros.astype(np.float32), zeros, finish, top if sampling.top else None)


def _trajectory(prompt: np.ndarray, completion: Completion, sampling: Sampling, *, broken: bool) -> Trajectory:
    tokens = np.concatenate([prompt, completion.tokens])
    heat = np.ones(len(tokens), np.float32)
    heat[len(prompt) :] = sampling.temperatures(np.arange(len(completion.tokens)))
    sampled = np.arange(len(tokens)) >= len(prompt)
    text = "" if broken else " ".join(map(str, completion.tokens))
    t = Trajectory(
        tokens=tokens,
        origin=np.where(sampled, Origin.SAMPLED, Origin.PROMPT).astype(np.int8),
        weight=sampled.astype(np.float32),
        logprobs=np.zeros(len(tokens), np.float32),
        version=np.where(sampled, 0, -1).astype(np.int32),
        temperature=heat,
        text=text,
        finish=completion.finish,
        verdict=_verdict(text),
    )
    return replace(t, logprobs=SAMPLER.measure(t)["logp"])


def _of_the_aside(t: Trajectory) -> Trajectory:
    return replace(t, logprobs=ASIDE.measure(t)["logp"], version=np.where(t.version < 0, -1, aside(0)).astype(np.int32))


async def flat(draw: Draw) -> Group:
    """`draw.group` responses; one verdict of draw 0 is an error, all of draw 1 are right, all of draw 2 wrong."""
    prompt, rows, i = np.concatenate([np.arange(PROMPT, dtype=np.int32), _begun(draw.task)]), [], draw.first
    while len(rows) < draw.group:
        t = _trajectory(
            prompt,
            _completion(f"{draw.index}/{i}", draw.sampling, stable_seed("flat", draw.index, i)),
            draw.sampling,
            broken=draw.index == 0 and i == 0,
        )
        t = _of_the_aside(t) if isinstance(draw.ctx, ToyContext) and draw.ctx.unlearned else t
        i += 1
        if draw.index not in (1, 2) or (t.verdict and t.verdict.correct == (draw.index == 1)):
            rows.append(t)
    return Group(task=draw.task, draw=draw.index, trajectories=tuple(rows), prompt_len=PROMPT)
