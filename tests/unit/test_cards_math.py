"""The cards of DAPO-Math, AIME 2024 and MATH-500, on rows in the form that their sources have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlvr.errors import DataError
from rlvr.recipe import Source
from rlvr.tasks import load_tasks
from rlvr.types import Task

TEMPLATED = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\nWhat is $1+1$?\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLVR_DATA", str(tmp_path))
    return tmp_path


def tasks(folder: Path, name: str, *rows: dict[str, object], split: str = "eval") -> list[Task]:
    (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return load_tasks(Source(name=name), split=split, project=folder)


def test_aime_answers_lose_their_leading_zeros(folder: Path) -> None:
    made = tasks(folder, "aime24", {"problem": "p", "answer": "033"}, {"problem": "q", "answer": "0"})
    assert [(t.id, t.prompt, t.answer, t.source) for t in made] == [
        ("1", "p", "33", "aime24"),
        ("2", "q", "0", "aime24"),
    ]
    with pytest.raises(DataError, match=r"aime24.jsonl:1: 'answer' is '3\.5', expected a whole number"):
        tasks(folder, "aime24", {"problem": "p", "answer": "3.5"})


def test_math500_keeps_latex_and_ids(folder: Path) -> None:
    row = {"problem": "p", "answer": "\\frac{1}{2}", "subject": "Algebra", "level": 2, "unique_id": "test/a/1.json"}
    (task,) = tasks(folder, "math500", row)
    assert (task.id, task.answer, task.meta["level"]) == ("test/a/1.json", "\\frac{1}{2}", 2)


def test_dapo_prompts_lose_the_answer_template(folder: Path) -> None:
    rows = [{"prompt": TEMPLATED, "solution": "2"}, {"prompt": "What is $1+2$?", "solution": "3"}]
    made = tasks(folder, "dapo_math", *rows, split="train")
    assert [(t.prompt, t.answer) for t in made] == [("What is $1+1$?", "2"), ("What is $1+2$?", "3")]


@pytest.mark.parametrize(("name", "split"), [("aime24", "train"), ("math500", "train"), ("dapo_math", "eval")])
def test_benchmarks_and_training_data_stay_apart(folder: Path, name: str, split: str) -> None:
    with pytest.raises(DataError, match=r"data\.eval"):
        tasks(
            folder, name, {"problem": "p", "prompt": "p", "answer": "1", "solution": "1", "unique_id": "u"}, split=split
        )
