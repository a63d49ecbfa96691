from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlvr.errors import ConfigError, DataError
from rlvr.models import resolve_model
from rlvr.recipe import Data
from rlvr.run_data import bad_rows, eval_names, read_sets
from rlvr.types import Task
from rlvr.verify.pool import VerifierPool
from tests.unit.verifiers import specs


def test_an_evaluation_set_listed_twice_has_two_names() -> None:
    sources = [{"name": "a"}, {"name": "b"}, {"name": "a", "k": 1}]
    data = Data.model_validate({"train": sources[:1], "eval": sources})
    assert eval_names(data) == ["a", "b", "a#2"]


def test_a_model_is_a_folder_a_run_or_a_hub_name(tmp_path: Path) -> None:
    (tmp_path / "runs/done/export").mkdir(parents=True)
    (tmp_path / "runs/done/export/config.json").write_text("{}")
    (tmp_path / "runs/raw/checkpoints").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    assert resolve_model("runs/done", project=tmp_path).endswith("runs/done/export")
    assert resolve_model("Qwen/Qwen3-1.7B", project=tmp_path) == "Qwen/Qwen3-1.7B"
    for path, says in (("runs/raw", "rlvr export runs/raw"), ("./gone", "no such folder"), ("empty", "no config.json")):
        with pytest.raises(ConfigError, match=says):
            resolve_model(path, project=tmp_path)


def rows(folder: Path, name: str, *prompts: str, answer: str = "1") -> str:
    (folder / name).write_text("\n".join(json.dumps({"prompt": p, "answer": answer, "id": p}) for p in prompts))
    return str(folder / name)


def test_training_rows_of_the_evaluation_sets_go_before_the_sets_are_cut(tmp_path: Path) -> None:
    train, held_out = rows(tmp_path, "a.jsonl", "a", "b", "c", "c"), rows(tmp_path, "b.jsonl", "x", "B")
    data = Data.model_validate(
        {"train": [{"name": "jsonl", "path": train}], "eval": [{"name": "jsonl", "path": held_out}]}
    )
    [kept], sets, notes = read_sets(data, project=tmp_path, limit=1)
    assert [t.prompt for t in kept] == ["a", "c"]
    assert [t.prompt for t in sets["jsonl"]] == ["x"]  # `evaluate.tasks: 1`; B was looked for all the same
    assert "1 of 3 training rows" in notes[0]
    assert notes[1] == "dataset 'jsonl': left out 1 prompts of an evaluation set, 1 repeats of an earlier row"


def test_the_split_of_a_source_can_be_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dapo_math.jsonl").write_text(json.dumps({"prompt": "p", "solution": "1"}))
    monkeypatch.setenv("RLVR_DATA", str(tmp_path))
    sources = {"train": [{"name": "arithmetic", "size": 5}], "eval": [{"name": "dapo_math", "split": "train"}]}
    _, sets, _ = read_sets(Data.model_validate(sources), project=tmp_path)
    assert [t.prompt for t in sets["dapo_math"]] == ["p"]


def test_bad_golds_stop_the_load_or_are_left_out(tmp_path: Path) -> None:
    tasks = [Task("1", "?", "1", source="mine"), Task("2", "?", "=", source="mine")]
    with VerifierPool(specs("exact", project=tmp_path), processes=1) as pool:
        with pytest.raises(DataError, match=r"row 2 .*contains a mark(.|\n)*on_bad_rows: drop"):
            bad_rows(pool, tasks, drop=False)
        assert bad_rows(pool, tasks, drop=True) == {id(tasks[1])}
        assert bad_rows(pool, tasks[:1], drop=False) == set()
