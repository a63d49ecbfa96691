"""What `rlvr eval TARGET` evaluates, and how it shows the result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from rlvr import config
from rlvr.cli.eval import outcome, resolve, table
from rlvr.errors import ConfigError
from rlvr.evaluate.run import TaskResult, summarise
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


def test_a_run_that_was_not_exported_says_so(project: Path) -> None:
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


def test_result_and_table(project: Path) -> None:
    rows = [TaskResult(f"t{i}", 4, i, 0, 0, 2, 0.5, 3.0) for i in range(4)]
    result = summarise(rows, dataset="arith[metic]", n=4, ks=(1, 2), seed=0)
    recipe, _ = resolve("rl", names=[], overrides=[], project=project)
    made = json.loads(json.dumps(outcome(recipe, [result], wall=1.23)))
    assert made["datasets"][0]["pass@1"]["value"] == pytest.approx((0 + 1 + 2 + 3) / 16)
    assert "step" not in made["datasets"][0] and len(made["details"]["arith[metic]"]) == 4
    assert made["verifier"]["name"] == "exact" and made["max_tokens"] == 1024
    console = Console(width=60, record=True, file=(project / "out").open("w"))
    console.print(table([result]))
    shown = console.export_text()
    assert "arith[metic]" in shown and "0.375 [" in shown and "pass@2" in shown and "maj@4" in shown
