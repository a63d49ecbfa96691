"""What is wrong with `kl:` and `reference:` of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rlvr.explore.base import AddOn
from rlvr.problems import Problem, error, warning
from rlvr.recipe import KL, Recipe
from rlvr.reference import uses_reference


def kl_problems(kl: KL) -> Iterator[Problem]:
    """Forms of the KL whose value or gradient is not what it says."""
    if kl.where == "reward" and (kl.gradient or kl.importance):
        yield error("kl.where", "a reward has no gradient: `gradient` and `importance` are of `where: loss`")
    elif kl.importance and (kl.estimator == "k2" or kl.gradient):
        yield error("kl.importance", "is exact with `estimator: k3` (or k1) and its own gradient: remove the other")
    elif kl.coef > 0 and kl.where == "loss" and kl.estimator == "k1" and not (kl.gradient or kl.importance):
        fix = "use k2 or k3, `gradient: k2`, `importance: true`, or `where: reward`"
        yield error("kl.estimator", f"k1 has a gradient of mean zero in the loss: {fix}")


def reference_problems(recipe: Recipe, hooks: Sequence[AddOn]) -> Iterator[Problem]:
    """A reference that is told to move and cannot; `hooks` are the recipe's methods."""
    reference, evaluate = recipe.reference, recipe.evaluate
    timed = reference.update in ("every", "average")
    if timed and reference.steps is None:
        yield error("reference.steps", f"`update: {reference.update}` needs the number of steps between two moves")
    if not timed and reference.steps is not None:
        yield warning("reference.steps", f"has no effect with update: {reference.update}")
    if reference.update == "never":
        return
    if not uses_reference(recipe.kl, hooks):
        yield error("reference.update", "there is no reference model: kl.coef is 0, and no add-on asks for one")
    if reference.update == "plateau" and not (evaluate.every and recipe.data.eval):
        yield error("reference.update", "a plateau is one of evaluations: set data.eval and evaluate.every")
    zero = recipe.deepspeed.get("zero_optimization")
    offload = zero.get("offload_optimizer") if isinstance(zero, Mapping) else None
    swapped = isinstance(offload, Mapping) and offload.get("device") == "nvme"
    if reference.update in ("every", "plateau") and swapped:
        yield error("reference.update", "the optimizer's moments cannot be set to 0 on nvme: offload to cpu")
