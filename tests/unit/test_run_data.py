from __future__ import annotations

from pathlib import Path

import pytest

from rlvr.errors import ConfigError
from rlvr.models import resolve_model
from rlvr.recipe import Data
from rlvr.run_data import eval_names


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
