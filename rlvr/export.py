"""A Hugging Face folder from a checkpoint: a copy of the weights that the checkpoint holds, with the tokenizer.

No engine and no rank is needed: every checkpoint carries `policy/model/`, the gathered weights as safetensors.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from rlvr import checkpoint, config
from rlvr.errors import CheckpointError, ConfigError
from rlvr.models import EXPORT_NOTE, load_tokenizer, resolve_model
from rlvr.recipe import Recipe, SftRecipe
from rlvr.track.run_dir import RunDir

WEIGHTS = Path("policy") / "model"
SCRATCH = "base"  # folder of a run whose model was built from nothing


def export_run(run: RunDir, *, step: int | None = None, out: Path | None = None, project: Path) -> Path:
    """Write the model of `run` after `step` (default: the newest checkpoint) to `out` (default: `RUN/export`).

    An older export there is replaced, in one rename. Raises CheckpointError where there is no such checkpoint, or
    the disk refuses; ConfigError where `out` is something else than a model folder.
    """
    source = _checkpoint(run, step) / WEIGHTS
    if not (source / "config.json").is_file():
        raise CheckpointError(f"{source} holds no model: the checkpoint is incomplete. Choose another with --step.")
    target = run.path / "export" if out is None else out
    if target.exists() and not (target / "config.json").is_file():
        raise ConfigError(f"{target} exists and is no model folder: give another one with --out")
    tokenizer = load_tokenizer(*tokenizer_of(run, project=project))
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        tokenizer.save_pretrained(partial)
        note = {"run": run.name, "checkpoint": source.parent.parent.name}
        (partial / EXPORT_NOTE).write_text(json.dumps(note) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        os.rename(partial, target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"cannot write {target}: {error.strerror or error}. Free some space.") from error
    return target


def tokenizer_of(run: RunDir, *, project: Path) -> tuple[str]:
    """The folder or Hub name that the run's tokenizer comes from."""
    tree = config.tree_of(run.recipe)
    recipe: Recipe | SftRecipe = config.load(run.recipe, tree=tree, project=project).recipe
    if recipe.model.scratch is not None and (run.path / SCRATCH / "config.json").is_file():
        return (str(run.path / SCRATCH),)
    return (resolve_model(recipe.checkpoint.start_from or str(recipe.model.path), project=project),)


def _checkpoint(run: RunDir, step: int | None) -> Path:
    there = checkpoint.steps(run.checkpoints)
    if not there:
        raise CheckpointError(f"{run.path} has no checkpoint yet, so nothing can be exported (see `checkpoint.every`)")
    if step is not None and step not in there:
        raise CheckpointError(f"{run.path} has no checkpoint of step {step}; there are: {', '.join(map(str, there))}")
    return run.checkpoints / f"step-{there[-1] if step is None else step:06d}"
