"""A local JSONL file: one JSON object a line. Columns are named in the recipe.

`data: {train: {name: jsonl, path: my.jsonl, prompt: question}}`. Source, licence and quirks are the file's own.
"""

from __future__ import annotations

from rlvr.cards import Columns
from rlvr.errors import DataError
from rlvr.rows import Dataset, build_tasks, read_jsonl


class Config(Columns):
    path: str | None = None  # or the recipe's data.path


def load(config: Config, *, split: str, path: str | None) -> Dataset:
    """Every row of the file, whatever the split."""
    file = path or config.path
    if file is None:
        raise DataError("jsonl needs a file: write `{name: jsonl, path: FILE.jsonl}` or give data.path=FILE.jsonl")
    return build_tasks(read_jsonl(file), config.task)
