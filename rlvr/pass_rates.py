"""Training tasks picked by the pass rate that an evaluation measured on them.

A rate measured with n samples has a standard error of sqrt(p(1-p)/n), 0.125 at p = 0.5 and n = 16, and of the tasks
with p = 0.1 about 19 % read 0 of 16: a filter of "solved now and then" drops hard tasks that can be solved. The
note that goes with the filter says so in numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr.errors import DataError
from rlvr.recipe import PassRate
from rlvr.rows import Dataset
from rlvr.types import Task

HARD = 0.1  # the true rate for which the note says how often it reads 0


@dataclass(frozen=True)
class Measured:
    """`correct` of `n` samples without error were right."""

    correct: int
    n: int

    @property
    def rate(self) -> float:
        """The measured pass rate."""
        return self.correct / self.n


def select(tasks: Dataset, rule: PassRate, *, dataset: str, project: Path) -> Dataset:
    """The tasks whose measured rate lies in [min, max], the others counted; a note says how sure the rates are.

    Raises DataError for a file that cannot be used, for tasks that it does not hold (`unmeasured: error`), and when
    no task stays.
    """
    measured = read_rates(project / Path(rule.file).expanduser(), dataset=dataset)
    missing = [task for task in tasks if task.id not in measured]
    if missing and (rule.unmeasured == "error" or len(missing) == len(tasks)):
        raise DataError(
            f"dataset {dataset!r}: pass_rate.file {rule.file} holds no rate for {len(missing)} of {len(tasks)} tasks, "
            f"the first with the id {missing[0].id!r}. Measure the same split, or say `unmeasured: keep` or `drop`"
        )
    out = Dataset(dropped=tasks.dropped)
    for task in tasks:
        reason = _reason(task, measured, rule)
        if reason is None:
            out.append(task)
        else:
            out.dropped[reason] += 1
    out.notes = [*tasks.notes, _note(out, measured, rule, dataset=dataset, of=len(tasks), missing=len(missing))]
    if not out:
        raise DataError(f"no task is left. {out.notes[-1]}")
    return out


def read_rates(path: Path, *, dataset: str) -> dict[str, Measured]:
    """Task id -> what was measured, from the `details` of an eval.json; tasks without a valid sample are left out."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"pass_rate.file: cannot read {path}: {error.strerror}; `rlvr eval` writes it") from error
    except ValueError as error:
        raise DataError(f"pass_rate.file: {path} is not JSON: {error}; give an eval.json of `rlvr eval`") from error
    details = content.get("details") if isinstance(content, dict) else None
    if not isinstance(details, dict):
        raise DataError(f"pass_rate.file: {path} has no 'details'; give an eval.json of `rlvr eval`")
    if dataset not in details:
        raise DataError(f"pass_rate.file: {path} measured {', '.join(details) or 'nothing'}, not {dataset}")
    try:
        rates = {str(row["id"]): Measured(int(row["correct"]), int(row["valid"])) for row in details[dataset]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"pass_rate.file: {path}: a row of {dataset} lacks id, correct or valid") from error
    return {key: rate for key, rate in rates.items() if rate.n > 0}


def _reason(task: Task, measured: Mapping[str, Measured], rule: PassRate) -> str | None:
    """Why a task goes; None: it stays."""
    if task.id not in measured:
        return "not measured" if rule.unmeasured == "drop" else None
    rate = measured[task.id].rate
    if rate < rule.min:
        return f"with a pass rate below {rule.min:g}"
    return f"with a pass rate above {rule.max:g}" if rate > rule.max else None


def _note(out: Dataset, measured: Mapping[str, Measured], rule: PassRate, **numbers: Any) -> str:
    n = min(m.n for m in measured.values())
    unmeasured = f"; {numbers['missing']} unmeasured: {rule.unmeasured}" if numbers["missing"] else ""
    return (
        f"dataset {numbers['dataset']!r}: {len(out)} of {numbers['of']} tasks have a pass rate from {rule.min:g} to "
        f"{rule.max:g}{unmeasured}. Rates of {n} samples have a standard error of up to {0.5 / n**0.5:.2f}, and a true "
        f"rate of {HARD:g} reads 0 in {(1 - HARD) ** n:.0%} of cases"
    )
