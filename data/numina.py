"""NuminaMath-1.5: 896,215 problems from competitions and forums with worked solutions. Training only.

Source: AI-MO/NuminaMath-1.5 on the Hub, split `train`; Apache-2.0. Columns problem, solution, answer, problem_type,
question_type, problem_is_valid, solution_is_valid, source, synthetic. Left out and counted: answers that are the
sentinels "proof" (about 111,000) and "notfound", rows not marked valid, and (unless `synthetic: true`) rows that a
model wrote; about 520,000 stay. Golds of multiple-choice questions are letters. The solution is the demonstration,
with the gold's box added where it has none.
Offline: data.path=FILE, or RLVR_DATA=<folder> with numina.jsonl.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from rlvr.cards import HubCard, HubConfig, make_task, some_of, with_box
from rlvr.rows import Dataset, Drop, Row
from rlvr.types import Task

SENTINELS = {"proof": "a proof: no answer to compare", "notfound": "no answer was found in the solution"}


class Config(HubConfig):
    synthetic: bool = False  # with the rows that a model wrote


def load(config: Config, *, split: str, path: str | None) -> Dataset:
    """The usable rows, in their order."""
    return replace(CARD, make=partial(_task, synthetic=config.synthetic)).load(config, split=split, path=path)


def _task(row: Row, *, synthetic: bool) -> Task:
    answer = str(row.get("answer") or "notfound").strip()
    if answer.lower() in SENTINELS:
        raise Drop(SENTINELS[answer.lower()])
    if any(str(row.get(column)).lower() not in ("yes", "true") for column in ("problem_is_valid", "solution_is_valid")):
        raise Drop("not marked valid")
    if row.get("synthetic") and not synthetic:
        raise Drop("written by a model (synthetic: true keeps them)")
    demos = tuple(with_box(solution, answer) for solution in row.texts("solution"))
    meta = some_of(row, "problem_type", "question_type", "source")
    return make_task(row, row.text("problem"), answer, demos=demos, meta=meta)


CARD = HubCard("AI-MO/NuminaMath-1.5", "numina", partial(_task, synthetic=False), train="train")
