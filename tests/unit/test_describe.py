"""`rlvr methods`: everything is listed, explained from the code alone, and honest about what is reconstructed."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlvr.cli import main as cli
from rlvr.config import load
from rlvr.describe import Description, describe, describe_all
from rlvr.errors import ConfigError
from rlvr.methods import FAMILIES, plugin_files
from rlvr.recipe import Recipe
from tests.unit.test_cli import loaded_by

ALL = describe_all(project=Path())
each = pytest.mark.parametrize("method", ALL, ids=lambda m: m.kind)


def output(*args: str) -> str:
    result = CliRunner().invoke(cli.app, ["methods", *args])
    assert result.exit_code == 0, result.output
    return result.output


def test_every_method_is_listed_with_what_a_user_chooses_by() -> None:
    lines = output().splitlines()
    assert lines[0].split() == ["kind", "key", "paper", "fidelity", "recipe", "hooks"]
    listed = [line.split()[0] for line in lines[1 : lines.index("")]]
    assert listed == [kind for family in FAMILIES for kind in family.kinds]
    rows = {line.split()[0]: line.split() for line in lines[1:] if line}
    assert rows["egsw"][-2:] == ["knobs", "token_advantage"]
    assert rows["grpo"][4] == "base.yaml" == rows["clip"][6]
    (gspo,) = [line for line in lines if line.startswith("gspo ")]
    assert gspo.split() == ["gspo", "objective", "2507.18071", "exact", "objectives/gspo_quickstart.yaml", "loss"]


@each
def test_one_method_has_equation_fidelity_defaults_and_a_recipe(method: Description) -> None:
    assert method.fidelity in ("exact", "close", "reconstructed")
    assert method.title.endswith(".") and len(method.text) > 80 and method.hooks
    assert method.recipes
    text = output(method.kind)
    assert method.title in text and method.written in text
    assert all(f"  {option}: " in text for option in method.defaults)
    assert ("RECONSTRUCTED" in text) == (method.fidelity == "reconstructed")


@each
def test_the_line_for_a_recipe_is_one_that_names_it(method: Description, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"model: a/b\ndata: {{train: gsm8k}}\n{method.written}\n")
    recipe = load(path, tree=Recipe, project=tmp_path).recipe
    assert method.kind in {found.name for found in plugin_files(recipe, project=tmp_path).values()}


def test_reconstructed_entries_are_marked_in_the_table() -> None:
    marked = {line.split()[0] for line in output().splitlines() if "RECONSTRUCTED" in line}
    assert marked == {m.kind for m in ALL if m.reconstructed} and "temperature_schedule" in marked


def test_reductions_and_defaults_are_the_papers() -> None:
    assert "reduction     sequence" in output("gspo") and "  low: 0.0003" in output("gspo")
    assert "correction: {kind: none}" in output("decoupled") and describe("tis", project=Path()).reduction is None


def test_an_unknown_method_names_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"unknown method 'gpso', did you mean 'gspo'\? known: a_star_po, "):
        describe("gpso", project=Path())


def test_it_starts_no_engine() -> None:
    assert not loaded_by("methods") & {"torch", "ray", "vllm", "deepspeed", "transformers"}
