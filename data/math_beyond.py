"""MATH-Beyond: 181 problems that open models fail in 1024 samples (arXiv 2510.11653). Evaluation only.

Source: brendel-group/MATH-Beyond on the Hub, split `test`; the licence was not checked (no network). Columns problem,
answer (an integer), and for each model `<model>_pass@1024` and `<model>_unsolved`. Name the base models with
`unsolved_by`, and only problems that all of them fail stay, the rest counted: 40 with the 11 base models, where the
paper says 41. The measure is pass@1024 of the trained model there: 185,344 samples for all 181. 0 of 1024 bounds a
pass rate by 0.0029 (95 %). The problems come from DAPO-Math and DeepScaleR: do not train on those and report this.
Offline: RLVR_DATA=<folder> with math_beyond.jsonl, or `{name: math_beyond, path: FILE}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from rlvr.cards import HubCard, HubConfig, make_task, whole
from rlvr.errors import DataError
from rlvr.rows import Dataset, Drop, Row
from rlvr.types import Task


class Config(HubConfig):
    unsolved_by: tuple[str, ...] = ()  # models as the columns name them, without `_unsolved`; none: all problems


def load(config: Config, *, split: str, path: str | None) -> Dataset:
    """The problems that all the named models fail, in their order."""
    return replace(CARD, make=partial(_task, models=config.unsolved_by)).load(config, split=split, path=path)


def _task(row: Row, *, models: Sequence[str] = ()) -> Task:
    for model in models:
        value = row.values.get(f"{model}_unsolved")
        if value is None:
            known = [c.removesuffix("_unsolved") for c in row.values if c.endswith("_unsolved")]
            raise DataError(f"unsolved_by: no model {model!r}; the models are: {', '.join(known) or 'none'}")
        if str(value).lower() not in ("true", "1", "1.0"):
            raise Drop("solved by one of `unsolved_by`")
    return make_task(row, row.text("problem"), whole(row.text("answer")))


CARD = HubCard("brendel-group/MATH-Beyond", "math_beyond", _task, eval="test")
