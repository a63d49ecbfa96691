"""Methods that sample a draw in rounds. Seeds come from the numbers of its responses, so there is one such a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlvr.rollout.tree_method import KINDS

if TYPE_CHECKING:
    from rlvr.recipe import Recipe

ROUNDS = frozenset({"dars", "eepo", "reinforce_ada", "seele"})


def round_problems(kind: str, recipe: Recipe) -> Sequence[str]:
    """A second method of rounds, whose rounds would repeat the first one's seeds; a tree, whose budget is for one."""
    rounds = [spec.kind for spec in recipe.explore if spec.kind in ROUNDS]
    trees = [spec.kind for spec in recipe.explore if spec.kind in KINDS]
    found = []
    if len(rounds) > 1:
        found.append(f"one method of rounds a recipe, got {', '.join(rounds)}: they would sample the same seeds twice")
    if trees:
        found.append(f"{kind!r} samples a draw in rounds, {trees[0]!r} in one tree: take one of them away")
    return found
