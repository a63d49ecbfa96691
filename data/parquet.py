"""A local Parquet file. Columns are named in the recipe; `a.b` is column b of the struct a.

`data: {train: {name: parquet, path: train.parquet, answer: reward_model.ground_truth}}` reads a file written for
verl. Source, licence and quirks are the file's own.
"""

from __future__ import annotations

from rlvr.cards import Columns
from rlvr.errors import DataError
from rlvr.rows import Dataset, build_tasks, read_parquet


class Config(Columns):
    path: str | None = None  # or the recipe's data.path


def load(config: Config, *, split: str, path: str | None) -> Dataset:
    """Every row of the file, whatever the split."""
    file = path or config.path
    if file is None:
        raise DataError("parquet needs a file: write `{name: parquet, path: FILE.parquet}` or give data.path=FILE")
    return build_tasks(read_parquet(file), config.task)
