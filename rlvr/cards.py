r"""What dataset cards are made of: a source on the Hub or in a file, and the readers of its quirks.

A card is a Python file of `data/` with a `load`. One that reads the Hub says so in a line,
`load = HubCard("org/name", "file", _task, eval="test").load`, with `_task(row) -> Task` above it; one whose rows need
no more than names of columns takes them from the recipe (`Columns`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rlvr.errors import DataError
from rlvr.rows import Dataset, Row, build_tasks, read_file, read_hub
from rlvr.types import Message, Task

BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?:(?P<brace>\{)|(?P<bare>[^\s{}$]+))")
WHOLE = re.compile(r"([-+]?)0*(\d+)(?:\.0*)?", re.ASCII)
PADDED = re.compile(r"0+\d+", re.ASCII)


class NoSplit(DataError):
    """A benchmark asked for training rows, or training data for held-out ones."""


class HubConfig(BaseModel, extra="forbid"):
    """Options of every card that reads the Hub."""

    path: str | None = None  # a local .jsonl or .parquet file of this split, instead of the Hub
    revision: str | None = None  # commit, tag or branch; null: the newest


@dataclass(frozen=True)
class HubCard:
    """A dataset of the Hub. `train` and `eval` are the Hub's names of the splits; None: there is no such split."""

    dataset: str
    file: str  # its local form: <file>.jsonl, or <file>_<Hub's split>.jsonl where there are two splits
    make: Callable[[Row], Task]
    train: str | None = None
    eval: str | None = None
    config: str | None = None

    def load(self, config: HubConfig, *, split: str, path: str | None) -> Dataset:
        """The rows of a split: of `config.path`, of `path` (the recipe's `data.path`), of RLVR_DATA or of the Hub.

        `path` is the file of the training rows; held-out rows then lie beside it, in a file with the other split's
        name in the place of the training split's.
        """
        theirs = {"train": self.train, "eval": self.eval}[split]
        if theirs is None:
            raise NoSplit(
                f"{self.file} is a benchmark: it belongs in data.eval, not in data.train"
                if split == "train"
                else f"{self.file} has no rows for evaluation: name a benchmark in data.eval (aime24, math500)"
            )
        local = config.path or (self._beside(path, split) if path else None)
        name = f"{self.file}_{theirs}" if self.train and self.eval else self.file
        hub = read_hub(self.dataset, self.config, split=theirs, local=name, revision=config.revision)
        return build_tasks(read_file(local) if local else hub, self.make)

    def _beside(self, path: str, split: str) -> Path:
        file = Path(path)
        if split == "train" or not self.train:
            return file
        other = file.with_name(file.name.replace(self.train, str(self.eval)))
        if other == file or not other.is_file():
            raise DataError(
                f"no held-out rows beside {path}: expected a file of that name with `{self.eval}` for `{self.train}`; "
                "without one they would be training rows. Put it there or leave data.eval out"
            )
        return other


class Columns(BaseModel, extra="forbid"):
    """Which column is what; `a.b` is column b inside the mapping a."""

    prompt: str = "prompt"  # text, or a list of chat messages
    answer: str = "answer"
    id: str | None = None  # null: the row's number
    demos: str | None = None  # text or a list of texts
    hints: str | None = None
    verifier: str | None = None  # a column naming each row's verifier

    def task(self, row: Row) -> Task:
        """A row as a task. Raises DataError for what is missing or of the wrong type."""
        return Task(
            id=row.text(self.id) if self.id else str(row.number),
            prompt=prompt_of(row, self.prompt),
            answer=row.text(self.answer),
            verifier=row.text(self.verifier) if self.verifier else None,
            demos=row.texts(self.demos) if self.demos else (),
            hints=row.texts(self.hints) if self.hints else (),
            meta={"where": row.where},
        )


def prompt_of(row: Row, column: str) -> str | tuple[Message, ...]:
    """A prompt: text, or chat messages of which one is the user's."""
    value = row.get(column)
    if not isinstance(value, list):
        return row.text(column)
    messages = [m for m in value if isinstance(m, dict) and all(isinstance(m.get(k), str) for k in ("role", "content"))]
    if len(messages) < len(value) or not any(m["role"] == "user" for m in messages):
        raise DataError(f"{column!r} must be text, or messages with role and content of which one is the user's")
    return tuple({"role": m["role"], "content": m["content"]} for m in messages)


def user_text(row: Row, column: str) -> str:
    """The user's words of a prompt that is text or a chat of one message."""
    prompt = prompt_of(row, column)
    if isinstance(prompt, str):
        return prompt
    words = [m["content"] for m in prompt if m["role"] == "user"]
    if len(words) != 1:
        raise DataError(f"{column!r} has {len(words)} messages of the user, expected one")
    return words[0]


def make_task(row: Row, prompt: str, answer: str, **fields: Any) -> Task:
    """A task whose id is a hash of prompt and answer (the same in every file and order), unless `id` is given."""
    key = hashlib.sha256(f"{prompt}\0{answer}".encode()).hexdigest()[:12]
    meta: Mapping[str, Any] = fields.pop("meta", {})
    return Task(**({"id": key, "prompt": prompt, "answer": answer, "meta": {"where": row.where, **meta}} | fields))


def some_of(row: Row, *columns: str) -> dict[str, Any]:
    """Those of the columns that are there and not empty, for `meta`."""
    return {column: row.get(column) for column in columns if row.get(column) not in (None, "", [])}


def whole(text: str) -> str:
    """A whole number in its one spelling: 33 for "033", 27 for "27.0". Raises DataError for anything else."""
    number = WHOLE.fullmatch(text.strip().replace(",", ""))
    if number is None:
        raise DataError(f"'answer' is {text!r}, expected a whole number")
    return ("-" if number[1] == "-" and number[2] != "0" else "") + number[2]


def unpadded(text: str) -> str:
    """The answer without white space around it, and without zeros before an integer: 35 for "035"."""
    text = text.strip()
    return str(int(text)) if PADDED.fullmatch(text) else text


def last_box(solution: str) -> str:
    r"""What the last `\boxed{}` (or `\fbox{}`, `\boxed 5`) holds, braces balanced. Raises DataError without one."""
    boxes = list(BOX.finditer(solution))
    if not boxes:
        raise DataError(r"the solution has no \boxed{} answer")
    if boxes[-1]["bare"]:
        return boxes[-1]["bare"].rstrip(".")
    depth, start = 1, boxes[-1].end()
    for i in range(start, len(solution)):
        depth += {"{": 1, "}": -1}.get(solution[i], 0)
        if depth == 0:
            return solution[start:i].strip()
    raise DataError(r"the last \boxed{ of the solution is never closed")


def with_box(solution: str, answer: str) -> str:
    r"""A demonstration: the solution, ending in `\boxed{answer}` where it has no box of its own."""
    solution = solution.strip()
    return solution if BOX.search(solution) else f"{solution}\n\\boxed{{{answer}}}"
