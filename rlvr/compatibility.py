"""Which methods of a recipe cannot stand together. Each method's own needs are in its `problems`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from rlvr.corrections.base import Correction
from rlvr.explore.base import AddOn
from rlvr.methods import Read
from rlvr.recipe import Recipe
from rlvr.surrogates.base import Surrogate

Told = tuple[Literal["error", "warning"], str, str]  # dotted key, message


def conflicts(recipe: Recipe, read: Sequence[Read]) -> Iterator[Told]:
    """Everything that the methods refuse, alone and together."""
    built = {one.key: one.build() for one in read}
    surrogate = built.get("objective")
    inert = isinstance(surrogate, Surrogate) and surrogate.group_objective
    for key, method in built.items():
        assert isinstance(method, AddOn | Correction)
        if key == "advantage" and inert:
            continue  # nobody looks at the advantages
        for text in method.problems(recipe):
            yield "error", key, text
        if isinstance(method, AddOn) and method.barrier and recipe.max_lag:
            given = f"got {recipe.max_lag}; the add-on {method.kind} needs the whole block at once: max_lag: 0"
            yield "error", "max_lag", given
        if key.startswith("explore.") and isinstance(method, AddOn) and inert:
            yield from _without_tokens(key, method, str(recipe.objective.kind))
    if isinstance(surrogate, Surrogate):
        yield from _other_weights(recipe, surrogate)


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


def _other_weights(recipe: Recipe, surrogate: Surrogate) -> Iterator[Told]:
    """Tokens that come from another distribution than the trainer's, with nothing that accounts for it."""
    sampling, key = recipe.sampling, "objective.correction.kind"
    if recipe.objective.correction.kind != "none":
        return
    if (sampling.top_p < 1 or sampling.top_k > 0) and not surrogate.no_correction:
        given = f"top_p: {sampling.top_p:g}, top_k: {sampling.top_k}"
        yield (
            "error",
            key,
            f"got 'none' with a truncated sampler ({given}): its tokens come from another distribution than the "
            "trainer's, and nothing accounts for it; take a correction (tis), or top_p: 1 and top_k: -1",
        )
    if recipe.max_lag > 0 and not surrogate.off_policy:
        late = f"with max_lag: {recipe.max_lag} tokens come from older weights, and nothing accounts for it"
        yield "warning", key, late
