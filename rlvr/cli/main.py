"""The command line: `rlvr VERB ...`. A verb's module is imported when the verb is used, not before."""

from __future__ import annotations

import importlib
import os
import traceback
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from rlvr.errors import ConfigError, DataError, RLVRError

VERBS = {
    "quickstart": "Build a small base model, train it by GRPO, show what it learnt (minutes, no GPU).",
    "train": "Train a model; the same command again resumes the run.",
    "sft": "Supervised fine-tuning: base models, baselines, warm starts.",
    "eval": "Unbiased pass@k with intervals, of a recipe or a model.",
    "data": "Prove a dataset: golds score 1, wrong answers 0, garbage never raises.",
    "check": "Validate recipes without starting an engine.",
    "show": "Print a resolved recipe and where each value came from.",
    "verify": "Explain a verdict: what was read, from where, and how it was compared.",
    "methods": "What can be named in a recipe: equation, paper, defaults, fidelity.",
    "doctor": "Is this machine able to run it, and what to do if not.",
    "view": "Read the groups of a run: text, verdict, reward, advantage.",
    "export": "Write a run's model as a Hugging Face folder.",
}


class Verbs(TyperGroup):
    """`--help` knows the verbs by their one-line help; only a verb that is used is imported."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands.update({name: TyperCommand(name, help=line) for name, line in VERBS.items()})

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        """The real command in place of the stand-in that carries its help."""
        name, stand_in, rest = super().resolve_command(ctx, args)
        return name, verb(name) if name in VERBS else stand_in, rest

    def invoke(self, ctx: typer.Context) -> object:
        """Run the verb; an error for people is a message and an exit code, not a traceback."""
        try:
            return super().invoke(ctx)
        except RLVRError as error:
            report(error)
            raise typer.Exit(2 if isinstance(error, ConfigError | DataError) else 1) from error


def verb(name: str) -> TyperCommand:
    """The command of `rlvr/cli/<name>.py`: its function `command`."""
    one = typer.Typer(add_completion=False)
    one.command(name, help=VERBS[name])(importlib.import_module(f"rlvr.cli.{name}").command)
    return get_command(one)  # type: ignore[return-value]


def report(error: RLVRError) -> None:
    """Print an error on stderr, one problem a line; RLVR_DEBUG=1 adds the traceback."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if os.environ.get("RLVR_DEBUG") == "1":
        console.print("".join(traceback.format_exception(error)), markup=False)
    problems = error.problems if isinstance(error, ConfigError) else [str(error)]
    if len(problems) > 1:
        console.print(f"error: {len(problems)} problems", style="bold red")
    for problem in problems:
        if len(problems) == 1:
            console.print("error: ", style="bold red", end="")
        console.print(problem, markup=False)


app = typer.Typer(
    cls=Verbs,
    name="rlvr",
    help="Reinforcement learning from verifiable rewards for language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    """A group even where one verb is registered."""


def main() -> None:
    """Entry point of the `rlvr` script."""
    app()


if __name__ == "__main__":
    main()
