"""MBPP: short Python problems with three asserts each (Austin et al., arXiv 2108.07732).

Source: google-research-datasets/mbpp on the Hub, config `full` (974 problems; 374 to train, 500 to test, our "eval") or
`sanitized` (427; 120 and 257); CC-BY-4.0. Columns task_id, text (sanitized: prompt), code, test_list, test_setup_code
(sanitized: test_imports[]). Row counts and columns as remembered, not checked (no network). The asserts stand in the
prompt, since they alone tell the function's name; the verifier is `code`, which every task names.
Offline: RLVR_DATA=<folder> with mbpp_train.jsonl and mbpp_test.jsonl, or data.path=FILE_train.jsonl with
FILE_test.jsonl beside it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Literal

from rlvr.cards import HubCard, HubConfig, make_task
from rlvr.errors import DataError
from rlvr.rows import Dataset, Row
from rlvr.types import Task


class Config(HubConfig):
    config: Literal["full", "sanitized"] = "full"


def load(config: Config, *, split: str, path: str | None) -> Dataset:
    """The whole split, in its order; ids are the source's `task_id`s."""
    return replace(CARD, config=config.config).load(config, split=split, path=path)


def _task(row: Row) -> Task:
    asserts = row.texts("test_list")
    if not asserts:
        raise DataError("'test_list' is empty")
    setup = "\n".join((*row.texts("test_setup_code"), *row.texts("test_imports")))
    answer = json.dumps({"asserts": asserts, "test_setup": setup} if setup else {"asserts": asserts})
    prompt = f"{row.text('text', 'prompt').strip()}\n\nYour code should pass these tests:\n\n" + "\n".join(asserts)
    demo = f"```python\n{row.text('code').strip()}\n```"
    return make_task(row, prompt, answer, id=row.text("task_id"), verifier="code", demos=(demo,))


CARD = HubCard("google-research-datasets/mbpp", "mbpp", _task, train="train", eval="test", config="full")
