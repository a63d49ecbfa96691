"""What may differ between a run and the same run resumed."""

from __future__ import annotations

from rlvr import config
from rlvr.errors import ConfigError
from rlvr.recipe import Recipe, SftRecipe
from rlvr.track.run_dir import RunDir

FREE = (  # keys that decide nothing of what is trained
    *("checkpoint.every", "checkpoint.keep", "checkpoint.best"),
    *("evaluate", "track", "limits", "resources.address"),
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
