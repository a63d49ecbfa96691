"""MATH-500: 500 problems of the MATH test set (Lightman et al., arXiv 2305.20050). Evaluation only.

Source: HuggingFaceH4/MATH-500 on the Hub, split `test`; MIT licence. Columns problem, answer, subject, level and
unique_id. Answers are raw LaTeX: intervals, tuples, text, units. Never train on MATH's test split and report this.
Offline: RLVR_DATA=<folder> with math500.jsonl, or `{name: math500, path: FILE}`.
"""

from __future__ import annotations

from rlvr.cards import HubCard, HubConfig, make_task, some_of
from rlvr.rows import Row
from rlvr.types import Task

Config = HubConfig


def _task(row: Row) -> Task:
    meta = some_of(row, "subject", "level")
    return make_task(row, row.text("problem"), row.text("answer"), id=row.text("unique_id"), meta=meta)


load = HubCard("HuggingFaceH4/MATH-500", "math500", _task, eval="test").load
