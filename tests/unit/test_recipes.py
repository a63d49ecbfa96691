"""Every shipped recipe reads, passes `rlvr check` without a surprise, and survives being written and read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlvr import catalog, check, config
from rlvr.methods import EXPLORE
from rlvr.recipe import Recipe, SftRecipe
from rlvr.tasks import load_tasks

FOLDER = catalog.shipped("recipes")
RECIPES = [p for p in sorted(FOLDER.rglob("*.yaml")) if p.name != "base.yaml"]
NAMES = [str(p.relative_to(FOLDER)) for p in RECIPES]
BASES = {"quickstart.yaml": "sft/arithmetic_base.yaml", "grpo/tiny_gsm8k_cpu.yaml": "sft/gsm8k_tiny_base.yaml"}


def read(name: str) -> config.Resolved[Recipe] | config.Resolved[SftRecipe]:
    return config.load(FOLDER / name, tree=config.tree_of(FOLDER / name), project=FOLDER.parent)


def training(name: str) -> Recipe:
    recipe = read(name).recipe
    assert isinstance(recipe, Recipe)
    return recipe


@pytest.mark.parametrize("name", NAMES)
def test_passes_check(name: str) -> None:
    found = check.problems(read(name).recipe, project=FOLDER.parent)
    surprising = [
        p for p in found if not (p.key == "model.path" and "runs/" in p.message) and p.key != "resources.threads"
    ]
    assert surprising == []


@pytest.mark.parametrize("name", NAMES)
def test_dump_and_load_round_trip(name: str, tmp_path: Path) -> None:
    recipe = read(name).recipe
    path = tmp_path / "recipe.yaml"
    path.write_text(config.dump(recipe), encoding="utf-8")
    assert config.tree_of(path, project=tmp_path) is type(recipe)
    again = config.load(path, tree=type(recipe), project=tmp_path)
    assert again.recipe == recipe
    assert "default" not in again.sources.values()


def test_runs_have_names_of_their_own() -> None:
    runs = [read(name).recipe.run for name in NAMES]
    assert len(set(runs)) == len(runs)


@pytest.mark.parametrize(("name", "base"), BASES.items())
def test_the_base_that_a_recipe_starts_from_is_the_one_that_is_built(name: str, base: str) -> None:
    made, recipe = read(base).recipe, training(name)
    assert recipe.model.path == f"runs/{made.run}/export"
    assert made.model.scratch is not None
    assert recipe.prompt.max_tokens + recipe.sampling.max_tokens <= made.model.scratch.max_len
    assert (made.prompt, made.model.dtype) == (recipe.prompt, recipe.model.dtype)
    tasks = [[(s.name, s.options.get("numbers"), s.options.get("size")) for s in r.data.train] for r in (made, recipe)]
    assert tasks[0] == tasks[1]


def test_every_recipe_is_in_the_table_with_its_command() -> None:
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip().strip("`"): line for line in table.splitlines() if line.startswith("| `")}
    assert set(rows) == set(NAMES)
    for name, row in rows.items():
        verb = "sft" if isinstance(read(name).recipe, SftRecipe) else "train"
        assert f"rlvr {verb} recipes/{name}" in row or name == "quickstart.yaml", name


def test_the_quickstart_is_small() -> None:
    recipe, base = training("quickstart.yaml"), read("sft/arithmetic_base.yaml").recipe
    assert recipe.resources.device == "cpu" and recipe.model.dtype == "float32"
    assert (recipe.steps, recipe.prompts, recipe.group, recipe.minibatches) == (70, 64, 8, 4)
    size = check.parameters(base.model, project=FOLDER)
    assert size is not None and size < 2_000_000


def test_dapo_has_the_papers_numbers() -> None:
    """2503.14476, section 4.1, and the authors' script for what the paper leaves open."""
    for name in ("dapo/qwen2.5_7b_dapo_math.yaml", "dapo/qwen2.5_32b_dapo_math.yaml"):
        recipe = training(name)
        assert (recipe.prompts, recipe.group, recipe.minibatches * recipe.epochs) == (512, 16, 16)
        assert recipe.objective.options == {"low": 0.2, "high": 0.28, "dual": 10.0}
        assert recipe.objective.reduction == "token" and recipe.keep == "informative"
        assert (recipe.overlong.kind, recipe.overlong.buffer, recipe.sampling.max_tokens) == ("shape", 4096, 20480)
        assert (recipe.optimizer.lr, recipe.optimizer.warmup, recipe.kl.coef) == (1e-6, 10 * 16, 0.0)


def test_one_recipe_for_each_shipped_addon_and_one_that_stacks_them() -> None:
    for kind in EXPLORE.kinds:
        assert [a.kind for a in training(f"explore/{kind}_quickstart.yaml").explore] == [kind]
    assert {"clip_cov", "entropy_bonus", "length_reward", "temperature_schedule"} <= {
        a.kind for a in training("explore/stack_quickstart.yaml").explore
    }


@pytest.mark.parametrize("name", ["quickstart.yaml", "sft/arithmetic_base.yaml"])
def test_the_quickstarts_tasks_can_be_made(name: str) -> None:
    data = read(name).recipe.data
    train = [load_tasks(source, split="train", project=FOLDER.parent) for source in data.train]
    held_out = [load_tasks(source, split="eval", project=FOLDER.parent) for source in data.eval]
    assert [len(tasks) for tasks in train] == [120, 2000]
    assert [len(tasks) for tasks in held_out] == ([256] if name == "quickstart.yaml" else [])
    assert not {t.prompt for tasks in train for t in tasks} & {t.prompt for tasks in held_out for t in tasks}
