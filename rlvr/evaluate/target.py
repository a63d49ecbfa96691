"""What `rlvr eval TARGET` evaluates: whose weights, under which recipe, and where the result belongs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlvr import catalog, check, checkpoint, config
from rlvr.errors import ConfigError
from rlvr.evaluate.settings import LENGTHS, Setting, is_written, setting
from rlvr.export import export_run
from rlvr.models import resolve_model
from rlvr.recipe import Recipe, SftRecipe, Source
from rlvr.run_data import eval_names
from rlvr.track.run_dir import ROOT, RunDir

_SHARED = ("seed", "model", "data", "prompt", "resources", "limits")  # keys of an SFT recipe that serve here


@dataclass(frozen=True)
class Target:
    """`recipe` says all about the evaluation but how each dataset is sampled, which `settings` says."""

    recipe: Recipe
    settings: Mapping[str, Setting]  # by the dataset's unique name
    folder: Path  # of the result


def resolve(target: str, *, names: Sequence[str], overrides: Sequence[str], project: Path) -> Target:
    """What is to be evaluated.

    `target` is a recipe file, a model folder, a run, the name of a recipe, or else a Hub name, tried in this
    order. A dataset that the recipe names keeps the options it has there. A run is exported first where it was
    not. Raises ConfigError.
    """
    file, first, folder = _place(target, names=names, project=project)
    if config.tree_of(file, project=project) is Recipe:
        resolved = config.load(file, overrides=[*first, *overrides], project=project)
    else:
        resolved = _from_sft(file, overrides=[*first, *overrides], project=project)
    recipe: Recipe = resolved.recipe
    known = {source.name: source for source in (*recipe.data.train, *recipe.data.eval)}
    sources: list[Source] = [known.get(name) or Source(name=name) for name in names]
    sources = sources or list(recipe.data.eval)
    if not sources:
        raise ConfigError(f"eval: {target} names no dataset in `data.eval`. Give one: --data NAME[,NAME]")
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"--data: {', '.join(doubled)} is named twice: name every dataset once")
    data = recipe.data.model_copy(update={"eval": tuple(sources)})
    resources = recipe.resources.model_copy(update={"colocate": False})
    made = recipe.model_copy(update={"data": data, "resources": resources})
    settings = {name: setting(name, made, resolved.sources) for name in eval_names(data)}
    written = any(is_written(key, resolved.sources) for key in LENGTHS)
    check.refuse(replace(resolved, recipe=_as_checked(made, settings, length_written=written)), project=project)
    return Target(made, settings, folder)


def _as_checked(recipe: Recipe, settings: Mapping[str, Setting], *, length_written: bool) -> Recipe:
    """As `check` is to see it: the samplers' devices alone, the benchmarks' n, and a length only where one was written
    (else responses end where the model's context does)."""
    alone = recipe.resources.model_copy(update={"trainers": 1, "colocate": recipe.resources.device == "gpu"})
    asked = recipe.evaluate.model_copy(update={"n": min(one.n for one in settings.values())})
    sampling = recipe.sampling if length_written else recipe.sampling.model_copy(update={"max_tokens": 1})
    changes = {"resources": alone, "max_lag": 0, "evaluate": asked, "sampling": sampling}
    return recipe.model_copy(update=changes)


def _place(target: str, *, names: Sequence[str], project: Path) -> tuple[str, list[str], Path]:
    """The recipe file to read, the overrides that put the weights in, and the folder of the result."""
    path = project / Path(target).expanduser()
    if path.is_file():
        return str(path), [], project
    if not (path / "config.json").is_file():
        run = next((r for r in map(RunDir, (path, project / ROOT / target)) if r.recipe.exists()), None)
        if run is not None:
            if not (run.path / "export").exists() and checkpoint.steps(run.checkpoints):
                export_run(run, project=project)
            weights = resolve_model(str(run.path), project=project, key="eval")
            return str(run.recipe), [f"model.path={json.dumps(weights)}"], run.path
        if target.removeprefix("recipes/").removesuffix(".yaml") in catalog.names("recipes", project=project):
            return target, [], project
    if not names:
        raise ConfigError(f"eval: {target} is a model, which names no dataset. Give one: --data NAME[,NAME]")
    weights = resolve_model(target, project=project, key="eval")
    return "base", [f"model.path={json.dumps(weights)}", f"data.train={json.dumps([{'name': names[0]}])}"], project


def _from_sft(file: str, *, overrides: Sequence[str], project: Path) -> Any:
    """An evaluation with the model, data and prompt of an SFT recipe."""
    keys = config.load(file, tree=SftRecipe, project=project).recipe.model_dump(mode="json", include=set(_SHARED))
    keys["model"]["scratch"] = None  # its export is what is evaluated
    kept = [f"{key}={json.dumps(value)}" for key, value in keys.items()]
    return config.load("base", overrides=[*kept, *overrides], project=project)
