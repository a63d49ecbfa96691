r"""DIVER (2509.26209): a right answer that was reached in another way than its siblings' earns more.

    R_i <- R_i + w_k min(D_i, cap)   if row i is correct                                R [G]
    textual     D_i = 1 - mean over j != i of (BLEU(i, j) + BLEU(j, i)) / 2             cap 0.91
    equational  D_i = share of the formulas of i that no other response of the group has; 0 without any; cap 0.68
    w_k = w (1 + cos(pi min(k / steps, 1))) / 2                                         step k; from w down to 0

BLEU weighs n-grams of 1 to 5 words by 0.02, 0.1, 0.15, 0.25, 0.38, on the first 1000 characters; a precision without a
match counts as 0.1 match, orders longer than the text are left out. Formulas stand in `\[..\]`, `\(..\)` or `$..$`,
spaces aside. Error rows are nobody's siblings. Where all raw scores are equal credit does not divide the bonus by its
own standard deviation.

Our own form of the paper's idea: the paper shapes by a potential, and its code has three variants whose shipped
settings pay nothing, or fine diversity for 50 steps; D is that of a response, not of the group, so that it tells rows
apart. The caps are the code's, `w` and `steps` ours. Fidelity: reconstructed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt

from rlvr.explore.base import AddOn, AddOnConfig
from rlvr.types import F32, Group, Metrics

WEIGHTS = (0.02, 0.1, 0.15, 0.25, 0.38)  # of n-grams of 1, 2 ... words
UNMATCHED = 0.1  # matches, where an order has none
CHARACTERS = 1000
CAPS = {"textual": 0.91, "equational": 0.68}
WORD = re.compile(r"\w+|[^\w\s]")
FORMULA = re.compile(r"\\\[(.+?)\\\]|\\\((.+?)\\\)|\$\$(.+?)\$\$|\$(.+?)\$", re.DOTALL)


class Config(AddOnConfig):
    """`w` is the most that a right answer can gain over `cap` 1, 0 turns it off; `cap` null is that of the form."""

    form: Literal["textual", "equational"] = "textual"
    w: NonNegativeFloat = 0.2
    cap: float | None = Field(None, gt=0.0, le=1.0)
    steps: PositiveInt = 100


class Diver(AddOn):
    """reward += w * diversity, on right answers."""

    kind = "diver"
    Config = Config

    def __init__(self, config: Any, *, name: str = "", seed: int = 0) -> None:
        super().__init__(config, name=name, seed=seed)
        self._step = 0

    def reward(self, groups: Sequence[Group]) -> Sequence[Group]:
        """Shaped rewards with the bonus added; rows in error keep NaN."""
        if not self._weight():
            return groups
        return [group.with_(rewards=(_shaped(group) + self._bonus(group)).astype(np.float32)) for group in groups]

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """Counts the step. `active`: rows with a bonus; `bonus_abs_mean` over them; `diversity`: mean of all rows."""
        weight, paid, spread = self._weight(), [np.zeros(0, np.float32)], [np.zeros(0)]
        for group in groups if weight else ():
            paid.append(self._bonus(group))
            spread.append(self._diversity(group)[group.valid])
        self._step += 1
        flat, every = np.concatenate(paid), np.concatenate(spread)
        flat = flat[flat != 0]
        return {
            "active": float(len(flat)),
            "bonus_abs_mean": float(flat.mean()) if len(flat) else 0.0,
            "diversity": float(every.mean()) if len(every) else 0.0,
            "w": weight,
        }

    def state_dict(self) -> dict[str, Any]:
        """The steps so far."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._step = int(state["step"])

    def _weight(self) -> float:
        return cosine_weight(self._step, start=self.config.w, steps=self.config.steps)

    def _diversity(self, group: Group) -> np.ndarray:
        measure = textual if self.config.form == "textual" else equational
        texts = tuple(t.text[:CHARACTERS] for t, ok in zip(group.trajectories, group.valid, strict=True) if ok)
        out = np.zeros(len(group))
        out[group.valid] = measure(texts)
        return out

    def _bonus(self, group: Group) -> F32:
        cap = CAPS[self.config.form] if self.config.cap is None else self.config.cap
        paid = self._weight() * np.minimum(self._diversity(group), cap)
        return np.where(group.correct, paid, 0.0).astype(np.float32)


def cosine_weight(step: int, *, start: float, steps: int) -> float:
    """The weight at one step: half a cosine from `start` to exactly 0 at `steps`, never negative."""
    return 0.0 if step >= steps else start * (1.0 + math.cos(math.pi * step / steps)) / 2.0


@lru_cache(maxsize=1024)  # credit and metrics both ask
def textual(texts: tuple[str, ...]) -> tuple[float, ...]:
    """1 - mean symmetric BLEU of each text to the others, in [0, 1]; 0 for one text alone."""
    grams = [_grams(text) for text in texts]
    if len(texts) < 2:
        return (0.0,) * len(texts)
    alike = np.zeros((len(texts), len(texts)))
    for i in range(len(texts)):
        for j in range(i):
            alike[i, j] = alike[j, i] = (_bleu(grams[i], grams[j]) + _bleu(grams[j], grams[i])) / 2
    return tuple(float(max(0.0, 1.0 - row.sum() / (len(texts) - 1))) for row in alike)


@lru_cache(maxsize=1024)
def equational(texts: tuple[str, ...]) -> tuple[float, ...]:
    """Share of each text's distinct formulas that no other text has, in [0, 1]; 0 without any."""
    every = [formulas(text) for text in texts]
    owners = Counter(formula for own in every for formula in own)
    return tuple(sum(owners[f] == 1 for f in own) / len(own) if own else 0.0 for own in every)


def formulas(text: str) -> frozenset[str]:
    """The distinct formulas of a text, without spaces."""
    found = ("".join("".join(match.groups("")).split()) for match in FORMULA.finditer(text))
    return frozenset(formula for formula in found if formula)


def bleu(candidate: str, reference: str) -> float:
    """BLEU of one text against one reference, in [0, 1]; see the module. Two empty texts are the same."""
    return _bleu(_grams(candidate), _grams(reference))


def _grams(text: str) -> list[Counter[tuple[str, ...]]]:
    words = WORD.findall(text)
    return [Counter(zip(*(words[i:] for i in range(n)), strict=False)) for n in range(1, len(WEIGHTS) + 1)]


def _bleu(candidate: list[Counter[tuple[str, ...]]], reference: list[Counter[tuple[str, ...]]]) -> float:
    length, other = candidate[0].total(), reference[0].total()
    if not length:
        return float(not other)
    log = min(0.0, 1.0 - other / length)  # brevity
    for weight, own, theirs in zip(WEIGHTS, candidate, reference, strict=True):
        if own:
            log += weight * math.log(max(sum((own & theirs).values()), UNMATCHED) / own.total())
    return math.exp(log)


def _shaped(group: Group) -> F32:
    return group.scores if group.rewards is None else group.rewards
