"""AMC 12 of 2023: 40 competition problems whose answers were made integers. Evaluation only.

Source: math-ai/amc23 on the Hub, split `test` (columns question, answer); the problems are the MAA's. The copy of the
Qwen2.5-Math evaluation data (Apache-2.0; columns problem, answer) writes its answers as floats such as 27.0: both are
read, answers become integers. The Hub's licence was not checked (no network).
Offline: RLVR_DATA=<folder> with amc23.jsonl, or `{name: amc23, path: FILE}`.
"""

from __future__ import annotations

from rlvr.cards import HubCard, HubConfig, make_task, whole
from rlvr.rows import Row
from rlvr.types import Task

Config = HubConfig


def _task(row: Row) -> Task:
    return make_task(row, row.text("problem", "question"), whole(row.text("answer")))


load = HubCard("math-ai/amc23", "amc23", _task, eval="test").load
