"""Skywork-OR1: 105,055 mathematics problems with measured difficulty (arXiv 2505.22312). Training only.

Source: Skywork/Skywork-OR1-RL-Data on the Hub, split `math` (its code rows are not read); the licence was not checked
(no network). Columns prompt (chat), reward_model.ground_truth, extra_info.model_difficulty (failures of 16 samples,
for each of several models; kept in `meta`). ground_truth is a JSON list in a text: of one answer, which is taken;
rows with several are dropped and counted.
Offline: data.path=FILE, or RLVR_DATA=<folder> with skywork.jsonl.
"""

from __future__ import annotations

import json

from rlvr.cards import HubCard, HubConfig, make_task, user_text
from rlvr.errors import DataError
from rlvr.rows import Drop, Row
from rlvr.types import Task

Config = HubConfig


def _task(row: Row) -> Task:
    meta = {"model_difficulty": row.get("extra_info.model_difficulty")}
    return make_task(row, user_text(row, "prompt"), _answer(row.text("reward_model.ground_truth")), meta=meta)


def _answer(text: str) -> str:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise DataError(f"'reward_model.ground_truth' is {text!r:.60}, expected a JSON list of answers") from error
    answers = [str(value).strip() for value in values] if isinstance(values, list) else [str(values).strip()]
    if len(set(answers)) != 1 or not answers[0]:
        raise Drop("several answers" if len(set(answers)) > 1 else "no answer")
    return answers[0]


load = HubCard("Skywork/Skywork-OR1-RL-Data", "skywork", _task, train="math").load
