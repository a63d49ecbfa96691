"""Generated data: teachers and hints of arithmetic, and countdown with its verifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlvr.catalog import find, load
from rlvr.errors import ConfigError, DataError
from rlvr.recipe import Source
from rlvr.rows import Dataset
from rlvr.tasks import load_tasks

ROOT = Path(__file__).resolve().parents[2]
EXACT = load(find("rewards", "exact", project=ROOT))
COUNTDOWN = load(find("rewards", "countdown", project=ROOT))
ARITHMETIC = load(find("data", "arithmetic", project=ROOT))


def tasks(name: str, split: str = "train", **options: Any) -> Dataset:
    return load_tasks(Source(name=name, **options), split=split, project=ROOT)


def test_teachers_differ_in_quality() -> None:
    made = tasks("arithmetic", noise=[0.0, 0.2, 0.6], demos=2, size=400, numbers=[2], highest=50)
    right = dict.fromkeys((0.0, 0.2, 0.6), 0)
    for task in made:
        assert task.meta["teachers"] == (0.0, 0.0, 0.2, 0.2, 0.6, 0.6)
        for demo, rate in zip(task.demos, task.meta["teachers"], strict=True):
            right[rate] += EXACT.verify(demo, task.answer)["score"] == 1
    assert right[0.0] == 800 and abs(right[0.2] - 640) < 45 and abs(right[0.6] - 320) < 55  # one step: 4 deviations


def test_hints_begin_the_right_solution_and_keep_its_end() -> None:
    assert ARITHMETIC.beginnings(["4*2=8", "3+8=11"]) == ("4*2=", "4*2=8,", "4*2=8,3+8=")
    for task in tasks("arithmetic", noise=0.0, demos=1, hints=True, size=100, numbers=[2, 4]):
        assert all(task.demos[0].startswith(hint) and hint != task.demos[0] for hint in task.hints)
        assert task.hints == tuple(sorted(task.hints, key=len)) and len(task.hints) == 2 * task.meta["numbers"] - 3
        assert task.demos[0] == task.hints[-1] + task.answer
    assert tasks("arithmetic", size=5)[0].hints == ()


@pytest.mark.parametrize("noise", [[0.1, 1.5], []])
def test_a_teacher_out_of_range_and_none_at_all(noise: list[float]) -> None:
    with pytest.raises(ConfigError, match="noise"):
        tasks("arithmetic", noise=noise)


def test_countdown_demonstrations_are_right_and_splits_apart() -> None:
    train, held_out = tasks("countdown", size=600, seed=1), tasks("countdown", "eval", size=200)
    assert not {t.prompt for t in train} & {t.prompt for t in held_out}
    for task in [*train, *held_out]:
        assert COUNTDOWN.check_answer(task.answer, None) is None
        assert COUNTDOWN.verify(task.demos[0], task.answer)["score"] == 1, task
        assert 1 <= int(task.answer.partition("=")[2]) <= 100 and task.verifier == "countdown"
    assert [t.meta["numbers"] for t in train].count(3) == 300
    assert tasks("countdown", size=600, seed=1) == train


@pytest.mark.parametrize("options", [{"numbers": [1]}, {"numbers": [9]}, {"numbers": [2], "highest": 2, "size": 99}])
def test_countdown_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="countdown"):
        tasks("countdown", **options)


GOLD = "2,3,5,50=45"


@pytest.mark.parametrize(
    "response",
    ["50-5*(3-2)", "50 - 5 * (3 - 2) = 45", "Let me see: 5*3=15.\nThe answer is: $50-5\\times(3-2)$.",
     "<think>50-5</think>\\boxed{50-5/(3-2)}", "5*(50/(5*2))*0+45\n(50-5)/(3-2)"],
)  # fmt: skip
def test_countdown_right(response: str) -> None:
    assert COUNTDOWN.verify(response, GOLD) | {"detail": ""} == COUNTDOWN.verify(response, GOLD)
    assert COUNTDOWN.verify(response, GOLD)["score"] == 1


@pytest.mark.parametrize(
    "response",
    ["45", "50-5", "50-5*(3-2)*1", "50-5*3-2", "", "45=45", "50-5/(3-3)", "(" * 190, "9" * 150 + "**9", "9**9**9",
     "__import__('os').getpid()", "50-5*(3-2) or 1", "<think>\\boxed{50-5*(3-2)}</think> done", "-50+95", "2.0+3+5+35",
     "50-5*(3-2)+0*" + "1*" * 200 + "1", "True*50-5*(3-2)"],
)  # fmt: skip
def test_countdown_wrong(response: str) -> None:
    assert COUNTDOWN.verify(response, GOLD)["score"] == 0


def test_countdown_golds() -> None:
    assert COUNTDOWN.check_answer("36", None) and COUNTDOWN.check_answer("3,5=8", None) is None
    with pytest.raises(ValueError, match="cannot be read"):
        COUNTDOWN.verify("1", "x")
