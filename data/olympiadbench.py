r"""OlympiadBench: the 675 English competition problems without pictures (arXiv 2402.14008). Evaluation only.

Source: Hothan/OlympiadBench on the Hub, config OE_TO_maths_en_COMP, split `train` (674 rows there, 675 in the copy of
the Qwen2.5-Math evaluation data, Apache-2.0). Columns question, final_answer, is_multiple_answer, unit, answer_type,
error, subfield, id. final_answer is a list (or a text that holds one) of one entry, in which several answers stand
between commas, each in its own `$...$`: they are joined into one. Two golds are mended: `t(0,4]` (2045) to its
interval, and the sentence after `f(x)=a x+b` (1965) is cut, which makes that row easier than it is. The unit is kept
in `meta`, not in the gold; `error` is a tolerance, on one row.
Offline: RLVR_DATA=<folder> with olympiadbench.jsonl, or `{name: olympiadbench, path: FILE}`.
"""

from __future__ import annotations

import ast

from rlvr.cards import HubCard, HubConfig, make_task, some_of
from rlvr.errors import DataError
from rlvr.rows import Row
from rlvr.types import Task

Config = HubConfig
MENDED = {"t(0,4]": "(0,4]"}


def _task(row: Row) -> Task:
    meta = some_of(row, "subfield", "answer_type", "is_multiple_answer", "unit", "error")
    return make_task(row, row.text("question"), _gold(row), id=row.text("id"), meta=meta)


def _gold(row: Row) -> str:
    values = row.get("final_answer")
    if isinstance(values, str) and values.lstrip().startswith("["):
        try:
            values = ast.literal_eval(values)
        except (SyntaxError, ValueError) as error:
            raise DataError(f"'final_answer' is {values[:60]!r}, expected a list of texts") from error
    texts = values if isinstance(values, list) else [values]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"'final_answer' is {texts!r:.60}, expected a text or a list of texts")
    gold = ", ".join(text.strip().replace("$,$", ", ").replace("$", "").strip() for text in texts)
    return MENDED.get(gold, gold).partition(", where ")[0]


load = HubCard("Hothan/OlympiadBench", "olympiadbench", _task, eval="train", config="OE_TO_maths_en_COMP").load
