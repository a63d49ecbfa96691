"""AIME 2025, I and II: 30 competition problems with answers from 0 to 999, later than many models. Evaluation only.

Source: math-ai/aime25 on the Hub, split `test`; the problems are the MAA's. Columns problem, answer, id. Its licence
and newest revision were not checked (no network): pin one with `revision`. Mirrors number the rows differently, so
ids are hashes of the text.
Offline: RLVR_DATA=<folder> with aime25.jsonl, or `{name: aime25, path: FILE}`.
"""

from __future__ import annotations

from rlvr.cards import HubCard, HubConfig, make_task, whole
from rlvr.rows import Row
from rlvr.types import Task

Config = HubConfig


def _task(row: Row) -> Task:
    return make_task(row, row.text("problem", "question"), whole(row.text("answer")))


load = HubCard("math-ai/aime25", "aime25", _task, eval="test").load
