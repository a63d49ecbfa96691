"""What may differ between a run and the same run resumed."""

from __future__ import annotations

from collections.abc import Mapping

from rlvr import config
from rlvr.errors import CheckpointError, ConfigError
from rlvr.recipe import Recipe, SftRecipe
from rlvr.track.run_dir import RunDir

REFERENCE_MODEL = "the reference model"  # among the digests of a checkpoint
FREE = (  # keys that decide nothing of what is trained
    *("checkpoint.every", "checkpoint.keep", "checkpoint.best"),
    *("evaluate", "track", "limits", "resources.address"),
)


def same_reference(now: Mapping[str, str], before: Mapping[str, str]) -> None:
    """Raise CheckpointError where the folder that pi_ref comes from has other weights than when the run was saved.

    Both are digests by name, as in the checkpoint; the others may differ and are only warned of.
    """
    old = before.get(REFERENCE_MODEL)
    if old is not None and now.get(REFERENCE_MODEL) != old:
        raise CheckpointError(
            f"the reference model is not the one that the run was saved with: its digest was {old[:12]}, it is "
            f"{now.get(REFERENCE_MODEL, 'none')[:12]}. Put the folder of `model.path` (or `checkpoint.start_from`) "
            "back as it was, or start a new run from this one's weights (`checkpoint.start_from`)."
        )


def same_recipe(recipe: Recipe | SftRecipe, *, folder: RunDir) -> None:
    """Raise ConfigError where `recipe` differs from the one that the run in `folder` was started with.

    `steps` may change under a constant learning rate; any other schedule is shaped by it.
    """
    before = config.leaves(config.load(folder.recipe, tree=type(recipe)).recipe)
    now = config.leaves(recipe)
    free = (*FREE, *(("steps",) if recipe.optimizer.schedule == "constant" else ()))
    changed = [
        f"{folder.recipe}: {key}: this run was started with {before.get(key)!r}, got {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not any(f"{key}.".startswith(f"{name}.") for name in free)
    ]
    if changed:
        raise ConfigError(
            [
                *changed,
                f"A run resumes with the recipe that it was started with (only {', '.join(free)} may change). Choose "
                f"another name with run=NAME; `checkpoint.start_from={folder.path}` begins from these weights.",
            ]
        )
