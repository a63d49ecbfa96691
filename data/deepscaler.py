"""DeepScaleR-Preview: about 40,300 competition problems (AIME before 2024, AMC, Omni-MATH, STILL). Training only.

Source: agentica-org/DeepScaleR-Preview-Dataset on the Hub, split `train`; MIT by its card (not checked: no network).
Columns problem, answer, solution. Golds such as "035" lose their leading zeros; other golds are LaTeX. The solution
may be empty; where there is one it is the demonstration, with the gold's box added where it has none. It overlaps
older AIME and AMC sets: rows of the recipe's own evaluation sets are dropped when it is loaded with them.
Offline: data.path=FILE, or RLVR_DATA=<folder> with deepscaler.jsonl.
"""

from __future__ import annotations

from rlvr.cards import HubCard, HubConfig, make_task, unpadded, with_box
from rlvr.rows import Row
from rlvr.types import Task

Config = HubConfig


def _task(row: Row) -> Task:
    answer = unpadded(row.text("answer"))
    demos = tuple(with_box(solution, answer) for solution in row.texts("solution"))
    return make_task(row, row.text("problem"), answer, demos=demos)


load = HubCard("agentica-org/DeepScaleR-Preview-Dataset", "deepscaler", _task, train="train").load
