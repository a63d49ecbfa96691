"""`rlvr eval MODEL_OR_RUN_OR_RECIPE`: unbiased pass@k with intervals; `--compare A B`: which of two is better."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from rlvr.cli.view import make_console
from rlvr.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from rlvr.evaluate.target import Target


def command(
    target: Annotated[
        str | None, typer.Argument(metavar="[MODEL_OR_RUN_OR_RECIPE]", help="Whose weights to evaluate.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. verifier=exact")] = None,
    data: Annotated[str | None, typer.Option(help="NAME[,NAME]; default: the recipe's data.eval.")] = None,
    n: Annotated[int | None, typer.Option("-n", "--n", min=1, help="Samples a task (evaluate.n).")] = None,
    k: Annotated[str | None, typer.Option("-k", "--k", help="1,8: which pass@k (evaluate.k).")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="evaluate.temperature.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="evaluate.max_tokens.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many tasks (evaluate.tasks).")] = None,
    out: Annotated[Path | None, typer.Option(help="Result file; default: eval.json, in the run's folder.")] = None,
    compare: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Two evaluations (file, folder or run): who wins?")
    ] = None,
) -> None:
    """Unbiased pass@k with 95 % intervals, of a model folder or Hub name, a run, or a recipe's model.

    Samples are kept below runs/samples and used again: another k or verifier generates nothing, and the same command
    goes on where it was interrupted.
    """
    project, console = Path.cwd(), make_console()
    if compare is not None:
        if target is not None:
            raise ConfigError(f"--compare takes two finished evaluations and no target; got {target!r} beside them")
        show_comparison(*compare, ks=_numbers(k) if k else None, project=project, console=console)
        return
    if target is None:
        raise ConfigError("name what to evaluate: a run, a model folder, a Hub name or a recipe (or --compare A B)")
    options = {
        "evaluate.n": n,
        "evaluate.k": f"{_numbers(k)}" if k is not None else None,
        "evaluate.temperature": temperature,
        "evaluate.max_tokens": max_tokens,
        "sampling.max_tokens": max_tokens,
        "evaluate.tasks": limit,
    }
    names = [name.strip() for name in data.split(",") if name.strip()] if data else []
    given = [f"{key}={value}" for key, value in options.items() if value is not None] + list(overrides or [])
    from rlvr.evaluate.target import resolve

    found = resolve(target, names=names, overrides=given, project=project)
    try:
        show(found, out=out or found.folder / "eval.json", project=project, console=console)
    except (asyncio.CancelledError, KeyboardInterrupt):
        console.print("stopped; samples that were finished are kept, and the same command goes on from there")
        raise typer.Exit(130) from None


def show(target: Target, *, out: Path, project: Path, console: Console) -> None:
    """Evaluate, write `out` and the page beside it, print the tables."""
    from rlvr.evaluate.measure import measure
    from rlvr.evaluate.page import page
    from rlvr.evaluate.report import LEGEND, document, level_table, table

    recipe, started = target.recipe, time.perf_counter()
    for name, asked in target.settings.items():
        how = f"temperature {asked.temperature:g}, top-p {asked.top_p:g}, up to {asked.max_tokens} tokens"
        console.print(Text(f"{recipe.model.path} on {name}: {asked.n} samples a task, {how} ({asked.source})"))
    measured, digest = asyncio.run(measure(target, project=project, console=console))
    about = {
        "model": {"path": recipe.model.path, "revision": recipe.model.revision, "digest": digest},
        "seed": recipe.seed,
        "verifier": recipe.verifier.model_dump(mode="json"),
        "prompt": recipe.prompt.model_dump(mode="json"),
    }
    made = document(measured, about=about, seed=recipe.seed)
    made["time/wall_s"] = round(time.perf_counter() - started, 1)
    out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    html = out.with_suffix(".html")
    html.write_text(page(made, [one.result for one in measured]), encoding="utf-8")
    console.print(table(made))
    for one in made["datasets"]:
        for key in one["levels"]:
            console.print()
            console.print(level_table(one, key))
    console.print(Text(LEGEND, style="dim"), soft_wrap=True)
    console.print(Text(f"written to {out} and {html}"), soft_wrap=True)


def show_comparison(a: str, b: str, *, ks: list[int] | None, project: Path, console: Console) -> None:
    """Print differences with intervals, who wins, and on which questions."""
    from rlvr.evaluate.compare import compare, question_table, read_document, table, unlike, widest

    first, second = (read_document(name, project=project) for name in (a, b))
    changes = compare(first, second, ks=ks, seed=first["seed"])
    console.print(Text(f"A: {a} ({first['model']['path']})\nB: {b} ({second['model']['path']})"), soft_wrap=True)
    for line in unlike(first, second):
        console.print(Text(line, style="yellow"), soft_wrap=True)
    console.print(table(changes))
    for name in dict.fromkeys(change.dataset for change in changes):
        if gaps := widest(first, second, name):
            console.print()
            console.print(question_table(gaps, name))


def _numbers(text: str) -> list[int]:
    """`1,8,64` as numbers. Raises ConfigError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"-k: got {text!r}, expected whole numbers > 0 separated by commas, such as 1,8,64")
    return [int(part) for part in parts]
