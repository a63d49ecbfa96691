"""`rlvr sft RECIPE [key=value ...]`: supervised fine-tuning; the same command again resumes the run."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer


def command(
    recipe: Annotated[str, typer.Argument(help="An SFT recipe file, or the name of one in recipes/.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. run=base1 optimizer.lr=1e-3")] = None,
) -> None:
    """Fine-tune on the demonstrations of the training tasks. The same command again resumes the run."""
    from rlvr import check, config
    from rlvr.engine.deepspeed_env import environment
    from rlvr.recipe import SftRecipe

    project = Path.cwd()
    resolved = config.load(recipe, overrides=overrides or [], tree=SftRecipe, project=project)
    check.refuse(resolved, project=project)
    resources = resolved.recipe.resources
    os.environ.update(environment(resources.device, threads=resources.threads))  # before torch is imported
    from rlvr.sft import run_sft

    outcome = asyncio.run(run_sft(resolved, project=project))
    if outcome.step < outcome.steps:
        print(f"stopped and saved at step {outcome.step} of {outcome.steps}; the same command resumes: {outcome.path}")
        raise typer.Exit(130)
    again = " already: nothing to do" if outcome.already else ""
    print(f"done{again}: {outcome.step} of {outcome.steps} steps, model in {outcome.path / 'export'}")
