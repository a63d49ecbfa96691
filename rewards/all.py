"""Several verifiers at once: the weighted sum of their scores, nothing where a gate is not passed.

`verifier: {name: all, of: [math, {name: format, weight: 0.1}]}` pays 1 for a right answer and 0.1 for the format;
`{name: format, gate: true}` pays nothing unless the format is right. Right or wrong, for pass rates and dynamic
sampling, is decided by the gates and by the parts of the largest weight: the others are extras. The answer key is the
first that a part gives. An error of any part is an error of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

VERSION = "all-1"


def verify(response: str, answer: str, parts: Sequence[Any]) -> dict[str, object]:
    """Each part has a name, a weight, a gate, and is called with the response."""
    verdicts = [part(response) for part in parts]
    both = list(zip(parts, verdicts, strict=True))
    passed = all(v["correct"] for p, v in both if p.gate)
    most = max(p.weight for p in parts)
    right = passed and all(v["correct"] for p, v in both if p.weight == most)
    total = sum(p.weight * v["score"] for p, v in both)
    return {
        "score": total if passed else 0.0,
        "correct": right,
        "answer_key": next((v["answer_key"] for v in verdicts if v["answer_key"] is not None), None),
        "parsed": all(v["parsed"] for v in verdicts),
        "detail": "; ".join(_told(p, v) for p, v in both),
    }


def check_answer(answer: str, config: None, parts: Sequence[Any]) -> str | None:
    """Every part must be able to use the gold answer."""
    return next((f"{p.name}: {problem}" for p in parts if (problem := p.problem()) is not None), None)


def _told(part: Any, verdict: dict[str, Any]) -> str:
    detail = f" ({verdict['detail']})" if verdict["detail"] else ""
    return f"{part.name}{' (gate)' if part.gate else ''} {verdict['score']:g}{detail}"
