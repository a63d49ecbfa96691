"""AIME 2024, I and II: 30 competition problems with answers from 0 to 999. Evaluation only.

Source: HuggingFaceH4/aime_2024 on the Hub (its one split is called `train`); the problems are the MAA's. Columns
problem and answer, the answer as text with leading zeros ("033"), which are removed.
Offline: RLVR_DATA=<folder> with aime24.jsonl.
"""

from __future__ import annotations

from collections.abc import Iterable

from rlvr.errors import DataError
from rlvr.rows import Row, build_tasks, read_hub, read_jsonl
from rlvr.types import Task


def load(config: None, *, split: str, path: str | None) -> Iterable[Task]:
    """All 30, in their order; ids are row numbers from 1."""
    if split == "train":
        raise DataError("aime24 is a benchmark: it belongs in data.eval, not in data.train")
    hub = read_hub("HuggingFaceH4/aime_2024", "default", split="train", local="aime24.jsonl")
    return build_tasks(read_jsonl(path) if path else hub, _task)


def _task(row: Row) -> Task:
    answer = row.text("answer").strip()
    if not answer.isdecimal():
        raise DataError(f"'answer' is {answer!r}, expected a whole number")
    return Task(id=str(row.number), prompt=row.text("problem"), answer=str(int(answer)), meta={"where": row.where})
