"""Datasets as tasks, and the order in which a run draws them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rlvr.cards import NoSplit
from rlvr.catalog import find
from rlvr.errors import ConfigError, DataError
from rlvr.pass_rates import select
from rlvr.plugins import load_plugin
from rlvr.recipe import Source
from rlvr.rows import Dataset, raise_all
from rlvr.seeds import stable_seed
from rlvr.types import Task

I64 = npt.NDArray[np.int64]
GOLDEN = 0.6180339887498949  # fractional part of the golden ratio: its multiples fill [0, 1) most evenly
BLOCK = 4096
ASKS = re.compile(r"\\boxed\s*\{\s*\}|(?:put|give|write) (?:your|the) (?:final )?answer", re.IGNORECASE)
REPEAT = "repeats of an earlier row"
CONFLICT = "rows of a prompt with several answers"


def load_tasks(source: Source, *, split: str, project: Path, path: str | None = None) -> Dataset:
    """The tasks of one dataset card, in its order, checked and without repeats.

    `split` is "train" or "eval", unless the source says another; `path` is a local file to read instead of the Hub.
    A row whose prompt and answer came before is left out and counted; of a training prompt with two answers no row
    stays, since one of them is wrong. Raises ConfigError for an unknown card or option, DataError for rows that
    cannot be used (all of them at once).
    """
    split = source.split or split
    card = load_plugin(find("data", source.name, project=project), source.options, function="load")
    heading = f"dataset {source.name!r} ({split})"
    try:
        rows = card.function(card.config, split=split, path=path)
        dropped = rows.dropped if isinstance(rows, Dataset) else None
        tasks = Dataset((_named(task, source.name) for task in rows), dropped)
    except NoSplit as error:
        raise NoSplit(f"{heading}:\n{error}") from error
    except DataError as error:
        raise DataError(f"{heading}:\n{error}") from error
    where = f" in {path}" if path else ""
    tasks = without_repeats(tasks, split=split)
    if not tasks:
        left_out = f" ({counts(tasks.dropped)})" if tasks.dropped else ""
        raise DataError(f"{heading} is empty: no row{where}{left_out}; expected at least one")
    raise_all(_problems(tasks), heading=f"{heading}:")
    tasks.notes += _told_twice(tasks)
    if source.pass_rate is not None and split == "train":
        tasks = select(tasks, source.pass_rate, dataset=source.name, project=project)
    return tasks


def without_repeats(tasks: Dataset, *, split: str) -> Dataset:
    """The first of all tasks with one prompt and one answer; in training none of those with one prompt and several."""
    answers: dict[str, dict[tuple[str, str | None], Task]] = {}
    for task in tasks:
        answers.setdefault(_squeezed(task), {}).setdefault((task.answer.strip(), task.verifier), task)
    out = Dataset(dropped=tasks.dropped)
    for task in tasks:
        same = answers[_squeezed(task)]
        if same[task.answer.strip(), task.verifier] is not task:
            out.dropped[REPEAT] += 1
        elif split == "train" and len(same) > 1:
            out.dropped[CONFLICT] += 1
        else:
            out.append(task)
    return out


def _told_twice(tasks: Sequence[Task]) -> list[str]:
    """A note where most prompts say how to answer, which the recipe's template or system prompt may say again."""
    told = sum(ASKS.search(prompt_text(task)) is not None for task in tasks)
    if 2 * told <= len(tasks):
        return []
    return [
        f"dataset {tasks[0].source!r}: {told} of {len(tasks)} prompts say how to write the answer; "
        "leave it out of prompt.template and prompt.system"
    ]


def _squeezed(task: Task) -> str:
    return " ".join(prompt_text(task).split())


def prompt_text(task: Task) -> str:
    """The prompt as one text: the contents of a chat's messages, one after the other."""
    return task.prompt if isinstance(task.prompt, str) else "\n".join(m["content"] for m in task.prompt)


def counts(dropped: Mapping[str, int]) -> str:
    """Reasons and their numbers in words, the commonest first."""
    return ", ".join(f"{n} {reason}" for reason, n in sorted(dropped.items(), key=lambda item: (-item[1], item[0])))


def _named(task: object, source: str) -> Task:
    if not isinstance(task, Task):
        raise ConfigError(f"dataset {source!r}: load() yielded {type(task).__name__}, expected rlvr.types.Task")
    if task.source:
        return task
    return replace(task, source=source)


def _problems(tasks: Iterable[Task]) -> list[str]:
    seen: dict[str, Task] = {}
    problems: list[str] = []
    for task in tasks:
        if not task.answer.strip():
            problems.append(f"{place(task)}: no answer; every task needs one")
        if not task.prompt:
            problems.append(f"{place(task)}: no prompt; every task needs one")
        if (first := seen.setdefault(task.id, task)) is not task:
            problems.append(f"{place(task)}: the id was already given to {place(first)}; ids must be unique")
    return problems


def place(task: Task) -> str:
    """How errors name a task: where its row stands, and its id."""
    where = task.meta.get("where")
    return f"{where} (id {task.id!r})" if where else f"row {task.id!r}"


class TaskStream:
    """x ~ D: `draw(index)` is a pure function of (seed, index).

    The sources take turns in proportion to their weights (a golden-ratio sequence: after n draws each is
    within a few of its share), and each source comes in a new order every epoch, each row once.
    """

    def __init__(self, sources: Sequence[Sequence[Task]], weights: Sequence[float], seed: int) -> None:
        """`weights` are positive, one per source."""
        if not sources or len(sources) != len(weights) or not all(sources) or min(weights) <= 0:
            raise DataError(
                f"a mixture needs one positive weight for each of one or more datasets with rows; "
                f"got {[len(s) for s in sources]} rows with weights {list(weights)}"
            )
        self._sources = [tuple(tasks) for tasks in sources]
        self._edges = np.cumsum(weights) / np.sum(weights)
        self._seed = seed
        self._start = (stable_seed(seed, "mixture") % (1 << 52)) / (1 << 52)
        self._blocks: list[tuple[I64, I64]] = []  # a cache: source and rank of each draw
        self._taken = [0] * len(self._sources)  # by the blocks so far
        self._order = lru_cache(maxsize=2 * len(self._sources))(self._shuffled)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Every task of every source."""
        return tuple(task for tasks in self._sources for task in tasks)

    def draw(self, index: int) -> Task:
        """The task of the run's draw `index` >= 0."""
        source, rank = self._place(index)
        tasks = self._sources[source]
        epoch, position = divmod(rank, len(tasks))
        return tasks[int(self._order(source, epoch)[position])]

    def _place(self, index: int) -> tuple[int, int]:
        """Which source draw `index` takes, and how many draws took that source before."""
        if len(self._sources) == 1:
            return 0, index
        block, offset = divmod(index, BLOCK)
        while len(self._blocks) <= block:
            self._blocks.append(self._next_block())
        chosen, ranks = self._blocks[block]
        return int(chosen[offset]), int(ranks[offset])

    def _next_block(self) -> tuple[I64, I64]:
        k = np.arange(BLOCK) + BLOCK * len(self._blocks)
        point = (self._start + k * GOLDEN) % 1.0
        last = len(self._sources) - 1
        chosen = np.minimum(np.searchsorted(self._edges, point, side="right"), last)
        ranks = np.empty(BLOCK, dtype=np.int64)
        for source in range(len(self._sources)):
            mine = np.flatnonzero(chosen == source)
            ranks[mine] = self._taken[source] + np.arange(len(mine))
            self._taken[source] += len(mine)
        return chosen, ranks

    def _shuffled(self, source: int, epoch: int) -> I64:
        """A permutation by sorting raw bits, whose stream NumPy guarantees for ever (`permutation` it does not)."""
        bits = np.random.PCG64(stable_seed(self._seed, "epoch", source, epoch))
        return np.argsort(bits.random_raw(len(self._sources[source])), kind="stable")
