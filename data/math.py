r"""MATH: competition problems with worked solutions (Hendrycks et al., arXiv 2103.03874).

Source: DigitalLearningGmbH/MATH-lighteval on the Hub, 7500 rows to train and 5000 to test (our "eval"); MIT licence.
Columns problem, level ("Level 3", sometimes "Level ?"), type, solution. The gold is the last `\boxed{}` of the
solution (nested braces, `\fbox`, `\boxed 5`); the solution is the demonstration. MATH-500 is a part of the test
split, which is therefore never trained on.
Offline: RLVR_DATA=<folder> with math_train.jsonl and math_test.jsonl, or data.path=FILE_train.jsonl with
FILE_test.jsonl beside it.
"""

from __future__ import annotations

from rlvr.cards import HubCard, HubConfig, last_box, make_task, some_of
from rlvr.rows import Row
from rlvr.types import Task

Config = HubConfig


def _task(row: Row) -> Task:
    solution = row.text("solution")
    meta = some_of(row, "type", "level")
    return make_task(row, row.text("problem"), last_box(solution), demos=(solution.strip(),), meta=meta)


load = HubCard("DigitalLearningGmbH/MATH-lighteval", "math", _task, train="train", eval="test").load
