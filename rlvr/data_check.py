r"""Whether a dataset and its verifier fit: every gold answer scores 1, a wrong one 0, and garbage never raises.

The verifiers run as in training, in their own processes and under the same limits. How a gold answer is said depends on
the verifier: as `\boxed{gold}`, as it stands, or (programs) as the task's demonstration; a first few tasks decide.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from rlvr.engine.protocols import Verifiers
from rlvr.tasks import place
from rlvr.types import Task, Verdict

BOXED, PLAIN, DEMO = r"\boxed{gold}", "the gold as it stands", "the demonstration"
TRIED = 50  # tasks on which the ways to say a gold are tried
INTEGER = re.compile(r"-?\d+", re.ASCII)
EACH = 3  # pieces of garbage a task gets, in turn
GARBAGE = (
    "", " \n\t", "\\boxed{}", "\\boxed{", "}{" * 50, "(" * 3000, "\\frac{1}{0}", "\\boxed{\\frac}", "\0\ufffd\u202e",
    "\\boxed{\\sqrt[0]{x}}", "\\boxed{1,,2}", "answer is", "####", "<think>", "```python\n", "x" * 20_000,
    "\\boxed{" * 200 + "}" * 200, "\\boxed{\\left(}", "\\begin{pmatrix}1&\\end{pmatrix}", "\\boxed{None}",
    "\\boxed{1e999999}", "\\boxed{" + "9" * 5000 + "}",
)  # fmt: skip


@dataclass
class Report:
    """What was found for the tasks of one verifier. `problems` has a line for every exception, in row order."""

    verifier: str
    said: str  # how golds were said
    tasks: int = 0
    gold_right: int = 0
    wrong_right: int = 0  # wrong answers that were accepted
    garbage: int = 0
    garbage_right: int = 0  # no exception: an instruction such as "no commas" can be met by garbage
    demos: int = 0
    demos_right: int = 0  # no exception: teachers err
    errors: Counter[str] = field(default_factory=Counter)
    versions: set[str] = field(default_factory=set)
    raised: Counter[tuple[str, str]] = field(default_factory=Counter)  # garbage and what it raised -> rows
    problems: list[str] = field(default_factory=list)


async def check(
    tasks: Sequence[Task], verifiers: Verifiers, *, default: str, concurrency: int = 64
) -> dict[str, Report]:
    """A report for each verifier that the tasks name (`default` for those that name none)."""
    reports: dict[str, Report] = {}
    for name in dict.fromkeys(task.verifier or default for task in tasks):
        mine = [task for task in tasks if (task.verifier or default) == name]
        gate = asyncio.Semaphore(concurrency)
        said = await _way(mine, verifiers)
        report = reports[name] = Report(name, said)

        async def one(i: int, mine: Sequence[Task] = mine, gate: asyncio.Semaphore = gate, said: str = said) -> _Row:
            async with gate:
                return await _row(i, mine, verifiers, said=said)

        for row in await asyncio.gather(*(one(i) for i in range(len(mine)))):
            _add(report, row)
    return reports


@dataclass(frozen=True)
class _Row:
    task: Task
    gold: Verdict
    wrong: tuple[str, Verdict] | None
    garbage: Sequence[tuple[str, Verdict]]
    demos: Sequence[Verdict]


def say(task: Task, way: str) -> str:
    """A response that gives the task's gold answer in one of the ways."""
    if way == DEMO:
        return task.demos[0] if task.demos else ""
    return f"\\boxed{{{task.answer}}}" if way == BOXED else task.answer


def wrong_answer(i: int, tasks: Sequence[Task], *, way: str) -> str | None:
    """What is certainly not the answer of task i: another number, or the gold of the next task that has another one."""
    gold = tasks[i].answer.strip()
    if way != DEMO and INTEGER.fullmatch(gold):
        number = 2 * int(gold) + 3
        return say(Task("", "", str(number if number != int(gold) else number + 1)), way)
    others = (tasks[(i + d) % len(tasks)] for d in range(1, len(tasks)))
    other = next((task for task in others if task.answer.strip() != gold), None)
    return None if other is None else say(other, way)


async def _way(tasks: Sequence[Task], verifiers: Verifiers) -> str:
    """The way to say a gold that scores 1 on most of the first tasks."""
    ways = [BOXED, PLAIN, *([DEMO] if all(task.demos for task in tasks) else [])]
    right: Counter[str] = Counter()
    for task in islice(tasks, TRIED):
        verdicts = await verifiers.score(task, [say(task, way) for way in ways])
        right.update(way for way, verdict in zip(ways, verdicts, strict=True) if _right(verdict))
    return max(ways, key=lambda way: right[way])


async def _row(i: int, tasks: Sequence[Task], verifiers: Verifiers, *, said: str) -> _Row:
    task, wrong = tasks[i], wrong_answer(i, tasks, way=said)
    garbage = [GARBAGE[(EACH * i + k) % len(GARBAGE)] for k in range(EACH)]
    verdicts = iter(
        await verifiers.score(task, [say(task, said), *([] if wrong is None else [wrong]), *garbage, *task.demos])
    )
    gold = next(verdicts)
    return _Row(
        task,
        gold,
        None if wrong is None else (wrong, next(verdicts)),
        list(zip(garbage, islice(verdicts, EACH), strict=True)),
        list(verdicts),
    )


def _add(report: Report, row: _Row) -> None:
    report.tasks += 1
    report.gold_right += _right(row.gold)
    if not _right(row.gold):
        why = row.gold.error or f"score {row.gold.score:g}"
        detail = f" ({row.gold.detail})" if row.gold.detail else ""
        report.problems.append(f"{place(row.task)}: the gold {row.task.answer[:80]!r} is not right: {why}{detail}")
    verdicts = [row.gold, *row.demos, *(verdict for _, verdict in row.garbage)]
    if row.wrong is not None:
        text, verdict = row.wrong
        verdicts.append(verdict)
        report.wrong_right += _right(verdict)
        if _right(verdict) or verdict.error:
            how = verdict.error or "right"
            report.problems.append(f"{place(row.task)}: {text[:80]!r} is {how}, the gold is {row.task.answer[:80]!r}")
    for text, verdict in row.garbage:
        report.garbage += 1
        report.garbage_right += _right(verdict)
        if verdict.error:
            what = text[:30], f"{verdict.error}: {verdict.detail[:80]}"
            report.raised[what] += 1
            if report.raised[what] == 1:  # on other rows it is the same exception
                report.problems.append(f"{place(row.task)}: {what[0]!r} raises: {what[1]}")
    report.demos += len(row.demos)
    report.demos_right += sum(map(_right, row.demos))
    report.errors.update(verdict.error for verdict in verdicts if verdict.error)
    report.versions.update(verdict.version for verdict in verdicts if verdict.version)


def _right(verdict: Verdict) -> bool:
    return verdict.error is None and verdict.score >= 1
