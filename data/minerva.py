r"""Minerva's science questions: 272 of MIT OpenCourseWare, many in physical units (arXiv 2206.14858). Evaluation only.

Source: math-ai/minervamath on the Hub, split `test` (columns question, answer); the copy of the Qwen2.5-Math
evaluation data (Apache-2.0; columns problem, solution, type, idx) holds the gold in the solution's last box. Both are
read; the Hub's licence was not checked (no network). Golds are written as Python would (`4.5e33`, `-1./3`,
`np.arcsin(10/13)`, `\exp{a*t}`) and become LaTeX. The unit stands in the question or behind the box, never in the
gold. Numbers are rounded as the solution's author liked: an exact verifier calls many right answers wrong, so give
numbers a tolerance (docs/datasets.md).
Offline: RLVR_DATA=<folder> with minerva_math.jsonl, or `{name: minerva, path: FILE}`.
"""

from __future__ import annotations

import re

from rlvr.cards import HubCard, HubConfig, last_box, make_task, some_of
from rlvr.rows import Row
from rlvr.types import Task

Config = HubConfig
EXPONENT = re.compile(r"(?<![a-zA-Z\d.])([-+]?\d+(?:\.\d+)?)[eE]([-+]?\d+)(?!\w)")
REWRITTEN = (
    (re.compile(r"np\.arc(sin|cos|tan)"), r"\\arc\1"),
    (re.compile(r"(\d)\./"), r"\1/"),
    (re.compile(r"\\exp\{([^{}]*)\}"), r"e^{\1}"),
)


def _task(row: Row) -> Task:
    gold = row.text("answer") if row.get("answer") is not None else last_box(row.text("solution"))
    return make_task(row, row.text("problem", "question"), latex(gold), meta=some_of(row, "type", "idx"))


def latex(gold: str) -> str:
    """A gold answer without Python's spellings."""
    gold = EXPONENT.sub(lambda m: rf"{m[1]} \times 10^{{{int(m[2])}}}", gold.strip())
    for pattern, instead in REWRITTEN:
        gold = pattern.sub(instead, gold)
    return gold


load = HubCard("math-ai/minervamath", "minerva_math", _task, eval="test").load
