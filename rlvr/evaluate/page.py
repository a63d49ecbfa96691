"""The evaluation as one HTML page that needs nothing else: curves, a grid of questions, samples with their verdicts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rlvr.evaluate.report import LEVELS, level
from rlvr.evaluate.run import EvalResult, Scored, TaskResult

TEMPLATE = Path(__file__).with_name("page.html")
TEXT_BUDGET = 6_000_000  # characters of all responses on the page
LONGEST = 6_000  # characters of one response; of a longer one its two ends
ANSWERS = 12  # different answers that are listed of a question


def page(made: Mapping[str, Any], results: Sequence[EvalResult]) -> str:
    """The whole page. `made` is the document of `report.py`.

    Everything that comes from a model or a dataset travels as JSON in which `<`, `>` and `&` are escaped, and is put on
    the page as text, never as markup. Responses beyond TEXT_BUDGET are left out, and the page says how many.
    """
    budget = TEXT_BUDGET // max(1, sum(len(result.tasks) for result in results))
    questions = {result.dataset: [_question(row, budget=budget) for row in result.tasks] for result in results}
    data = {key: value for key, value in made.items() if key != "details"} | {"questions": questions}
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return TEMPLATE.read_text(encoding="utf-8").replace("__DATA__", text)


def _question(row: TaskResult, *, budget: int) -> dict[str, Any]:
    answers = Counter((scored.key, _outcome(scored)) for scored in row.scored if scored.key is not None)
    shown = list(_within(row.scored, budget=budget))
    return {
        "id": row.id,
        "prompt": _prompt(row),
        "answer": row.task.answer,
        "valid": row.valid,
        "correct": row.correct,
        "errors": sum(row.errors.values()),
        "unparsed": row.unparsed,
        "truncated": row.truncated,
        "length": row.length,
        "distinct": row.distinct,
        "meta": {key: str(level(row.task.meta[key])) for key in LEVELS if row.task.meta.get(key) is not None},
        "answers": [[key, outcome, count] for (key, outcome), count in answers.most_common(ANSWERS)],
        "samples": shown,
        "hidden": len(row.scored) - sum(sample["count"] for sample in shown),
    }


def _within(rows: Sequence[Scored], *, budget: int) -> Iterator[dict[str, Any]]:
    """Samples, equal ones once with their number; outcomes in turns, so that each is seen, as far as `budget` goes."""
    counts: Counter[tuple[str, str, str | None]] = Counter()
    first: dict[tuple[str, str, str | None], Scored] = {}
    for row in rows:
        same = (_outcome(row), row.sample.text, row.key)
        counts[same] += 1
        first.setdefault(same, row)
    by_outcome: dict[str, list[tuple[str, str, str | None]]] = {}
    for same in first:
        by_outcome.setdefault(same[0], []).append(same)
    taken = 0
    for turn in zip_longest(*by_outcome.values()):
        for same in (s for s in turn if s is not None):
            text = _ends(same[1])
            if taken and taken + len(text) > budget:
                return
            taken += len(text)
            yield _sample(first[same], text=text, count=counts[same])


def _sample(row: Scored, *, text: str, count: int) -> dict[str, Any]:
    verdict = row.verdict
    return {
        "outcome": _outcome(row),
        "key": row.key,
        "why": ": ".join(filter(None, (verdict.error, verdict.detail))),
        "tokens": row.sample.tokens,
        "truncated": row.sample.finish == "length",
        "text": text,
        "count": count,
    }


def _outcome(row: Scored) -> str:
    verdict = row.verdict
    return "error" if verdict.error else "right" if verdict.correct else "wrong" if verdict.parsed else "unparsed"


def _ends(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]}\n\n[... {len(text) - 2 * half} characters left out ...]\n\n{text[-half:]}"


def _prompt(row: TaskResult) -> str:
    prompt = row.task.prompt
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)
