"""`rlvr data verify NAME [key=value ...]`: does a dataset fit its verifier, row by row?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlvr.cli.view import make_console

if TYPE_CHECKING:
    from rlvr.data_check import Report
    from rlvr.recipe import Source, Verifier
    from rlvr.rows import Dataset

SHOWN = 50  # exceptions that are printed


def command(
    action: Annotated[str, typer.Argument(metavar="verify", help="The only thing that can be done so far.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="A dataset card.")],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[key=value ...]", help="data.path=FILE, verifier=NAME, the card's own options."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="train or eval; default: both, with data.path the first.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Verifier processes.")] = 2,
) -> None:
    """Exit 1 when a gold is not right, a wrong answer is, or garbage raises; exit 2 when the data cannot be read."""
    from rlvr.errors import ConfigError

    if action != "verify":
        raise ConfigError(f"rlvr data {action}: expected `rlvr data verify NAME`")
    if split not in (None, "train", "eval"):
        raise ConfigError(f"--split {split}: expected train or eval")
    project, console = Path.cwd(), make_console()
    source, verifier, path = _asked(name, options or [], project=project)
    found = 0
    for part, tasks in _parts(source, split=split, path=path, project=project):
        started = time.perf_counter()
        reports = asyncio.run(_check(tasks, verifier, processes=processes, project=project))
        for line in [*tasks.notes, *([f"left out: {_counts(tasks)}"] if tasks.dropped else [])]:
            console.print(Text(line), soft_wrap=True)
        console.print(table(f"{name} ({part})", reports, wall=time.perf_counter() - started))
        found += _print_problems(console, [problem for report in reports for problem in report.problems])
    raise typer.Exit(1 if found else 0)


def _asked(name: str, options: Sequence[str], *, project: Path) -> tuple[Source, Verifier, str | None]:
    """The source, the verifier, and the file that `data.path` names where the card has no option `path`."""
    import yaml

    from rlvr.catalog import find
    from rlvr.errors import ConfigError
    from rlvr.plugins import load_plugin
    from rlvr.recipe import Source, Verifier

    given: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            raise ConfigError(f"got {option!r}, expected key=value")
        given[key] = yaml.safe_load(text)
    path = given.pop("data.path", None)
    named = {"name": given.pop("verifier", "math")}
    named |= {key.partition(".")[2]: given.pop(key) for key in list(given) if key.startswith("verifier.")}
    if path is not None and not Path(str(path)).expanduser().is_file():
        raise ConfigError(f"data.path: no such file: {path}")
    config = vars(load_plugin(find("data", name, project=project), {}, function="load").module).get("Config")
    if path is not None and config is not None and "path" in config.model_fields:
        given["path"], path = str(path), None
    return Source(name=name, **given), Verifier(**named), path


def _parts(
    source: Source, *, split: str | None, path: str | None, project: Path
) -> list[tuple[Literal["train", "eval"], Dataset]]:
    from rlvr.cards import NoSplit
    from rlvr.tasks import load_tasks

    one = path is not None or "path" in source.options
    parts: list[tuple[Literal["train", "eval"], Dataset]] = []
    refused: NoSplit | None = None
    for part in ("train", "eval"):
        if split not in (None, part) or (one and parts):
            continue
        try:
            parts.append((part, load_tasks(source, split=part, path=path, project=project)))
        except NoSplit as error:
            refused = error
    if not parts and refused is not None:
        raise refused
    return parts


async def _check(tasks: Dataset, verifier: Verifier, *, processes: int, project: Path) -> list[Report]:
    from rlvr.data_check import check
    from rlvr.verify.pool import VerifierPool
    from rlvr.verify.specs import verifier_specs

    with VerifierPool(verifier_specs(verifier, tasks, project=project), processes=processes) as pool:
        return list((await check(tasks, pool, default=verifier.name)).values())


def table(title: str, reports: Sequence[Report], *, wall: float) -> Table:
    """A row for each verifier that the tasks name."""
    out = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in ("verifier", "rows", "gold right", "wrong accepted", "garbage", "accepted", "demos right", "errors"):
        out.add_column(column, justify="left" if column == "verifier" else "right", no_wrap=True)
    for report in reports:
        errors = ", ".join(f"{n} {kind}" for kind, n in sorted(report.errors.items())) or "0"
        demos = f"{report.demos_right} of {report.demos}" if report.demos else "-"
        out.add_row(
            report.verifier, str(report.tasks), str(report.gold_right), str(report.wrong_right), str(report.garbage),
            str(report.garbage_right), demos, errors,
        )  # fmt: skip
    said = "; ".join(f"{r.verifier} ({', '.join(sorted(r.versions)) or 'no version'}) reads {r.said}" for r in reports)
    out.caption, out.caption_justify = f"{said}; {wall:.1f} s", "left"
    return out


def _print_problems(console: Console, problems: Sequence[str]) -> int:
    for problem in problems[:SHOWN]:
        console.print(Text(problem), soft_wrap=True)
    if len(problems) > SHOWN:
        console.print(f"... and {len(problems) - SHOWN} more ({len(problems)} in all)")
    return len(problems)


def _counts(tasks: Dataset) -> str:
    from rlvr.tasks import counts

    return counts(tasks.dropped)
