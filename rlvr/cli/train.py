"""`rlvr train RECIPE [key=value ...]`: trains; the same command again resumes the run."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated

import typer


def command(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of one in recipes/.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. run=try1 optimizer.lr=1e-5")] = None,
) -> None:
    """Train by reinforcement learning from verifiable rewards. The same command again resumes the run."""
    since = time.perf_counter()
    from rlvr import check, config
    from rlvr.run import run_training

    project = Path.cwd()
    resolved = config.load(recipe, overrides=overrides or [], project=project)
    check.refuse(resolved, project=project)
    try:
        outcome = asyncio.run(run_training(resolved, project=project, since=since))
    except asyncio.CancelledError:
        print("stopped at once; the same command goes on from the last checkpoint, if there is one")
        raise typer.Exit(130) from None
    where = outcome.folder.path
    if outcome.stopped:
        print(f"stopped and saved at step {outcome.step} of {outcome.steps}; the same command resumes: {where}")
        raise typer.Exit(130)
    print(f"done: {outcome.step} of {outcome.steps} steps in {where} (rlvr view {where}, rlvr export {where})")
