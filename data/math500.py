"""MATH-500: 500 problems of the MATH test set (Lightman et al., arXiv 2305.20050). Evaluation only.

Source: HuggingFaceH4/MATH-500 on the Hub, split `test`; MIT licence. Columns problem, answer, subject, level and
unique_id. Answers are raw LaTeX: intervals, tuples, text, units. Never train on MATH's test split and report this.
Offline: RLVR_DATA=<folder> with math500.jsonl.
"""

from __future__ import annotations

from collections.abc import Iterable

from rlvr.errors import DataError
from rlvr.rows import Row, build_tasks, read_hub, read_jsonl
from rlvr.types import Task


def load(config: None, *, split: str, path: str | None) -> Iterable[Task]:
    """All 500, in their order; ids are the `unique_id`s."""
    if split == "train":
        raise DataError("math500 is a benchmark: it belongs in data.eval, not in data.train")
    hub = read_hub("HuggingFaceH4/MATH-500", "default", split="test", local="math500.jsonl")
    return build_tasks(read_jsonl(path) if path else hub, _task)


def _task(row: Row) -> Task:
    meta = {"where": row.where, "subject": row.values.get("subject"), "level": row.values.get("level")}
    return Task(id=row.text("unique_id"), prompt=row.text("problem"), answer=row.text("answer"), meta=meta)
