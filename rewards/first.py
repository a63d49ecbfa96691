"""The first verifier that can read both the gold answer and the response decides: for data of mixed kinds.

`verifier: {name: first, of: [numeric, math, exact]}`. Where none can read the response, the verdict is that of the last
one that can use the gold answer. Weights multiply the score; gates mean nothing here. An error is not skipped: it is
the verdict's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

VERSION = "first-1"


def verify(response: str, answer: str, parts: Sequence[Any]) -> dict[str, object]:
    """Parts are tried in order, and the first verdict that was parsed counts."""
    part, verdict = parts[0], {}
    for part in (p for p in parts if p.problem() is None):
        verdict = part(response)
        if verdict["parsed"]:
            break
    detail = f"by {part.name}" + (f": {verdict['detail']}" if verdict["detail"] else "")
    known = {key: verdict[key] for key in ("correct", "answer_key", "parsed")}
    return known | {"score": part.weight * verdict["score"], "detail": detail}


def check_answer(answer: str, config: None, parts: Sequence[Any]) -> str | None:
    """One part at least must be able to use the gold answer."""
    problems = [part.problem() for part in parts]
    if None in problems:
        return None
    return "; ".join(f"{part.name}: {problem}" for part, problem in zip(parts, problems, strict=True))
