"""What `rlvr check` finds in a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Problem:
    """An error stops the run; a warning is worth knowing. `key` is dotted."""

    level: Literal["error", "warning"]
    key: str
    message: str


def error(key: str, message: str) -> Problem:
    """A problem that stops the run."""
    return Problem("error", key, message)


def warning(key: str, message: str) -> Problem:
    """A problem that is worth knowing."""
    return Problem("warning", key, message)
