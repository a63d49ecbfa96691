"""`rlvr verify --verifier math --gold GOLD --answer TEXT`: how a verdict comes about, step by step."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from rlvr.cli.view import clean
from rlvr.errors import ConfigError, DataError, VerifierError
from rlvr.types import Task, Verdict

if TYPE_CHECKING:
    from rlvr.verify.specs import VerifierSpec

RIGHT, WRONG, ERROR = 0, 1, 2  # exit codes


def command(
    gold: Annotated[str, typer.Option(help="The gold answer.")],
    answer: Annotated[str, typer.Option(help="The response; @FILE reads a file, - reads stdin.")] = "-",
    verifier: Annotated[
        str, typer.Option(help="A name in rewards/, a file, or YAML: '{name: all, of: [...]}'.")
    ] = "math",
    prompt: Annotated[
        str, typer.Option(help="The question, for verifiers that look at it; @FILE and - as above.")
    ] = "",
    seconds: Annotated[float, typer.Option(help="CPU limit of the verdict.")] = 5.0,
) -> None:
    """Exit code 0: right, 1: wrong, 2: no verdict (an error), or bad arguments."""
    from rlvr.verify.specs import read_spec

    name, options = _named(verifier)
    specs = {name: read_spec(name, options, project=Path.cwd())}
    task = Task(id="verify", prompt=_text(prompt), answer=gold)
    try:
        verdict, steps = _asked(specs, task, _text(answer), seconds=seconds)
    except VerifierError as error:  # 1 would say "wrong"
        raise ConfigError(str(error)) from error
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(f"verifier: {name} ({specs[name].found.path})", style="dim"))
    for step in steps:
        console.print(Text(clean(step)))
    outcome = "error" if verdict.error else "right" if verdict.correct else "wrong"
    facts = [
        f"verdict: {outcome}",
        f"{verdict.error}: {verdict.detail}" if verdict.error else f"score {verdict.score:g}",
    ]
    if not verdict.error:
        facts.append(f"answer key {verdict.answer_key!r}" if verdict.parsed else "no answer found")
        facts += [verdict.detail] if verdict.detail else []
    console.print(Text(clean(", ".join(facts)), style={"right": "green", "wrong": "red", "error": "yellow"}[outcome]))
    console.print(Text(f"version: {verdict.version or 'none'}, time: {verdict.elapsed * 1000:.1f} ms", style="dim"))
    raise typer.Exit(ERROR if verdict.error else RIGHT if verdict.correct else WRONG)


def _asked(
    specs: Mapping[str, VerifierSpec], task: Task, response: str, *, seconds: float
) -> tuple[Verdict, list[str]]:
    from rlvr.verify.pool import VerifierPool

    with VerifierPool(specs, processes=1, cpu_seconds=seconds, wall_seconds=10 * seconds + 20) as pool:
        return pool.explain(task, response)


def _named(verifier: str) -> tuple[str, dict[str, object]]:
    """A name, or a YAML mapping as in a recipe."""
    if not verifier.lstrip().startswith("{"):
        return verifier, {}
    import yaml

    try:
        given = yaml.safe_load(verifier)
    except yaml.YAMLError as error:
        raise ConfigError(f"--verifier: {error}") from None
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise ConfigError("--verifier: got no name; write NAME or '{name: NAME, option: value}'")
    return given.pop("name"), given


def _text(given: str) -> str:
    if given == "-":
        return sys.stdin.read()
    if not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{given[1:]}: cannot be read: {error.strerror}") from None
