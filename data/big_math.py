"""Big-Math: 251,122 problems picked for having an answer that can be checked (arXiv 2502.17387). Training only.

Source: SynthLabsAI/Big-Math-RL-Verified on the Hub, split `train`; gated: accept its terms there and log in with
`hf auth login`. The licence was not checked (no network). Columns problem, answer, source, domain[],
llama8b_solve_rate. About 6,800 repeats are said to be in it (removed and counted) and some wrong answers. It holds
9,257 rows of MATH and 3,254 of GSM8K: rows of the recipe's evaluation sets are dropped when it is loaded with them.
Offline: data.path=FILE, or RLVR_DATA=<folder> with big_math.jsonl.
"""

from __future__ import annotations

from rlvr.cards import HubCard, HubConfig, make_task, some_of, unpadded
from rlvr.rows import Row
from rlvr.types import Task

Config = HubConfig


def _task(row: Row) -> Task:
    meta = some_of(row, "source", "domain", "llama8b_solve_rate")
    return make_task(row, row.text("problem"), unpadded(row.text("answer")), meta=meta)


load = HubCard("SynthLabsAI/Big-Math-RL-Verified", "big_math", _task, train="train").load
