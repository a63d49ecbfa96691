"""Training rows that stand in the recipe's evaluation sets, found and dropped.

A row overlaps when its prompt is, but for case, white space and `$`, a held-out one, or when it shares 13 words in a
row with one (the usual test for contamination). Two kinds of such words do not count: those in two prompts of one
evaluation set, which are its template, and those in more than ten training prompts, which are an idiom of the trade
("can be written as m/n, where m and n are relatively prime positive integers. Find m+n").
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rlvr.errors import DataError
from rlvr.rows import Dataset
from rlvr.tasks import place, prompt_text
from rlvr.types import Task

N = 13
IDIOM = 10  # more training prompts than this share an idiom, not a leaked problem
EXAMPLES = 3
WORD = re.compile(r"\w+")
LOOSE = re.compile(r"[\s$]+")
EXACT, GRAM = "prompts of an evaluation set", f"rows with {N} words of an evaluation prompt"


@dataclass
class Index:
    """Held-out prompts, to be looked up: normalised prompt or n-gram -> "set/id"."""

    exact: dict[str, str] = field(default_factory=dict)
    grams: dict[str, str] = field(default_factory=dict)


def normal(text: str) -> str:
    """A prompt without case, white space and `$`: the same problem in another layout."""
    return LOOSE.sub("", text.casefold())


def grams(text: str) -> Iterator[str]:
    """Every 13 words in a row, in lower case."""
    words = WORD.findall(text.casefold())
    joined = " ".join(words)
    starts = [0]
    for word in words:
        starts.append(starts[-1] + len(word) + 1)
    for i in range(len(words) - N + 1):
        yield joined[starts[i] : starts[i + N] - 1]


def index(held_out: Mapping[str, Sequence[Task]]) -> Index:
    """All evaluation sets. An n-gram of two different prompts of one set is left out."""
    out = Index()
    for name, tasks in held_out.items():
        mine: dict[str, str] = {}
        shared: set[str] = set()
        different = {normal(prompt_text(task)): task for task in tasks}
        for text, task in different.items():
            out.exact.setdefault(text, f"{name}/{task.id}")
            for gram in set(grams(prompt_text(task))):
                if mine.setdefault(gram, f"{name}/{task.id}") != f"{name}/{task.id}":
                    shared.add(gram)
        for gram, key in mine.items():
            if gram not in shared:
                out.grams.setdefault(gram, key)
    return out


def without_overlap(train: Sequence[Dataset], held_out: Mapping[str, Sequence[Task]]) -> list[Dataset]:
    """The training sets without the rows that overlap, which are counted, with examples in the notes.

    Raises DataError where no row of a set would stay.
    """
    if not any(held_out.values()):
        return list(train)
    known = index(held_out)
    shared = [[known.grams.keys() & grams(prompt_text(task)) for task in tasks] for tasks in train]
    often = Counter(gram for rows in shared for row in rows for gram in row)
    idioms = {gram for gram, count in often.items() if count > IDIOM}
    return [_clean(tasks, known, [row - idioms for row in rows]) for tasks, rows in zip(train, shared, strict=True)]


def _clean(tasks: Dataset, known: Index, shared: Sequence[set[str]]) -> Dataset:
    """`shared` are the n-grams of each task that count."""
    out = Dataset(dropped=tasks.dropped, notes=tasks.notes)
    found: list[tuple[Task, str, str]] = []
    for task, row in zip(tasks, shared, strict=True):
        whole = known.exact.get(normal(prompt_text(task)))
        if whole is not None:
            found.append((task, EXACT, whole))
        elif row:
            found.append((task, GRAM, known.grams[min(row)]))
        else:
            out.append(task)
    out.dropped.update(how for _, how, _ in found)
    if found:
        out.notes.append(_note(found, of=len(tasks)))
    if tasks and not out:
        raise DataError(f"{out.notes[-1]}. No row is left to train on: take the set out of data.eval or of data.train")
    return out


def _note(found: Iterable[tuple[Task, str, str]], *, of: int) -> str:
    rows = list(found)
    source = rows[0][0].source
    exact = sum(how == EXACT for _, how, _ in rows)
    shown = "; ".join(f"{place(task)} is {key}" for task, _, key in rows[:EXAMPLES])
    return (
        f"dataset {source!r}: {len(rows)} of {of} training rows stand in the evaluation sets and are dropped "
        f"({exact} whole prompts, {len(rows) - exact} by {N} words in a row). For example {shown}"
    )
