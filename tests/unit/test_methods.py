"""Methods by kind: what is found, how it is named, and what is said about a wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlvr.errors import ConfigError
from rlvr.methods import EXPLORE, FAMILIES, build_addons, build_methods, defaults, method_class, plugin_files
from rlvr.recipe import AddOnSpec, Recipe

ADDON = """
from rlvr.explore.base import AddOn, AddOnConfig

class Config(AddOnConfig):
    size: int = 1

class Mine(AddOn):
    kind = "mine"
    Config = Config

NotOne = 3
"""


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate({"model": {"path": "a/b"}, "data": {"train": [{"name": "gsm8k"}]}} | changes)


def test_shipped_addons_are_found_by_kind(tmp_path: Path) -> None:
    assert {"clip_cov", "entropy_bonus", "length_reward", "temperature_schedule"} <= set(EXPLORE.kinds)
    for kind in EXPLORE.kinds:
        assert method_class(EXPLORE, kind, project=tmp_path).kind == kind


def test_addons_get_unique_names_and_their_options(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(ADDON)
    kinds = ["clip_cov", "my.py:Mine", "clip_cov", "my.py:Mine", "my.py:Mine"]
    specs = [AddOnSpec.model_validate({"kind": k}) for k in kinds]
    specs[2] = AddOnSpec.model_validate({"kind": "clip_cov", "ratio": 0.5})
    built = build_addons(specs, seed=7, project=tmp_path)
    assert [a.name for a in built] == ["clip_cov", "mine", "clip_cov#2", "mine#2", "mine#3"]
    assert built[2].config.ratio == 0.5 and {a.seed for a in built} == {7}


def test_every_wrong_addon_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(ADDON)
    raw = [
        {"kind": "clip_kov"},
        {"kind": "clip_cov", "ration": 1},
        {"kind": "my.py:Mine", "size": "big"},
        {"kind": "my.py:NotOne"},
        {"kind": "base"},
        {"kind": "clip_cov", "low": 3, "high": 2},
    ]
    with pytest.raises(ConfigError) as caught:
        build_addons([AddOnSpec.model_validate(r) for r in raw], seed=0, project=tmp_path)
    found = caught.value.problems
    assert found[0].startswith("explore.0.kind: unknown add-on 'clip_kov', did you mean 'clip_cov'? known in ")
    assert found[1] == "explore.1.ration: unknown key, did you mean 'ratio'?"
    assert found[2] == "explore.2.size: got 'big', expected a whole number"
    assert found[3] == f"explore.3.kind: {tmp_path / 'my.py'}: 'NotOne' is not a subclass of rlvr.explore.base.AddOn"
    assert found[4].startswith("explore.4.kind: unknown add-on 'base'")
    assert found[5].startswith("explore.5: the window of covariances is (low, high)")
    assert len(found) == 6


def test_plugins_of_a_recipe(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "model": {"path": "a/b"},
            "data": {"train": [{"name": "gsm8k"}], "eval": [{"name": "jsonl"}]},
            "verifier": {"name": "exact"},
            "explore": [{"kind": "clip_cov"}],
        }
    )
    found = plugin_files(recipe, project=tmp_path)
    assert {k: f.path.name for k, f in found.items()} == {
        "data.train.0": "gsm8k.py", "data.eval.0": "jsonl.py", "verifier": "exact.py", "explore.0": "clip_cov.py",
        "advantage": "grpo.py", "objective": "clip.py", "objective.correction": "tis.py",
    }  # fmt: skip


def test_every_kind_of_every_family_is_found_and_kinds_are_unique(tmp_path: Path) -> None:
    kinds = [(family, kind) for family in FAMILIES for kind in family.kinds]
    assert {"grpo", "dr_grpo", "clip", "tis", "none"} <= {kind for _, kind in kinds}
    assert len({kind for _, kind in kinds}) == len(kinds), "a kind is the name of one method"
    assert all(method_class(family, kind, project=tmp_path).kind == kind for family, kind in kinds)


OUTSIDE = """
from rlvr.advantages.base import Estimator, shaped
from rlvr.surrogates.base import Surrogate

class Raw(Estimator):
    kind = "raw"
    def scalars(self, group):
        return shaped(group)

class Plain(Surrogate):
    kind = "plain"
    reduction = "sequence"
    def loss(self, view):
        return -view.advantages * view.logp, {}
"""


def test_methods_from_outside_and_their_names(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(OUTSIDE)
    asked = recipe(advantage={"kind": "my.py:Raw"}, objective={"kind": "my.py:Plain"}, explore=[{"kind": "clip_cov"}])
    built = build_methods(asked, project=tmp_path)
    assert [hook.name for hook in built.hooks] == ["advantage", "objective", "clip_cov"]
    assert (built.estimator.kind, built.surrogate.kind, built.correction.kind) == ("raw", "plain", "tis")
    assert built.surrogate.reduction == "sequence" and built.surrogate.bounds == (float("inf"), float("inf"))


def test_every_wrong_method_is_told_at_once(tmp_path: Path) -> None:
    asked = recipe(
        advantage={"kind": "grp"},
        objective={"kind": "clip", "hihg": 0.3, "correction": {"kind": "tis", "cap": -1}},
        explore=[{"kind": "tis"}],
    )
    with pytest.raises(ConfigError) as caught:
        build_methods(asked, project=tmp_path)
    found = caught.value.problems
    assert found[0].startswith("advantage.kind: unknown advantage estimator 'grp', did you mean 'grpo'? known in ")
    assert found[1] == "objective.hihg: unknown key, did you mean 'high'?"
    assert found[2] == "objective.correction.cap: got -1, expected a number > 0"
    assert found[3] == (
        "explore.0.kind: 'tis' is no add-on but correction, of which a run has one: "
        "write `objective: {correction: {kind: tis}}`"
    )


def test_a_second_objective_is_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="'gspo' is no add-on but objective, of which a run has one: write `objective"
    ):
        build_methods(recipe(explore=[{"kind": "gspo"}]), project=tmp_path)
    with pytest.raises(ConfigError, match="'clip_cov' is no objective but add-on: write `explore: "):
        build_methods(recipe(objective={"kind": "clip_cov"}), project=tmp_path)


def test_defaults_are_what_the_recipe_does_not_write(tmp_path: Path) -> None:
    asked = recipe(advantage={"kind": "grpo", "std": False}, objective={"low": 0.1}, explore=[{"kind": "clip_cov"}])
    assert defaults(asked, project=tmp_path) == {
        "advantage.eps": 1e-6, "objective.high": 0.2, "objective.dual": None, "objective.correction.cap": 2.0,
        "explore.0.ratio": 2e-4, "explore.0.low": 1.0, "explore.0.high": 5.0,
    }  # fmt: skip
