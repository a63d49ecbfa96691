"""`rlvr view RUN`: read what was sampled: text, verdict, reward, advantage, versions, and why a group was dropped."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from rlvr.errors import ConfigError, DataError
from rlvr.track.journal import Record, read
from rlvr.track.run_dir import find_run
from rlvr.types import is_aside, step_of

_COLUMNS = (  # heading, metric, format
    ("step", "step", "d"),
    ("reward", "reward/mean", ".3f"),
    ("pass", "reward/pass_rate", ".3f"),
    ("entropy", "train/entropy", ".3f"),
    ("length", "response/length_mean", ".1f"),
    ("trunc", "response/truncated", ".3f"),
    ("kept", "groups/kept", ".0f"),
    ("dropped", "groups/dropped", ".0f"),
    ("errors", "reward/errors", ".0f"),
    ("loss", "train/loss", ".4f"),
    ("grad", "train/grad_norm", ".3f"),
    ("gap", "train/gap_max", ".1e"),
    ("lag", "lag/mean", ".2f"),
    ("lr", "train/lr", ".1e"),
    ("s", "time/step", ".2f"),
    ("tokens/s", "time/tokens_per_s", ".0f"),
)
_COLOURS = {"right": "green", "wrong": "red", "error": "yellow", "unscored": "dim"}
_PIPE_WIDTH = 10_000  # nothing wraps where no person reads


def command(
    run: Annotated[str, typer.Argument(help="A run's name or folder.")],
    step: Annotated[int | None, typer.Option(help="Only this step.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task id.")] = None,
    draw: Annotated[int | None, typer.Option(help="Only this draw.")] = None,
    right: Annotated[bool, typer.Option("--right", help="Only right responses.")] = False,
    wrong: Annotated[bool, typer.Option("--wrong", help="Only wrong responses.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="The last so many groups (4) or steps (all).")] = None,
    metrics: Annotated[bool, typer.Option("--metrics", help="A table of metrics instead of groups.")] = False,
) -> None:
    """Read a run's groups: text, verdict, reward, advantage."""
    if right and wrong:
        raise ConfigError("--right and --wrong exclude each other: give one of them, or neither to see every response.")
    found, console = find_run(run), make_console()
    if metrics:
        show_metrics(console, _records(found.metrics), step=step, limit=limit)
        return
    judged = "right" if right else "wrong" if wrong else None
    groups = matching(_records(found.rollouts), step=step, task=task, draw=draw, judged=judged)
    show_groups(console, groups, limit=limit or 4, source=found.rollouts)


def make_console() -> Console:
    """Colours and wrapping for a terminal; plain, unwrapped lines into a pipe."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPE_WIDTH, color_system=None)


def matching(
    records: Iterator[Record], *, step: int | None, task: str | None, draw: int | None, judged: str | None
) -> Iterator[Record]:
    """The groups asked for, each with the responses asked for; one left without a response is left out."""
    asked = {name: value for name, value in (("step", step), ("task", task), ("draw", draw)) if value is not None}
    for record in records:
        if any(record[name] != value for name, value in asked.items()):
            continue
        numbered = [response | {"index": i} for i, response in enumerate(record["responses"])]
        responses = [r for r in numbered if judged is None or judge(r["verdict"]) == judged]
        if responses or judged is None:
            yield record | {"responses": responses}


def judge(verdict: Record | None) -> str:
    """right, wrong, error or unscored."""
    if verdict is None:
        return "unscored"
    return "error" if verdict["error"] else "right" if verdict["correct"] else "wrong"


def show_groups(console: Console, groups: Iterator[Record], *, limit: int, source: Path) -> None:
    """Print the last `limit` groups. Raises DataError when none matches."""
    last: deque[Record] = deque(maxlen=limit)
    total = 0
    for total, group in enumerate(groups, 1):  # noqa: B007
        last.append(group)
    if not last:
        raise DataError(f"{source}: no group matches. `rlvr view RUN --metrics` shows which steps there are.")
    for group in last:
        _show_group(console, group)
    if total > len(last):
        console.print(Text(f"{len(last)} of {total} matching groups, the last ones; --limit shows more", style="dim"))


def _show_group(console: Console, group: Record) -> None:
    head = f"step {group['step']}  draw {group['draw']}  task {group['task']}"
    dropped = f"  dropped: {group['dropped']}" if group["dropped"] else ""
    if console.is_terminal:
        console.print(Rule(Text.assemble((clean(head), "bold"), (clean(dropped), "yellow")), align="left"))
    else:
        console.print(Text(clean(f"== {head}{dropped}")))
    for speaker, text in _prompt(group["prompt"]):
        console.print(Text.assemble((f"{speaker}: ", "dim"), clean(text)))
    console.print(Text.assemble(("answer: ", "dim"), clean(group["answer"])))
    for response in group["responses"]:
        _show_response(console, response)
    console.print()


def _show_response(console: Console, response: Record) -> None:
    verdict = response["verdict"]
    outcome = judge(verdict)
    facts = [f"[{response['index']}]", outcome, *_facts(response)]
    console.print(Text(clean("  ".join(facts)), style=_COLOURS[outcome]))
    if verdict and (verdict["error"] or verdict["detail"]):
        console.print(
            Text(clean(f"    {': '.join(filter(None, (verdict['error'], verdict['detail'])))}"), style="yellow")
        )
    console.print(Text("\n".join(f"    {line}" for line in clean(response["text"]).split("\n"))))


def _facts(response: Record) -> Iterator[str]:
    verdict = response["verdict"]
    if verdict:
        yield f"score {number(verdict['score'])}"
        yield f"read as {verdict['answer_key']}" if verdict["parsed"] else "no answer found"
    if response["reward"] is not None:
        yield f"reward {number(response['reward'])}"
    yield f"advantage {_span(response['advantage'])}"
    yield f"{response['tokens']} tokens" + ("" if response["finish"] == "stop" else f" ({response['finish']})")
    yield "weights " + " ".join(f"{_version(version)}x{count}" for version, count in response["versions"])
    if response["source"] != "policy":
        yield f"from {response['source']}"
    if "parent" in response:
        yield f"branch of [{response['parent'][0]}]"


def _version(version: int) -> str:
    """v3, or v3' for weights that were changed for sampling alone."""
    return f"v{int(step_of(version))}" + ("'" if is_aside(version) else "")


def _span(advantage: float | Sequence[float] | None) -> str:
    if isinstance(advantage, list):
        known = [value for value in advantage if value is not None]
        return f"{number(min(known))}..{number(max(known))}" if known else "-"
    return number(advantage)


def number(value: Any) -> str:
    """Four significant digits; "-" for what was not measured."""
    return "-" if value is None else f"{value:.4g}"


def _prompt(prompt: str | list[dict[str, str]]) -> Iterator[tuple[str, str]]:
    if isinstance(prompt, str):
        yield "prompt", prompt
        return
    for message in prompt:
        yield message["role"], message["content"]


def clean(text: str) -> str:
    """Text that cannot drive the terminal: control characters become visible, lone surrogates replaced."""
    visible = (_visible(char) for char in text)
    return "".join(visible)


def _visible(char: str) -> str:
    code = ord(char)
    if char in "\n\t":
        return char
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return "\ufffd" if 0x80 <= code < 0xA0 or 0xD800 <= code < 0xE000 else char


def show_metrics(console: Console, records: Iterator[Record], *, step: int | None, limit: int | None) -> None:
    """A row a step with the columns that were measured, or every metric of one step."""
    rows = [record for record in records if step is None or record["step"] == step]
    if not rows:
        raise DataError(f"no metrics{'' if step is None else f' of step {step}'} in this run yet.")
    table = Table(box=None, pad_edge=False, header_style="bold")
    if step is not None:
        table.add_column("metric")
        table.add_column("value", justify="right")
        for name, value in rows[-1].items():
            table.add_row(Text(clean(name)), Text(number(value) if isinstance(value, float) else clean(str(value))))
    else:
        shown = [column for column in _COLUMNS if any(row.get(column[1]) is not None for row in rows)]
        for heading, _, _ in shown:
            table.add_column(heading, justify="right", no_wrap=True)
        for row in islice(rows, max(0, len(rows) - (limit or len(rows))), None):
            table.add_row(*("-" if row.get(name) is None else format(row[name], form) for _, name, form in shown))
    console.print(table)


def _records(path: Path) -> Iterator[Record]:
    if not path.exists():
        raise DataError(f"{path} is not there: the run has not finished a step yet.")
    return read(path)
