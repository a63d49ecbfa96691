"""SEELE (2509.06923): a question is asked with as much of its solution as makes half of the answers right.

    round i = 1 .. m:   l = round(p_i |y|);  n = G / m responses behind  x + y_1:l;   a_i = share of right ones
                        f(p) = b + (1 - b) / (1 + exp(-k (p + mu)))                        fitted to all (l / |y|, a)
                        p_i+1 = f^-1(1/2) = -mu - ln((1 - b) / (1/2 - b) - 1) / k;   0 where b >= 1/2
    A    = R - mean R over all G rows (`advantage: {kind: dr_grpo}`)                                    R, A [G]
    loss = the recipe's at generated tokens - gamma * mean of log pi(y_t | x, y_<t) over hint tokens    of the update

y is the solution in |y| steps: `Task.hints` are its beginnings of 1, 2, .. |y| - 1 steps, so the whole is never shown.
A hint stands behind the prompt, as the beginning of the response: in its own tokens, which change none of the
question's, sampled behind and trained on by the same ids; verdicts are of hint and continuation together. So
behaviour log-probs are known, and without a hint the row is plain sampling's. A row behind a hint bears the method's
name: it is in no pass rate (which reads 0 where every row has a hint), and what looks at the policy's own rows
(demonstrations, critiques) leaves it. p_1 is (|y| - 1) / |y|, and when the task comes back the p_m+1 of its last time
(the paper: of its last epoch). A group that `keep: informative` dropped leaves none.

The fit is bounded least squares (scipy's TRF), k in [1, 50], b in [0, 0.9], mu in [-1.5, 0.5]; accuracies at equal p
are averaged first. Three parameters need three different p and accuracies on both sides of 1/2 (else the floor b is
anybody's guess); without, p_i+1 is read off straight lines through (0, 0), the points and (1, 1). The paper does not
say what its fit of the first rounds is.
One baseline over prompts with different hints pushes the rows with the longer ones up, as in the paper. The imitation
term is the log-likelihood (as in UFT; the paper's equation has the probability) and its mean is over the tokens of the
update. The paper's KL is the recipe's `kl: {coef: 0.001}`. No released code was found. Fidelity: close.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import NonNegativeFloat, NonNegativeInt

from rlvr.errors import ConfigError, DataError
from rlvr.explore.base import AddOn, AddOnConfig, Context, Draw, Sample
from rlvr.rollout.groups import joined
from rlvr.rollout.guidance import told
from rlvr.rollout.rounds import round_problems
from rlvr.types import Group, Metrics, Origin, Task, Trajectory

if TYPE_CHECKING:
    from rlvr.recipe import Recipe

TARGET = 0.5
BOUNDS = ((1.0, 0.0, -1.5), (50.0, 0.9, 0.5))  # of (k, b, mu)
Points = Sequence[tuple[float, float]]  # (hint rate, accuracy)


class Config(AddOnConfig):
    """`rounds` m, which divide the recipe's `group` (0: off), and `gamma` of the imitation of hints."""

    rounds: NonNegativeInt = 4
    gamma: NonNegativeFloat = 0.001


class SEELE(AddOn):
    """Rounds of responses behind beginnings of the solution, as long as the accuracies so far ask for."""

    kind = "seele"
    Config = Config
    lengthens: ClassVar[bool] = True

    def __init__(self, config: Any, *, name: str = "", seed: int = 0) -> None:
        super().__init__(config, name=name, seed=seed)
        self.rates: dict[str, float] = {}  # Task.key -> p for its next time

    def problems(self, recipe: Recipe) -> Sequence[str]:
        """A group that rounds do not divide; others that sample a draw in a way of their own."""
        rounds, found = self.config.rounds, []
        if rounds and recipe.group % rounds:
            found.append(f"{self.kind!r}: group is {recipe.group}, which rounds = {rounds} do not divide; change one")
        kinds = [spec.kind for spec in recipe.explore]
        if self.kind in kinds and "exgrpo" in kinds[kinds.index(self.kind) :]:
            found.append(f"'exgrpo' gives a draw another task, whose hints {self.kind!r} shows: name it before")
        if recipe.advantage.kind == "remax":
            found.append(f"{self.kind!r} asks under several prompts, 'remax' has one baseline: name another estimator")
        return [*found, *round_problems(self.kind, recipe)]

    async def prepare(self, ctx: Context) -> None:
        """Raises ConfigError where no task has a hint, DataError for hints that are no beginnings of one another."""
        if not self.config.rounds:
            return
        if not any(task.hints for task in ctx.tasks):
            raise ConfigError(
                f"explore: {self.name} shows beginnings of solutions, and no training task has a hint (`Task.hints`). "
                "Choose a dataset with hints (of arithmetic: `hints: true`)."
            )
        bad = [task.key for task in ctx.tasks if not all(longer(a, b) for a, b in pairwise(("", *task.hints)))]
        if bad:
            raise DataError(
                f"explore: {self.name} needs hints that are the beginnings of one solution, one step longer each, and "
                f"{len(bad)} tasks have others (first: {bad[0]!r}): give `Task.hints` as y_1, y_1 y_2, y_1 y_2 y_3 ..."
            )

    def sampler(self, sample: Sample) -> Sample:
        """Rounds where the task has a solution in steps; else the plain group, counted."""

        async def hinted(draw: Draw) -> Group:
            if draw.task.hints:
                return await self._rounds(sample, draw)
            group = await sample(draw)
            return group.with_(counts={**group.counts, f"{self.name}/without": 1.0})

        return hinted if self.config.rounds else sample

    async def _rounds(self, sample: Sample, draw: Draw) -> Group:
        steps, done = len(draw.task.hints) + 1, 0
        rate = self.rates.get(draw.task.key, (steps - 1) / steps)
        parts: list[Group] = []
        points: list[tuple[float, float]] = []
        said = {"rounds": 0.0, "rate_sum": 0.0, "refused": 0.0, "fitted": 0.0}
        for size in sizes(draw.group, self.config.rounds):
            shown, task, refused = fitting(draw, wanted=math.floor(rate * steps + 0.5))
            part = await sample(replace(draw, task=task, group=size, first=draw.first + done))
            own = part.judged  # not what was replayed
            parts.append(self._imitated(part))
            done += size
            said["rounds"] += 1
            said["rate_sum"] += shown / steps
            said["refused"] += refused
            if own.any():
                points.append((shown / steps, float(part.correct[own].mean())))
                said |= {"judged": 1.0, "gap": abs(points[-1][1] - TARGET)}  # of the last round that has a verdict
                rate, said["fitted"] = next_rate(points, most=(steps - 1) / steps)
        group = parts[0]
        for part in parts[1:]:
            group = joined(group, part)
        said |= {"hinted": float(sum(t.source == self.name for t in group.trajectories)), "next": rate}
        return group.with_(task=draw.task, counts={**group.counts, **{f"{self.name}/{k}": v for k, v in said.items()}})

    def _imitated(self, group: Group) -> Group:
        """The group with gamma on the tokens of hints, in the supervised channel."""

        def one(t: Trajectory) -> Trajectory:
            places = np.arange(len(t.tokens))
            hint = (t.origin == Origin.PROMPT) & (places >= group.prompt_len)
            if t.source != "policy" or not hint.any():
                return t
            return replace(t, sft_weight=(self.config.gamma * hint).astype(np.float32), source=self.name)

        return group.with_(trajectories=tuple(map(one, group.trajectories)))

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """`active`: rows behind a hint; `rate_mean`: share of steps shown, over rounds; `gap`: |a - 1/2| in last ones.

        `without`: groups whose task has no hint; `refused`: hints too long for the prompt, where a shorter one was
        shown; `fitted`: share of groups whose next rate comes from the fit.
        """
        if not self.config.rounds:
            return {}
        for group in groups:
            if (rate := group.counts.get(f"{self.name}/next")) is not None:
                self.rates[group.task.key] = rate
        said, mine = told(groups, self.name), sum(f"{self.name}/next" in group.counts for group in groups)
        out = {"active": said.get("hinted", 0.0), "without": said.get("without", 0.0)}
        if not mine:
            return out
        out |= {"refused": said["refused"], "rate_mean": said["rate_sum"] / said["rounds"]}
        judged = said.get("judged", 0.0)
        return out | {"fitted": said["fitted"] / mine} | ({"gap": said["gap"] / judged} if judged else {})

    def state_dict(self) -> dict[str, Any]:
        """The rates."""
        return {"rates": self.rates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.rates = dict(state["rates"])


def longer(a: str, b: str) -> bool:
    """Whether b begins with a and goes on."""
    return b.startswith(a) and len(b) > len(a)


def sizes(group: int, rounds: int) -> list[int]:
    """Responses of each round; they differ by one where an outer method asks for a group that does not divide."""
    return [n for i in range(rounds) if (n := group * (i + 1) // rounds - group * i // rounds)]


def fitting(draw: Draw, *, wanted: int) -> tuple[int, Task, int]:
    """The longest hint of at most `wanted` steps that fits into the prompt, the task with it, and those that do not."""
    assert draw.ctx is not None, "hints are shown within a run"
    for shown in range(min(wanted, len(draw.task.hints)), 0, -1):
        task = replace(draw.task, begun=draw.task.hints[shown - 1])
        try:
            draw.ctx.encode(task)
        except DataError:
            continue
        return shown, task, wanted - shown
    return 0, draw.task, wanted


def next_rate(points: Points, *, most: float) -> tuple[float, float]:
    """The hint rate in [0, most] for an accuracy of 1/2, from all (rate, accuracy); 1 where it is the fit's, else 0."""
    rates = sorted({p for p, _ in points})
    means = [float(np.mean([a for p, a in points if p == rate])) for rate in rates]
    straight = by_lines(rates, means)
    if len(rates) < 3 or min(means) >= TARGET or max(means) <= TARGET:
        return min(straight, most), 0.0
    return min(max(inverse(*fitted(rates, means, near=straight)), 0.0), most), 1.0


def by_lines(rates: Sequence[float], means: Sequence[float]) -> float:
    """Where lines through (0, 0), the points and (1, 1) reach 1/2: behind the last point below it; 0 where none is."""
    known = [*([] if rates[0] <= 0 else [(0.0, 0.0)]), *zip(rates, means, strict=True), (1.0, 1.0)]
    below = [i for i, (_, a) in enumerate(known) if a < TARGET]
    if not below:
        return 0.0
    (p, a), (q, c) = known[below[-1]], known[below[-1] + 1]
    return p + (q - p) * (TARGET - a) / (c - a)


def fitted(rates: Sequence[float], means: Sequence[float], *, near: float) -> tuple[float, float, float]:
    """(k, b, mu) of least squares within BOUNDS, from a curve that crosses 1/2 about `near`."""
    from scipy.optimize import least_squares

    p, a = np.asarray(rates), np.asarray(means)

    def residual(x: np.ndarray) -> np.ndarray:
        return accuracy(p, *x) - a

    def slopes(x: np.ndarray) -> np.ndarray:
        k, b, mu = x
        s = accuracy(p, k, 0.0, mu)
        return np.stack([(1 - b) * s * (1 - s) * (p + mu), 1 - s, (1 - b) * s * (1 - s) * k], axis=-1)

    k, b, mu = least_squares(residual, (10.0, 0.1, -near), jac=slopes, bounds=BOUNDS, method="trf").x  # type: ignore[arg-type]
    return float(k), float(b), float(mu)


def accuracy(p: Any, k: float, b: float, mu: float) -> Any:
    """f(p) of the three-parameter logistic model of item response theory."""
    return b + (1 - b) / (1 + np.exp(-k * (p + mu)))


def inverse(k: float, b: float, mu: float) -> float:
    """f^-1(1/2), not clipped; 0 where guessing alone is as good."""
    return 0.0 if b >= TARGET else -mu - math.log((1 - b) / (TARGET - b) - 1) / k
