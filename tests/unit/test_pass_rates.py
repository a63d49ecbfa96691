"""Tasks picked by measured pass rates: the bounds, the counts, the stated error, and files that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlvr.errors import DataError
from rlvr.pass_rates import Measured, read_rates
from rlvr.recipe import Source
from rlvr.tasks import load_tasks


@pytest.fixture
def project(tmp_path: Path) -> Path:
    rows = [{"prompt": f"q{i}", "answer": "1", "id": f"t{i}"} for i in range(5)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def rates(project: Path, counts: dict[str, tuple[int, int]], dataset: str = "jsonl") -> str:
    details = [{"id": key, "correct": c, "valid": n, "errors": 0} for key, (c, n) in counts.items()]
    (project / "eval.json").write_text(json.dumps({"details": {dataset: details}}))
    return "eval.json"


def load(project: Path, split: str = "train", **rule: Any) -> Any:
    source = Source(name="jsonl", path=str(project / "rows.jsonl"), id="id", pass_rate={"file": "eval.json"} | rule)
    return load_tasks(source, split=split, project=project)


ALL = {"t0": (0, 16), "t1": (1, 16), "t2": (8, 16), "t3": (15, 16), "t4": (16, 16)}


def test_bounds_are_inclusive_and_counted(project: Path) -> None:
    rates(project, ALL)
    made = load(project, min=1 / 16, max=15 / 16)
    assert [t.id for t in made] == ["t1", "t2", "t3"]
    assert made.dropped == {"with a pass rate below 0.0625": 1, "with a pass rate above 0.9375": 1}
    assert len(load(project)) == 5 and len(load(project, split="eval", min=0.5)) == 5


def test_the_sampling_error_is_stated(project: Path) -> None:
    rates(project, ALL)
    [note] = load(project, min=0.01).notes
    assert "4 of 5 tasks" in note and "up to 0.12" in note  # 0.5 / sqrt(16)
    assert "true rate of 0.1 reads 0 in 19% of cases" in note  # 0.9 ** 16 = 0.185


def test_unmeasured_tasks_follow_the_rule(project: Path) -> None:
    rates(project, {"t0": (0, 8), "t1": (4, 8), "t4": (0, 0)})
    with pytest.raises(DataError, match="no rate for 3 of 5 tasks, the first with the id 't2'"):
        load(project, min=0.1)
    kept = load(project, min=0.1, unmeasured="keep")
    assert [t.id for t in kept] == ["t1", "t2", "t3", "t4"] and "3 unmeasured: keep" in kept.notes[0]
    dropped = load(project, min=0.1, unmeasured="drop")
    assert [t.id for t in dropped] == ["t1"] and dropped.dropped["not measured"] == 3


def test_another_split_is_told_whatever_the_rule(project: Path) -> None:
    rates(project, {"other": (1, 2)})
    with pytest.raises(DataError, match=r"no rate for 5 of 5 tasks.*Measure the same split"):
        load(project, unmeasured="keep")


def test_no_task_left(project: Path) -> None:
    rates(project, dict.fromkeys(ALL, (0, 4)))
    with pytest.raises(DataError, match="no task is left"):
        load(project, min=0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read .*rlvr eval"),
        ("{", "is not JSON"),
        ("[]", "no 'details'"),
        ('{"details": {"aime24": []}}', "measured aime24, not jsonl"),
        ('{"details": {"jsonl": [{"id": "1"}]}}', "lacks id, correct or valid"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "e.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_rates(tmp_path / "e.json", dataset="jsonl")


def test_rates() -> None:
    assert Measured(3, 4).rate == 0.75
