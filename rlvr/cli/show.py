"""`rlvr show RECIPE [key=value ...]`: the resolved tree, where each value came from, and the plug-ins' files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from rlvr import config, methods
from rlvr.recipe import Recipe, SftRecipe
from rlvr.verify.specs import read_spec
from rlvr.words import shorten

console = Console(highlight=False, soft_wrap=True)


def command(
    recipe: Annotated[str, typer.Argument(help="A file, or a name in recipes/.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]")] = None,
) -> None:
    """Print a resolved recipe; raises ConfigError with every problem."""
    project = Path.cwd()
    tree = config.tree_of(recipe, project=project)
    resolved = config.load(recipe, overrides=overrides or (), tree=tree, project=project)
    tree = config.leaves(resolved.recipe)
    if isinstance(resolved.recipe, Recipe):
        tree = _with_options(tree, methods.defaults(resolved.recipe, project=project))
    values = {key: shorten(value, limit=80) for key, value in tree.items()}
    wide, long = max(map(len, values)), max(map(len, values.values()))
    for key, value in values.items():
        source = resolved.sources.get(key, config.DEFAULT)
        style = "dim" if source == config.DEFAULT else ""
        console.print(Text(f"{key:<{wide}}  {value:<{min(long, 48)}}  {source}", style=style))
    _plugins(resolved.recipe, project=project)


def _with_options(tree: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The tree's values, with the defaults of a method's own options after its `kind`."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out[key] = value
        place, _, last = key.rpartition(".")
        if last == "kind":
            out |= {option: v for option, v in options.items() if option.rpartition(".")[0] == place}
    return out


def _plugins(recipe: Recipe | SftRecipe, *, project: Path) -> None:
    console.print("\nplug-ins")
    files = methods.plugin_files(recipe, project=project)
    if isinstance(recipe, Recipe):
        verifier = read_spec(recipe.verifier.name, recipe.verifier.options, project=project)
        files |= {key: part.found for key, part in verifier.walk("verifier")}
    for key, found in files.items():
        console.print(f"{key}  {found.name}  {found.path}  sha256:{found.digest}", markup=False)
        if found.shadows:
            text = f"  warning: this project's {found.path} hides ours of the same name, {found.shadows}"
            console.print(Text(text, style="yellow"))
