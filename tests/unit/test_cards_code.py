"""The cards whose answers are tests or instructions, on rows in the form that their sources have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlvr.errors import DataError
from rlvr.recipe import Source
from rlvr.tasks import load_tasks
from rlvr.types import Task

PROMPT = (
    'from typing import List\n\n\ndef helper(x):\n    return x\n\n\ndef add(a: int, b: int) -> int:\n    """Add."""\n'
)
HUMANEVAL = {
    "task_id": "HumanEval/0", "prompt": PROMPT, "canonical_solution": "    return helper(a) + b\n",
    "entry_point": "add", "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
}  # fmt: skip
MBPP = {"task_id": 11, "text": "Add.", "code": "def f(a, b):\r\n  return a + b", "test_setup_code": "",
        "test_list": ["assert f(1, 2) == 3", "assert f(0, 0) == 0"]}  # fmt: skip


def one(folder: Path, name: str, row: dict[str, Any], *, split: str = "eval", file: str = "", **options: Any) -> Task:
    (folder / f"{file or name}.jsonl").write_text(json.dumps(row))
    source = Source(name=name, path=str(folder / f"{file or name}.jsonl"), **options)
    (task,) = load_tasks(source, split=split, project=folder)
    return task


def fenced(text: str) -> str:
    return text.removeprefix("```python\n").removesuffix("\n```")


def test_humaneval_programs_pass_their_own_tests(tmp_path: Path) -> None:
    task = one(tmp_path, "humaneval", HUMANEVAL)
    answer = json.loads(task.answer)
    assert (task.id, task.verifier, answer["entry_point"]) == ("HumanEval/0", "code", "add")
    assert answer["setup"].startswith("from typing import List") and "def add" not in answer["setup"]
    space: dict[str, Any] = {}
    exec(fenced(task.demos[0]), space)
    exec(answer["asserts"][0], space)
    space["check"](space["add"])
    bare: dict[str, Any] = {}
    exec(f"{answer['setup']}\ndef add(a, b):\n    return helper(a) + b + 1", bare)  # a response without the helpers
    exec(answer["asserts"][0], bare)
    with pytest.raises(AssertionError):
        bare["check"](bare["add"])
    with pytest.raises(DataError, match="does not define other"):
        one(tmp_path, "humaneval", HUMANEVAL | {"entry_point": "other"})


def test_mbpp_shows_its_tests(tmp_path: Path) -> None:
    task = one(tmp_path, "mbpp", MBPP, split="train")
    assert (task.id, task.verifier, json.loads(task.answer)) == ("11", "code", {"asserts": MBPP["test_list"]})
    assert str(task.prompt).startswith("Add.\n\n") and "assert f(0, 0) == 0" in task.prompt
    space: dict[str, Any] = {}
    exec(fenced(task.demos[0]), space)
    assert space["f"](1, 2) == 3
    row = {k: v for k, v in MBPP.items() if k not in ("text", "test_setup_code")}
    row |= {"prompt": "Sum.", "test_imports": ["import math"]}
    task = one(tmp_path, "mbpp", row, config="sanitized")
    assert json.loads(task.answer)["test_setup"] == "import math" and str(task.prompt).startswith("Sum.")
    with pytest.raises(DataError, match="'test_list' is empty"):
        one(tmp_path, "mbpp", MBPP | {"test_list": []})


def test_ifeval_loses_the_nulls_of_the_hub(tmp_path: Path) -> None:
    row = {"key": 1000, "prompt": "Write.", "instruction_id_list": ["punctuation:no_comma", "length_constraints:n"],
           "kwargs": [{"n": None, "m": None}, {"n": 3, "m": None}]}  # fmt: skip
    task = one(tmp_path, "ifeval", row)
    assert (task.id, task.verifier) == ("1000", "ifeval")
    assert json.loads(task.answer) == {
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:n"], "kwargs": [{}, {"n": 3}],
    }  # fmt: skip
    with pytest.raises(DataError, match="same length"):
        one(tmp_path, "ifeval", row | {"kwargs": [{}]})
