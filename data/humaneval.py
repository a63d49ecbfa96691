"""HumanEval: 164 Python functions to write from signature and docstring (arXiv 2107.03374). Evaluation only.

Source: openai/openai_humaneval on the Hub, split `test`; MIT licence. Columns task_id, prompt, canonical_solution,
test, entry_point. The answer is what the verifier `code` reads (every task names it): the `check` function and its
entry point, and as set-up what the prompt defines before the function (imports, helpers). The response is to hold the
whole function in a fenced block.
Offline: RLVR_DATA=<folder> with humaneval.jsonl, or `{name: humaneval, path: FILE}`.
"""

from __future__ import annotations

import json

from rlvr.cards import HubCard, HubConfig, make_task
from rlvr.errors import DataError
from rlvr.rows import Row
from rlvr.types import Task

Config = HubConfig


def _task(row: Row) -> Task:
    prompt, name = row.text("prompt"), row.text("entry_point")
    setup, mark, _ = prompt.rpartition(f"def {name}(")
    if not mark:
        raise DataError(f"'prompt' does not define {name}")
    answer = json.dumps({"asserts": [row.text("test")], "entry_point": name, "setup": setup})
    demo = f"```python\n{prompt}{row.text('canonical_solution').rstrip()}\n```"
    asked = f"Complete this function.\n\n```python\n{prompt.rstrip()}\n```"
    return make_task(row, asked, answer, id=row.text("task_id"), verifier="code", demos=(demo,))


load = HubCard("openai/openai_humaneval", "humaneval", _task, eval="test").load
