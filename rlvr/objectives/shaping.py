"""Rewards that depend on how a response ended, as pure functions."""

from __future__ import annotations


def overlong_penalty(length: int, *, max_len: int, buffer: int, factor: float = 1.0) -> float:
    """DAPO's soft overlong penalty (2503.14476), in [-factor, 0], to be added to the reward.

    0 up to `max_len - buffer` tokens, then linear down to -factor at `max_len`. Unlike the released code it
    is bounded below when `length` exceeds `max_len`. Lengths are response tokens.
    """
    over = (length - (max_len - buffer)) / buffer
    return -factor * min(max(over, 0.0), 1.0)
