"""The learning rate as a pure function of the update index: nothing to save, nothing to resume."""

from __future__ import annotations

from math import cos, pi
from typing import Literal

Schedule = Literal["constant", "linear", "cosine", "one_cycle"]

RISE, START, FLOOR = 0.3, 25.0, 1e4  # of one_cycle, as in torch.optim.lr_scheduler.OneCycleLR


def learning_rate(update: int, *, lr: float, schedule: Schedule, warmup: int, total: int) -> float:
    """Learning rate of update `update` (0-based) of `total`.

    "constant", "linear" (to 0) and "cosine" (to 0) first rise linearly over `warmup` updates, the first of
    which already moves. "one_cycle" rises and falls by half cosines, from lr/25 over lr to lr/250000, over
    30 % of the updates or over `warmup` when that is set. Updates beyond `total` stay at the end's value.
    """
    if schedule == "one_cycle":
        return _one_cycle(update, lr=lr, rise=warmup or RISE * total, total=total)
    if update < warmup:
        return lr * (update + 1) / warmup
    done = min((update - warmup) / max(total - warmup, 1), 1.0)
    if schedule == "linear":
        return lr * (1.0 - done)
    return lr * 0.5 * (1.0 + cos(pi * done)) if schedule == "cosine" else lr


def _one_cycle(update: int, *, lr: float, rise: float, total: int) -> float:
    peak, last = max(rise - 1.0, 0.0), total - 1.0
    if update < peak:
        return _half_cosine(lr / START, lr, update / peak)
    done = (update - peak) / (last - peak) if last > peak else 0.0
    return _half_cosine(lr, lr / START / FLOOR, min(done, 1.0))


def _half_cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + cos(pi * done))
