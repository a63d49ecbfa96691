"""A local JSONL file: one JSON object a line. Columns are named in the recipe.

`data: {train: {name: jsonl, path: my.jsonl, prompt: question}}`. Source, licence and quirks are the file's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from pydantic import BaseModel

from rlvr.errors import DataError
from rlvr.rows import Row, build_tasks, read_jsonl
from rlvr.types import Task


class Config(BaseModel, extra="forbid"):
    path: str | None = None  # or the recipe's data.path
    prompt: str = "prompt"  # columns: text, or a list of chat messages
    answer: str = "answer"
    id: str | None = None  # null: the line number
    demos: str | None = None  # text or a list of texts
    hints: str | None = None
    verifier: str | None = None  # a column naming each row's verifier


def load(config: Config, *, split: str, path: str | None) -> Iterable[Task]:
    """Every row of the file, whatever the split."""
    file = path or config.path
    if file is None:
        raise DataError("jsonl needs a file: write `{name: jsonl, path: FILE.jsonl}` or give data.path=FILE.jsonl")
    return build_tasks(read_jsonl(file), partial(_task, config=config))


def _task(row: Row, *, config: Config) -> Task:
    return Task(
        id=row.text(config.id) if config.id else str(row.number),
        prompt=_prompt(row, config.prompt),
        answer=row.text(config.answer),
        verifier=row.text(config.verifier) if config.verifier else None,
        demos=_texts(row, config.demos),
        hints=_texts(row, config.hints),
        meta={"where": row.where},
    )


def _prompt(row: Row, column: str) -> str | tuple[dict[str, str], ...]:
    value = row.values.get(column)
    if not isinstance(value, list):
        return row.text(column)
    messages = [m for m in value if isinstance(m, dict) and all(isinstance(m.get(k), str) for k in ("role", "content"))]
    if len(messages) < len(value) or not any(m["role"] == "user" for m in messages):
        raise DataError(f"{column!r} must be text, or messages with role and content of which one is the user's")
    return tuple({"role": m["role"], "content": m["content"]} for m in messages)


def _texts(row: Row, column: str | None) -> tuple[str, ...]:
    if column is None or row.values.get(column) is None:
        return ()
    value = row.values[column]
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{column!r} must be text or a list of texts")
    return tuple(texts)
