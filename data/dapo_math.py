"""DAPO-Math-17k: competition problems with integer answers (Yu et al., arXiv 2503.14476). Training only.

Source: open-r1/DAPO-Math-17k-Processed on the Hub, config `en` (14,116 rows) or `all` (17,398, some Chinese);
Apache-2.0. Columns prompt and solution (the bare answer). The original repeats its rows 100 times; this form does
not. Where a prompt carries the original's `Answer:` template it is removed: the recipe says how to answer.
Offline: data.path=FILE.jsonl, or RLVR_DATA=<folder> with dapo_math.jsonl.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel

from rlvr.errors import DataError
from rlvr.rows import Row, build_tasks, read_hub, read_jsonl
from rlvr.types import Task

BEFORE = "the answer to the problem.\n\n"
AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'


class Config(BaseModel, extra="forbid"):
    language: Literal["en", "all"] = "en"


def load(config: Config, *, split: str, path: str | None) -> Iterable[Task]:
    """All rows, in their order; ids are row numbers from 1."""
    if split != "train":
        raise DataError("dapo_math has no rows for evaluation: name a benchmark in data.eval (aime24, math500)")
    hub = read_hub("open-r1/DAPO-Math-17k-Processed", config.language, split="train", local="dapo_math.jsonl")
    return build_tasks(read_jsonl(path) if path else hub, _task)


def _task(row: Row) -> Task:
    prompt = row.text("prompt")
    if prompt.endswith(AFTER):
        prompt = prompt.removesuffix(AFTER).partition(BEFORE)[2]
    return Task(id=str(row.number), prompt=prompt, answer=row.text("solution"), meta={"where": row.where})
