"""docs/write_your_own_method.md: its code, as a user's files in a folder of their own, does what the page says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rlvr.batching import collate
from rlvr.cli.main import app
from rlvr.config import load
from rlvr.methods import EXPLORE, build_addons, method_class
from rlvr.objectives.view import TokenView
from rlvr.recipe import AddOnSpec
from rlvr.rollout.groups import flat_groups
from rlvr.rollout.tree import Tree
from rlvr.rollout.tree_method import TreeMethod
from rlvr.types import Group
from tests.unit.test_guidance import advantages, failing, guided
from tests.unit.test_tree import Fake, check, drawn, rt1, same, sampled

PAGE = Path(__file__).resolve().parents[2] / "docs" / "write_your_own_method.md"
NAMED = re.compile(r"^`(\w+\.(?:py|yaml))`[^\n]*\n\n```(?:python|yaml)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
FILES = dict(NAMED.findall(PAGE.read_text(encoding="utf-8")))
SEED = 0
TREE, GUIDANCE = "my_tree.py:SecondHalf", "my_guidance.py:LastResort"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the page writes, and nothing else."""
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def built(project: Path, kind: str, **options: Any) -> Any:
    (addon,) = build_addons([AddOnSpec.model_validate({"kind": kind, **options})], seed=7, project=project)
    return addon


def chains() -> Group:
    """Two right and two wrong chains of `Fake(SEED)`."""
    run = Fake(SEED)
    return drawn(flat_groups(run, run, run, seed=SEED), run)


def test_the_page_has_four_files_and_the_methods_are_short() -> None:
    assert sorted(FILES) == ["mine.yaml", "my_guidance.py", "my_tree.py", "test_mine.py"]
    assert all(len(FILES[name].splitlines()) < 40 for name in ("my_tree.py", "my_guidance.py"))
    assert max(len(line) for content in FILES.values() for line in content.splitlines()) <= 120


def test_the_recipe_passes_check(project: Path) -> None:
    assert issubclass(method_class(EXPLORE, TREE, project=project), TreeMethod)
    recipe = load("mine.yaml", project=project).recipe
    assert [spec.kind for spec in recipe.explore] == [TREE, GUIDANCE] and recipe.group == 4
    result = CliRunner().invoke(app, ["check", "mine.yaml"])
    assert result.exit_code == 0 and "mine.yaml: ok" in result.output and "error" not in result.output
    result = CliRunner().invoke(app, ["check", "mine.yaml", "explore.0.kk=3"])
    assert result.exit_code == 2 and "explore.0.kk: unknown key, did you mean 'k'?" in result.output


def test_its_own_tests_pass_and_can_fail(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(project))
    space: dict[str, Any] = {}
    exec(compile(FILES["test_mine.py"], "test_mine.py", "exec"), space)
    tests: list[Callable[[], None]] = [value for name, value in space.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()
    for cls, method in (("SecondHalf", "values"), ("LastResort", "demo_loss")):
        right = getattr(space[cls], method)
        monkeypatch.setattr(space[cls], method, lambda self, *args, right=right: 2 * right(self, *args))
    for test in tests:
        with pytest.raises(AssertionError):
            test()


def test_the_tree_grows_from_the_middle_of_wrong_chains(project: Path) -> None:
    run = Fake(SEED)
    group = sampled(built(project, TREE, k=3), run)
    check(group)
    wrong = [i for i, right in enumerate(chains().correct) if not right]
    assert len(wrong) == 2 and len(group) == 4 + 3 * 2 and len(run.calls) == 2
    middles = [(i, 3 + group.trajectories[i].response_len // 2) for i in wrong for _ in range(3)]
    assert [t.parent for t in group.trajectories] == [None] * 4 + middles
    assert same(group.with_(trajectories=group.trajectories[:4]), chains())
    assert len({r.sampling.seed for call in run.calls for r in call}) == len(group)
    assert same(group, sampled(built(project, TREE, k=3), Fake(SEED)))
    said = built(project, TREE).observe([group], {})
    assert said["active"] == 3 * 2 and said["refused"] == said["failed"] == 0


def test_the_tree_off_under_budget_and_broken_is_what_the_page_says(project: Path) -> None:
    assert same(sampled(built(project, TREE, k=0), Fake(SEED)), chains())
    poor = sampled(built(project, TREE, budget=64), Fake(SEED))
    check(poor, 64)
    assert poor.counts["second_half/refused"] > 0
    broken = sampled(built(project, TREE), Fake(SEED, broken=True))
    assert same(broken, chains()) and broken.counts["second_half/failed"] == 1


def test_the_trees_credit_by_hand(project: Path) -> None:
    group = rt1()
    group = group.with_(counts={"second_half/forks": 2.0})
    addon = built(project, TREE, rows="path_dedup")
    paths, values = Tree.of(group).paths, addon.values(group, Tree.of(group), group.scores.astype(float))
    assert [[float(values[n]) for n in path] for path in paths] == [
        [0.25, 0.5], [-0.25, 0.0], [0.25, -0.5], [-0.25, 0.0]
    ]  # fmt: skip
    (credited,) = addon.advantage([group])
    assert credited.advantages is not None
    assert credited.advantages[0].tolist() == [0, 0, 0, 0.25, 0.25, 0.5, 0.5]
    assert credited.trajectories[2].weight.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]  # shared tokens once
    plain = group.with_(counts={})
    assert addon.advantage([plain])[0] is plain


def test_guidance_comes_where_all_is_wrong(project: Path) -> None:
    addon = built(project, GUIDANCE)
    group: Group = guided(addon, failing(demos=("1 3", "1 2")))
    assert [t.source for t in group.trajectories] == ["policy"] * 7 + ["last_resort"]
    assert advantages(group) == pytest.approx([-0.125] * 7 + [0.875], abs=1e-6)
    assert np.isnan(group.trajectories[7].logprobs[group.trajectories[7].weight > 0]).all()
    assert addon.observe([group], {}) == {"demos": 1, "without": 0, "dropped_rejected": 1}
    marks = addon.knobs(SimpleNamespace(rows=collate([group])))
    assert [int(m.sum()) for m in marks.marks] == [0] * 7 + [3] and marks.metrics == {"active": 3.0}
    helped = failing(demos=("1 3",))
    solved = helped.with_(trajectories=(*helped.trajectories[:7], group.trajectories[7]))
    assert guided(addon, solved) is solved and guided(built(project, GUIDANCE, demos=0), helped) is helped


def test_the_guidances_loss_by_hand(project: Path) -> None:
    logp = torch.tensor([[-0.5, -2.0]], requires_grad=True)
    old, one = logp.detach(), torch.ones(1, 2)
    view = TokenView(logp, old, old, 0 * one, 0.875 * one, one, mark=torch.tensor([[0.0, 1.0]]))
    loss = built(project, GUIDANCE, coef=0.5).token_loss(view, 7 * one)
    loss.sum().backward()
    assert logp.grad is not None
    assert loss.tolist() == [[7.0, 0.875]] and logp.grad.tolist() == [[0.0, -0.4375]]
