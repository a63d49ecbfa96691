"""IFEval: 541 prompts with instructions that a program can check (Zhou et al., arXiv 2311.07911). Evaluation only.

Source: google/IFEval on the Hub (the one split is called `train`); Apache-2.0. Columns key, prompt,
instruction_id_list[], kwargs[]. The answer is JSON with instruction_id_list and kwargs, one mapping for each
instruction without the nulls that the Hub fills in; the verifier is `ifeval`, which every task names. No gold response
exists: `rlvr data verify` cannot show that one scores 1.
Offline: RLVR_DATA=<folder> with ifeval.jsonl, or `{name: ifeval, path: FILE}`.
"""

from __future__ import annotations

import json

from rlvr.cards import HubCard, HubConfig, make_task
from rlvr.errors import DataError
from rlvr.rows import Row
from rlvr.types import Task

Config = HubConfig


def _task(row: Row) -> Task:
    ids, kwargs = row.texts("instruction_id_list"), row.get("kwargs")
    if not ids or not isinstance(kwargs, list) or len(kwargs) != len(ids):
        raise DataError("'instruction_id_list' and 'kwargs' must be lists of the same length, and not empty")
    given = [{key: value for key, value in (each or {}).items() if value is not None} for each in kwargs]
    answer = json.dumps({"instruction_id_list": ids, "kwargs": given})
    return make_task(row, row.text("prompt"), answer, id=row.text("key"), verifier="ifeval")


load = HubCard("google/IFEval", "ifeval", _task, eval="train").load
