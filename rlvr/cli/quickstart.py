"""`rlvr quickstart`, the job behind `make quickstart`: a base model, GRPO on it, and what that changed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

BASE_RECIPE, RECIPE = "sft/arithmetic_base", "quickstart"


def command() -> None:
    """Build a small base model, train it by GRPO, evaluate before and after. Repeating it costs nothing."""
    since = time.perf_counter()
    console = Console(highlight=False)
    base(console)
    folder = train(console)
    summary = report(folder, wall=time.perf_counter() - since)
    console.print(table(summary))
    for line in closing(summary, folder):
        console.print(Text(line), soft_wrap=True)


def base(console: Console) -> None:
    """The base model, unless it is there already."""
    from rlvr import config
    from rlvr.cli import sft
    from rlvr.recipe import SftRecipe
    from rlvr.track.run_dir import ROOT

    resolved = config.load(BASE_RECIPE, tree=SftRecipe)
    made = ROOT / resolved.recipe.run / "export"
    if made.exists():
        console.print(Text(f"base model: {made} is there"))
        return
    console.print(Text("base model: supervised fine-tuning of a small model built from nothing"))
    sft.command(BASE_RECIPE)


def train(console: Console) -> Path:
    """Train with an evaluation before and after; returns the run's folder."""
    from rlvr import check, config
    from rlvr.run import run_training

    started = time.perf_counter()
    project = Path.cwd()
    steps = config.load(RECIPE, project=project).recipe.steps
    resolved = config.load(RECIPE, overrides=[f"evaluate.every={steps}"], project=project)
    check.refuse(resolved, project=project)
    outcome = asyncio.run(run_training(resolved, project=project, since=started))
    if outcome.stopped and outcome.step < outcome.steps:
        console.print(Text(f"stopped and saved at step {outcome.step} of {outcome.steps}; the same command resumes"))
        raise typer.Exit(130)
    return outcome.folder.path


def report(folder: Path, *, wall: float) -> dict[str, Any]:
    """Write summary.json and curve.png of a finished run; one that was reported before keeps its summary."""
    from rlvr.track.report import curve, summarise
    from rlvr.track.run_dir import RunDir

    run = RunDir(folder)
    if run.summary.exists() and run.summary.stat().st_mtime >= run.metrics.stat().st_mtime:
        return json.loads(run.summary.read_text(encoding="utf-8"))
    summary = summarise(folder)
    summary["wall_s"] = round(max(wall, summary["wall_s"] or 0.0), 1)
    curve(folder, run.curve)
    run.write_summary(summary)
    return summary


def table(summary: Mapping[str, Any]) -> Table:
    """Scores before and after, with their 95 % intervals."""
    title = f"{summary['dataset']}: {summary['tasks']} held-out tasks, {summary['n']} samples each"
    out = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold", min_width=len(title))
    for heading in ("", "before", "after", "change"):
        out.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for name, item in summary.items():
        if isinstance(item, Mapping) and "before" in item:
            change = f"{100 * item['gain']:+.1f} points" + (", intervals apart" if item["apart"] else "")
            out.add_row(name, _interval(item["before"]), _interval(item["after"]), change)
    return out


def closing(summary: Mapping[str, Any], folder: Path) -> list[str]:
    """The other numbers, and where things are."""
    numbers = [
        _named("wall time", summary["wall_s"], "{:.0f} s"),
        _named("first step after", summary["first_step_s"], "{:.1f} s"),
        _named("completions/s (median)", summary["completions_per_s"], "{:,.0f}"),
        _named("largest log-prob gap", summary["logp_gap_max"], "{:.1e}"),
    ]
    files = f"{folder}/summary.json  {folder}/curve.png"
    return ["  ".join(numbers), f"{files}  (read the samples: rlvr view {folder}; anew: delete the folder)"]


def _interval(score: Mapping[str, float]) -> str:
    return f"{100 * score['value']:.1f} % [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"


def _named(name: str, value: float | None, form: str) -> str:
    return f"{name} {'-' if value is None else form.format(value)}"
