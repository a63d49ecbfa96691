r"""GSM8K: grade-school word problems with integer answers (Cobbe et al., arXiv 2110.14168).

Source: openai/gsm8k on the Hub, config `main`; MIT licence. Columns question and answer, the gold after `####`
with thousands separators (removed). train 7473 rows, test 1319 (our split "eval"). The worked answers carry
calculator marks `<<48/2=24>>`, which are removed; as demonstrations they end in `\boxed{gold}`.
Offline: RLVR_DATA=<folder> with gsm8k_train.jsonl and gsm8k_test.jsonl, or data.path=FILE_train.jsonl, where the
held-out rows come from FILE_test.jsonl beside it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

from rlvr.cards import HubCard, HubConfig, make_task
from rlvr.errors import DataError
from rlvr.rows import Dataset, Row
from rlvr.types import Task

Config = HubConfig
MARKS = re.compile(r"<<[^<>]*>>")


def load(config: HubConfig, *, split: str, path: str | None) -> Dataset:
    """The whole split, in its order; ids are `<split>/<row>` counted from 1."""
    part = {"train": "train", "eval": "test"}[split]
    return replace(CARD, make=partial(_task, part=part)).load(config, split=split, path=path)


def _task(row: Row, *, part: str) -> Task:
    worked, mark, gold = row.text("answer").rpartition("####")
    gold = gold.replace(",", "").strip()
    if not mark or not gold:
        raise DataError("'answer' has no gold after `####`")
    demo = f"{MARKS.sub('', worked).strip()}\n\\boxed{{{gold}}}"
    return make_task(row, row.text("question"), gold, id=f"{part}/{row.number}", demos=(demo,))


CARD = HubCard("openai/gsm8k", "gsm8k", partial(_task, part="train"), train="train", eval="test", config="main")
