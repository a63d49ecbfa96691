"""Which methods of a recipe cannot stand together. Each method's own needs are in its `problems`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from rlvr.advantages.base import Estimator
from rlvr.corrections.base import Correction
from rlvr.explore.base import AddOn
from rlvr.methods import Read
from rlvr.recipe import Recipe
from rlvr.rollout.tree_method import TreeMethod
from rlvr.surrogates.base import Surrogate

Told = tuple[Literal["error", "warning"], str, str]  # dotted key, message


def conflicts(recipe: Recipe, read: Sequence[Read]) -> Iterator[Told]:
    """Everything that the methods refuse, alone and together."""
    built = {one.key: one.build() for one in read}
    surrogate = built.get("objective")
    inert = isinstance(surrogate, Surrogate) and surrogate.group_objective
    yield from _overwritten({key: method for key, method in built.items() if key.startswith("explore.")})
    explore = [method for key, method in built.items() if key.startswith("explore.")]
    grows = any(_overrides(method, "sampler", "guide") for method in explore)
    once = recipe.minibatches * recipe.epochs == 1 and not any(_overrides(m, "updates") for m in explore)
    for key, method in built.items():
        assert isinstance(method, AddOn | Correction)
        if key == "advantage" and inert:
            continue  # nobody looks at the advantages
        for text in method.problems(recipe):
            yield "error", key, text
        if isinstance(method, Estimator | Surrogate) and not grows:
            yield from _small_group(key, method, group=recipe.group)
        if isinstance(method, AddOn) and method.wants_updates and once:
            why = "the policy is the old one and every ratio is 1; set minibatches or epochs above 1"
            yield "warning", key, f"{method.kind!r} does nothing of its own with one update a step: {why}"
        if isinstance(method, AddOn) and isinstance(surrogate, Surrogate) and method.reweighs:
            yield from _one_ratio(key, method, surrogate)
        if isinstance(method, AddOn) and method.barrier and recipe.max_lag:
            given = f"got {recipe.max_lag}; the add-on {method.kind} needs the whole block at once: max_lag: 0"
            yield "error", "max_lag", given
        if isinstance(method, AddOn) and method.barrier and recipe.keep != "all":
            given = f"got {recipe.keep!r}; the add-on {method.kind} lets the draws of a step meet, none may come later"
            yield "error", "keep", f"{given}: keep: all"
        if key.startswith("explore.") and isinstance(method, AddOn) and inert:
            yield from _without_tokens(key, method, str(recipe.objective.kind))
    if isinstance(surrogate, Surrogate):
        correction = built.get("objective.correction")
        yield from _other_weights(recipe, surrogate, weighs=not isinstance(correction, Correction) or correction.weighs)


def _overrides(method: object, *hooks: str) -> bool:
    return any(getattr(type(method), hook) is not getattr(AddOn, hook) for hook in hooks)


def _overwritten(explore: Mapping[str, object]) -> Iterator[Told]:
    """A tree's credit takes the place of the advantages so far, also of what stands before it in the recipe."""
    changed: dict[str, AddOn] = {}
    for key, method in explore.items():
        if isinstance(method, TreeMethod) and type(method).advantage is TreeMethod.advantage:
            for before, addon in changed.items():
                given = f"{addon.kind!r} changes advantages that {method.kind!r} ({key}) then gives anew"
                yield "error", before, f"{given}: move it behind"
        elif isinstance(method, AddOn) and type(method).advantage is not AddOn.advantage:
            changed[key] = method


def _small_group(key: str, method: Estimator | Surrogate, *, group: int) -> Iterator[Told]:
    if group < method.fewest:
        given = f"it needs group >= {method.fewest}, got {group}"
        yield "error", key, f"{method.kind!r} compares the responses of a group: {given}"


def _one_ratio(key: str, addon: AddOn, surrogate: Surrogate) -> Iterator[Told]:
    """A token whose own loss is taken away still gets the gradient of the others' where all share one ratio."""
    if surrogate.per_response:
        why = f"the ratio of {surrogate.kind!r} is the response's, so every token gets the gradient of them all"
        form = "objective.token: true" if surrogate.kind == "gspo" else "an objective with a ratio per token"
        yield "warning", key, f"{addon.kind!r} acts on single tokens, but {why}; take {form}"


def _without_tokens(key: str, addon: AddOn, objective: str) -> Iterator[Told]:
    """What acts on tokens or advantages has nothing to act on in an objective over whole groups."""
    if addon.selects:
        yield (
            "error",
            key,
            f"{addon.kind!r} takes single tokens out of the loss, but objective {objective!r} is over whole groups",
        )
    if type(addon).advantage is not AddOn.advantage:
        yield "error", key, f"{addon.kind!r} changes advantages, which objective {objective!r} does not use"


def _other_weights(recipe: Recipe, surrogate: Surrogate, *, weighs: bool) -> Iterator[Told]:
    """Tokens that come from another distribution than the trainer's, with nothing that accounts for it."""
    sampling, key, kind = recipe.sampling, "objective.correction.kind", recipe.objective.correction.kind
    if weighs:
        return
    if (sampling.top_p < 1 or sampling.top_k > 0) and not surrogate.no_correction:
        given = f"top_p: {sampling.top_p:g}, top_k: {sampling.top_k}"
        yield (
            "error",
            key,
            f"got {kind!r} with a truncated sampler ({given}): its tokens come from another distribution than the "
            "trainer's, and nothing accounts for it; take a correction (tis), or top_p: 1 and top_k: -1",
        )
    if recipe.max_lag > 0 and kind == "none" and not surrogate.off_policy:
        late = f"with max_lag: {recipe.max_lag} tokens come from older weights, and nothing accounts for it"
        yield "warning", key, late
