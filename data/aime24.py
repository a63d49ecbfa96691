"""AIME 2024, I and II: 30 competition problems with answers from 0 to 999. Evaluation only.

Source: HuggingFaceH4/aime_2024 on the Hub (its one split is called `train`); the problems are the MAA's. Columns
problem and answer, the answer as text with leading zeros ("033"), which are removed. Mirrors repeat each problem 32
times for avg@32: repeats are removed here, `evaluate.n` says how often a task is sampled.
Offline: RLVR_DATA=<folder> with aime24.jsonl, or `{name: aime24, path: FILE}`.
"""

from __future__ import annotations

from rlvr.cards import HubCard, HubConfig, make_task, whole
from rlvr.rows import Row
from rlvr.types import Task

Config = HubConfig


def _task(row: Row) -> Task:
    return make_task(row, row.text("problem"), whole(row.text("answer")))


load = HubCard("HuggingFaceH4/aime_2024", "aime24", _task, eval="train").load
