"""HMMT, the Harvard-MIT tournament: about 30 problems a competition with LaTeX answers. Evaluation only.

Source: MathArena/hmmt_feb_2025, hmmt_nov_2025 or hmmt_feb_2026 on the Hub (the one split is called `train`);
CC-BY-NC-SA-4.0, for evaluation. Columns problem_idx, problem, answer, problem_type (a list). Row counts: 30, for
feb_2026 33; nov_2025 was not checked.
Offline: RLVR_DATA=<folder> with hmmt_feb_2025.jsonl (likewise for the others), or `{name: hmmt, path: FILE}`.
"""

from __future__ import annotations

from typing import Literal

from rlvr.cards import HubCard, HubConfig, make_task, some_of
from rlvr.rows import Dataset, Row
from rlvr.types import Task


class Config(HubConfig):
    competition: Literal["feb_2025", "nov_2025", "feb_2026"] = "feb_2025"


def load(config: Config, *, split: str, path: str | None) -> Dataset:
    """All problems of the competition, in their order."""
    name = f"hmmt_{config.competition}"
    return HubCard(f"MathArena/{name}", name, _task, eval="train").load(config, split=split, path=path)


def _task(row: Row) -> Task:
    return make_task(row, row.text("problem"), row.text("answer"), meta=some_of(row, "problem_idx", "problem_type"))
