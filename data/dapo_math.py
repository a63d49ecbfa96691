"""DAPO-Math-17k: competition problems with integer answers (Yu et al., arXiv 2503.14476). Training only.

Source: open-r1/DAPO-Math-17k-Processed on the Hub, config `en` (14,116 rows) or `all` (17,398, some Chinese);
Apache-2.0. Columns prompt and solution (the bare answer). Files of the original, BytedTsinghua-SIA/DAPO-Math-17k
(1,791,700 rows: 17,917, each 100 times; chat prompts, reward_model.ground_truth), are read as well and lose their
repeats. Where a prompt carries the original's `Answer:` template it is removed: the recipe says how to answer.
Offline: data.path=FILE.jsonl, or RLVR_DATA=<folder> with dapo_math.jsonl.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from rlvr.cards import HubCard, HubConfig, make_task, user_text
from rlvr.rows import Dataset, Row
from rlvr.types import Task

BEFORE = "the answer to the problem.\n\n"
AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'


class Config(HubConfig):
    language: Literal["en", "all"] = "en"


def load(config: Config, *, split: str, path: str | None) -> Dataset:
    """All rows, in their order."""
    return replace(CARD, config=config.language).load(config, split=split, path=path)


def _task(row: Row) -> Task:
    prompt = user_text(row, "prompt")
    if prompt.endswith(AFTER):
        prompt = prompt.removesuffix(AFTER).partition(BEFORE)[2]
    return make_task(row, prompt, row.text("solution", "reward_model.ground_truth"))


CARD = HubCard("open-r1/DAPO-Math-17k-Processed", "dapo_math", _task, train="train")
