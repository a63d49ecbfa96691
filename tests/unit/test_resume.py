"""What may change between a run and the same run resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlvr import config
from rlvr.errors import ConfigError
from rlvr.recipe import Recipe, SftRecipe
from rlvr.resume import same_recipe
from rlvr.track.run_dir import RunDir


def started(tmp_path: Path, name: str, tree: type[Recipe] | type[SftRecipe]) -> RunDir:
    """The folder of a run that was started with a shipped recipe."""
    folder = RunDir(tmp_path / "runs" / "r")
    folder.path.mkdir(parents=True)
    folder.write_recipe(config.dump(config.load(name, tree=tree).recipe))
    return folder


@pytest.mark.parametrize(
    ("word", "allowed"),
    [
        ("steps=999", True), ("evaluate.n=2", True), ("checkpoint.keep=9", True), ("limits.push=1", True),
        ("group=16", False), ("seed=1", False), ("checkpoint.start_from=runs/other", False),
        ("optimizer.lr=1e-9", False),
    ],
)  # fmt: skip
def test_what_may_change_in_training(tmp_path: Path, word: str, allowed: bool) -> None:
    folder = started(tmp_path, "quickstart", Recipe)
    now = config.load("quickstart", overrides=[word]).recipe
    if allowed:
        same_recipe(now, folder=folder)
    else:
        with pytest.raises(ConfigError, match=word.split("=")[0]):
            same_recipe(now, folder=folder)


@pytest.mark.parametrize("word", ["steps=999", "checkpoint.start_from=runs/other"])
def test_steps_shape_a_one_cycle_schedule(tmp_path: Path, word: str) -> None:
    folder = started(tmp_path, "sft/arithmetic_base", SftRecipe)
    now = config.load("sft/arithmetic_base", overrides=[word], tree=SftRecipe).recipe
    with pytest.raises(ConfigError, match=word.split("=")[0]):
        same_recipe(now, folder=folder)
