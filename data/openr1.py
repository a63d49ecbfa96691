"""OpenR1-Math-220k: NuminaMath problems with 2 to 4 reasoning traces of DeepSeek-R1 each. Training only.

Source: open-r1/OpenR1-Math-220k on the Hub, config `default` (about 94,000 rows), `extended` (131,000) or `all`;
Apache-2.0. Columns problem, solution, answer, uuid, generations[], is_reasoning_complete[],
correctness_math_verify[], correctness_llama[], source. Demonstrations are the traces that are complete and that
math-verify (or, where it has no verdict, the judge) called right; they open with `<think>`, which a chat template may
write already. Traces are long (up to 16,000 tokens): `sampling.max_tokens` decides which of them a method can use.
Offline: data.path=FILE, or RLVR_DATA=<folder> with openr1.jsonl.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

from rlvr.cards import HubCard, HubConfig, make_task, some_of
from rlvr.errors import DataError
from rlvr.rows import Dataset, Drop, Row
from rlvr.types import Task


class Config(HubConfig):
    config: Literal["default", "extended", "all"] = "default"


def load(config: Config, *, split: str, path: str | None) -> Dataset:
    """The rows with an answer, in their order; ids are the source's `uuid`s."""
    return replace(CARD, config=config.config).load(config, split=split, path=path)


def _task(row: Row) -> Task:
    answer = str(row.get("answer") or "notfound").strip()
    if answer.lower() in ("proof", "notfound"):
        raise Drop("no answer to compare")
    meta = some_of(row, "problem_type", "source")
    return make_task(row, row.text("problem"), answer, id=row.text("uuid"), demos=tuple(_right(row)), meta=meta)


def _right(row: Row) -> Iterator[str]:
    """The traces that are complete and right."""
    traces = row.texts("generations")
    complete, by_rule, by_judge = (
        _flags(row, column, len(traces))
        for column in ("is_reasoning_complete", "correctness_math_verify", "correctness_llama")
    )
    for trace, whole, rule, judge in zip(traces, complete, by_rule, by_judge, strict=True):
        if whole and (judge if rule is None else rule):
            yield trace.strip()


def _flags(row: Row, column: str, length: int) -> list[Any]:
    """One verdict a trace; None where the source has none."""
    values = row.get(column) or [None] * length
    if len(values) != length:
        raise DataError(f"{column!r} has {len(values)} entries for {length} generations")
    return list(values)


CARD = HubCard("open-r1/OpenR1-Math-220k", "openr1", _task, train="train")
