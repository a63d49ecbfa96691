"""`rlvr methods [NAME]`: what can be named in a recipe, and what it is."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from rlvr.describe import Description, describe, describe_all, shown

console = Console(highlight=False, soft_wrap=True)
HEADINGS = ("kind", "key", "paper", "fidelity", "recipe", "hooks")
WARNING = (
    "RECONSTRUCTED: built from common practice or an incomplete description; do not report it as the paper's method."
)


def command(
    name: Annotated[str | None, typer.Argument(help="A kind, as a recipe names it; without it, all of them.")] = None,
) -> None:
    """List the methods, or explain one: equation, defaults, caveats."""
    if name is None:
        _table(describe_all(project=Path.cwd()))
    else:
        _one(describe(name, project=Path.cwd()))


def _table(methods: list[Description]) -> None:
    rows = [HEADINGS, *map(_cells, methods)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, method in zip(rows, [None, *methods], strict=True):
        style = "bold" if method is None else "yellow" if method.reconstructed else ""
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        console.print(Text(line.rstrip(), style=style))
    console.print("\n`rlvr methods NAME` gives equation, defaults and caveats.")


def _cells(m: Description) -> tuple[str, ...]:
    fidelity = m.fidelity.upper() if m.reconstructed else m.fidelity
    hooks = " ".join(hook for hook in m.hooks if hook != "observe")
    return m.kind, m.key, " ".join(m.papers) or "-", fidelity, m.recipes[0] if m.recipes else "-", hooks


def _one(m: Description) -> None:
    console.print(Text(m.title, style="bold"))
    if m.reconstructed:
        console.print(Text(WARNING, style="yellow"))
    console.print(Text(f"\n{m.text}\n"))
    console.print(Text(f"in a recipe   {m.written}"))
    console.print(Text(f"hooks         {', '.join(m.hooks)}"))
    if m.reduction:
        console.print(Text(f"reduction     {m.reduction} (where the recipe says nothing)"))
    console.print(Text(f"recipes       {', '.join(m.recipes) or 'none'}"))
    for paper in m.papers:
        console.print(Text(f"paper         https://arxiv.org/abs/{paper}"))
    console.print(Text("\noptions" if m.defaults else "\nno options"))
    for option, value in m.defaults.items():
        console.print(Text(f"  {option}: {shown(value)}"))
    if m.defaults:
        console.print(Text(textwrap.indent(m.options.strip(), "  ")))
