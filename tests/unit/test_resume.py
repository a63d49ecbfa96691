"""What may change between a run and the same run resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlvr import config
from rlvr.errors import CheckpointError, ConfigError
from rlvr.recipe import Recipe, SftRecipe
from rlvr.resume import REFERENCE_MODEL, same_recipe, same_reference
from rlvr.run_data import reference_digest
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


def test_a_reference_that_was_trained_anew_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    recipe = config.load("quickstart", overrides=["kl.coef=0.1"]).recipe

    def digest(weights: bytes) -> dict[str, str]:
        (folder / "model.safetensors").write_bytes(weights)
        return reference_digest(recipe, model_path=str(folder), project=tmp_path)

    before = digest(b"abc")
    same_reference(digest(b"abc"), before)
    for now in (digest(b"abd"), {}):
        with pytest.raises(CheckpointError, match=r"model\.path"):
            same_reference(now, before)
    same_reference(before, {})  # a checkpoint from before there was a digest, or a run without KL


def test_only_a_reference_that_stays_needs_a_digest(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    def named(*words: str) -> list[str]:
        recipe = config.load("quickstart", overrides=words).recipe
        return list(reference_digest(recipe, model_path=str(tmp_path), project=tmp_path))

    assert named() == [] and named("kl.coef=0.1") == [REFERENCE_MODEL]
    assert named("kl.coef=0.1", "reference.update=every", "reference.steps=2") == []
