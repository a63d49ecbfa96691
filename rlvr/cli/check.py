"""`rlvr check RECIPES... [key=value ...]`: everything that is wrong with recipes, without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rlvr import check, config
from rlvr.errors import ConfigError
from rlvr.recipe import Recipe, SftRecipe

console = Console(highlight=False, soft_wrap=True)


def command(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPES... [key=value ...]", help="Files or names.")],
    machine: Annotated[bool, typer.Option("--machine", help="Compare with the GPUs of this machine.")] = False,
) -> None:
    """Validate recipes; exit 2 when one has an error."""
    names = [r for r in recipes if "=" not in r or Path(r).is_file()]
    overrides = [r for r in recipes if r not in names]
    if not names:
        raise ConfigError("check: no recipe given")
    good = [_check(name, overrides=overrides, machine=machine) for name in names]
    raise typer.Exit(0 if all(good) else 2)


def _check(name: str, *, overrides: list[str], machine: bool) -> bool:
    """Print what there is to say about one recipe; True where it has no error."""
    project = Path.cwd()
    try:
        tree = config.tree_of(name, project=project)
        resolved = config.load(name, overrides=overrides, tree=tree, project=project)
        problems = check.problems(resolved.recipe, project=project, machine=machine)
    except ConfigError as error:
        console.print(f"{name}: [bold red]{_count(len(error.problems), 'problem')}[/]")
        for problem in error.problems:
            console.print(f"  {problem}", markup=False)
        return False
    errors = [p for p in problems if p.level == "error"]
    verdict = f"[bold red]{_count(len(errors), 'error')}[/]" if errors else "[bold green]ok[/]"
    console.print(f"{name}: {verdict}, {_needs(resolved.recipe)}")
    for problem in sorted(problems, key=lambda p: p.level):
        where = check.place(problem.key, resolved)
        console.print(f"  {where}: {problem.level}: {problem.key}: {problem.message}", markup=False)
    size = check.memory(resolved.recipe, project=project)
    if size:
        console.print(f"  {size}", markup=False)
    return not errors


def _needs(recipe: Recipe | SftRecipe) -> str:
    resources = recipe.resources
    samplers = resources.samplers if isinstance(recipe, Recipe) else 0
    parts = [_count(resources.trainers, "trainer rank")]
    parts += [_count(samplers, "sampler")] if samplers else []
    if resources.device == "cpu":
        return f"CPU, {' and '.join(parts)} of {_count(resources.threads, 'thread')} each"
    if samplers and resources.tensor_parallel > 1:
        parts[-1] += f" x {resources.tensor_parallel}"
    how = " sharing them" if resources.colocate else ""
    return f"{_count(check.devices(resources, samplers=samplers), 'GPU')} ({', '.join(parts)}{how})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
