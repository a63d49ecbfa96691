"""What `rlvr eval TARGET` evaluates, and how it shows the result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlvr import config
from rlvr.errors import ConfigError
from rlvr.evaluate.settings import BENCHMARKS
from rlvr.evaluate.target import Target
from rlvr.evaluate.target import resolve as find
from rlvr.recipe import Recipe, SftRecipe

CPU = "resources.device=cpu"
MODEL = {"path": "base-model"}
DATA = {"train": [{"name": "arithmetic", "seed": 2}], "eval": [{"name": "arithmetic", "seed": 3, "size": 8}]}


def model_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"max_position_embeddings": 4096}))
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A model folder, an RL run that was exported, an SFT run that was not."""
    model_folder(tmp_path / "base-model")
    rl = Recipe.model_validate(
        {"model": MODEL, "data": DATA, "verifier": {"name": "exact"}, "resources": {"device": "cpu"}}
    )
    model_folder(tmp_path / "runs/rl/export")
    (tmp_path / "runs/rl/recipe.yaml").write_text(config.dump(rl))
    sft = SftRecipe.model_validate(
        {"model": MODEL, "data": DATA | {"eval": []}, "prompt": {"max_tokens": 77}, "resources": {"device": "cpu"}}
    )
    (tmp_path / "runs/base/checkpoints").mkdir(parents=True)
    (tmp_path / "runs/base/recipe.yaml").write_text(config.dump(sft))
    return tmp_path


def resolve(target: str, **asked) -> tuple[Recipe, Path]:
    found: Target = find(target, **asked)
    return found.recipe, found.folder


def options(recipe: Recipe) -> list[tuple[str, dict]]:
    return [(source.name, source.options) for source in recipe.data.eval]


@pytest.mark.parametrize("target", ["rl", "runs/rl"])
def test_a_run_brings_its_recipe_and_its_weights(project: Path, target: str) -> None:
    recipe, folder = resolve(target, names=[], overrides=["evaluate.n=16", "evaluate.k=[1,8]"], project=project)
    assert recipe.model.path == str(project / "runs/rl/export") and folder == project / "runs/rl"
    assert recipe.verifier.name == "exact" and recipe.evaluate.k == (1, 8)
    assert options(recipe) == [("arithmetic", {"seed": 3, "size": 8})]


def test_a_recipe_file_means_its_own_model(project: Path) -> None:
    file = project / "runs/rl/recipe.yaml"
    recipe, folder = resolve(str(file), names=[], overrides=[], project=project)
    assert recipe.model.path == "base-model" and folder == project


def test_a_model_is_told_what_to_be_evaluated_on(project: Path) -> None:
    recipe, folder = resolve("base-model", names=["arithmetic", "gsm8k"], overrides=[CPU], project=project)
    assert recipe.model.path == str(project / "base-model") and folder == project
    assert options(recipe) == [("arithmetic", {}), ("gsm8k", {})]
    with pytest.raises(ConfigError, match=r"names no dataset\. Give one: --data"):
        resolve("base-model", names=[], overrides=[CPU], project=project)


def test_a_run_that_has_no_checkpoint_says_so(project: Path) -> None:
    with pytest.raises(ConfigError, match="rlvr export"):
        resolve("base", names=["arithmetic"], overrides=[], project=project)


def test_an_sft_run_lends_its_model_data_and_prompt(project: Path) -> None:
    model_folder(project / "runs/base/export")
    recipe, _ = resolve("runs/base", names=["arithmetic"], overrides=["verifier=exact"], project=project)
    assert recipe.prompt.max_tokens == 77 and recipe.resources.device == "cpu"
    assert recipe.model.path == str(project / "runs/base/export")
    assert options(recipe) == [("arithmetic", {"seed": 2})]
    with pytest.raises(ConfigError, match=r"names no dataset in `data\.eval`"):
        resolve("runs/base", names=[], overrides=["verifier=exact"], project=project)


def test_problems_of_the_recipe_are_said_before_an_engine_starts(project: Path) -> None:
    with pytest.raises(ConfigError, match="k = 8"):
        resolve("rl", names=[], overrides=["evaluate.n=4", "evaluate.k=[1,8]"], project=project)


def test_one_dataset_named_twice(project: Path) -> None:
    with pytest.raises(ConfigError, match="arithmetic is named twice"):
        resolve("base-model", names=["arithmetic", "arithmetic"], overrides=[CPU], project=project)


def test_benchmarks_bring_their_settings(project: Path) -> None:
    names = ["aime24", "math500", "arithmetic"]
    found = find("base-model", names=names, overrides=[CPU], project=project).settings
    assert found["aime24"] == BENCHMARKS["aime24"] and "2501.12948" in found["aime24"].source
    assert (found["math500"].n, found["math500"].temperature) == (4, 0.6)
    assert (found["arithmetic"].n, found["arithmetic"].temperature) == (4, 1.0)


def test_what_is_written_wins_over_the_benchmark(project: Path) -> None:
    asked = [CPU, "evaluate.n=8", "evaluate.temperature=1.0"]
    found = find("base-model", names=["aime24"], overrides=asked, project=project).settings["aime24"]
    assert (found.n, found.k, found.temperature, found.top_p) == (8, (1, 4), 1.0, 0.95)
    assert found.source.endswith("changed by the recipe or the command: n, temperature")
    found = find("base-model", names=["aime24"], overrides=[CPU, "evaluate.k=[1,32]"], project=project)
    assert found.settings["aime24"].k == (1, 32) and found.settings["aime24"].n == 32


def test_an_sft_run_of_a_scratch_model(project: Path) -> None:
    model_folder(project / "runs/scratch/export")
    sft = {"model": {"scratch": {"layers": 1}}, "data": DATA, "resources": {"device": "cpu"}}
    (project / "runs/scratch/recipe.yaml").write_text(config.dump(SftRecipe.model_validate(sft)))
    recipe, _ = resolve("scratch", names=[], overrides=["verifier=exact"], project=project)
    assert recipe.model.scratch is None and recipe.model.path == str(project / "runs/scratch/export")


def test_an_export_older_than_the_newest_checkpoint_is_not_taken_for_the_run(project: Path) -> None:
    run = project / "runs/rl"
    (run / "checkpoints/step-000020").mkdir(parents=True)
    (run / "export/rlvr_export.json").write_text(json.dumps({"run": "rl", "checkpoint": "step-000020"}))
    assert resolve("rl", names=[], overrides=[], project=project)[0].model.path == str(run / "export")
    (run / "checkpoints/step-000040").mkdir()
    with pytest.raises(ConfigError, match="written before step-000040, the newest checkpoint of this run: run `rlvr"):
        resolve("rl", names=[], overrides=[], project=project)
    as_it_is, _ = resolve("runs/rl/export", names=["arithmetic"], overrides=[CPU], project=project)
    assert as_it_is.model.path == str(run / "export")
