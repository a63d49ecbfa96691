r"""GSM8K: grade-school word problems with integer answers (Cobbe et al., arXiv 2110.14168).

Source: openai/gsm8k on the Hub, config `main`; MIT licence. Columns question and answer, the gold after `####`
with thousands separators (removed). train 7473 rows, test 1319 (our split "eval"). The worked answers carry
calculator marks `<<48/2=24>>`, which are removed; as demonstrations they end in `\boxed{gold}`.
Offline: RLVR_DATA=<folder> with gsm8k_train.jsonl and gsm8k_test.jsonl, or data.path=FILE_train.jsonl, where the
held-out rows come from FILE_test.jsonl beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from rlvr.errors import DataError
from rlvr.rows import Row, build_tasks, read_hub, read_jsonl
from rlvr.types import Task

SPLITS = {"train": "train", "eval": "test"}
MARKS = re.compile(r"<<[^<>]*>>")


def load(config: None, *, split: str, path: str | None) -> Iterable[Task]:
    """The whole split, in its order; ids are `<split>/<row>` counted from 1."""
    part = SPLITS[split]
    hub = read_hub("openai/gsm8k", "main", split=part, local=f"gsm8k_{part}.jsonl")
    return build_tasks(read_jsonl(_local(path, split)) if path else hub, partial(_task, part=part))


def _local(path: str, split: str) -> Path:
    file = Path(path)
    if split == "train":
        return file
    other = file.with_name(file.name.replace("train", "test"))
    if other == file or not other.is_file():
        raise DataError(
            f"no held-out rows beside {path}: expected a file of that name with `test` for `train`; "
            "without one they would be training rows. Put it there or leave data.eval out"
        )
    return other


def _task(row: Row, *, part: str) -> Task:
    worked, mark, gold = row.text("answer").rpartition("####")
    gold = gold.replace(",", "").strip()
    if not mark or not gold:
        raise DataError("'answer' has no gold after `####`")
    demo = f"{MARKS.sub('', worked).strip()}\n\\boxed{{{gold}}}"
    return Task(
        id=f"{part}/{row.number}", prompt=row.text("question"), answer=gold, demos=(demo,), meta={"where": row.where}
    )
