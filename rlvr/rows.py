"""Rows of a dataset, wherever they come from, and every problem with them at once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlvr.errors import DataError
from rlvr.types import Task

SHOWN = 10  # problems that an error lists before it only counts


@dataclass(frozen=True)
class Row:
    """One row and where it stands; `problem` when it could not even be read."""

    number: int  # of the line or row, from 1
    where: str  # "file:line" or "dataset:row"
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None

    def text(self, column: str) -> str:
        """The column as text, never empty. Raises DataError naming the columns that exist."""
        value = self.values.get(column)
        if column not in self.values:
            raise DataError(f"no {column!r}; the columns are: {', '.join(self.values) or 'none'}")
        if not isinstance(value, str | int | float) or isinstance(value, bool) or not str(value).strip():
            raise DataError(f"{column!r} is {json.dumps(value, default=str)[:60]}, expected a text or a number")
        return str(value)


def read_jsonl(path: str | Path) -> Iterator[Row]:
    """The objects of a JSONL file (UTF-8), blank lines left out. Raises DataError when there is no such file."""
    try:
        lines = Path(path).expanduser().read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give the path of a JSONL file") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _parsed(number, f"{path}:{number}", line)


def _parsed(number: int, where: str, line: bytes) -> Row:
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} is 0x{line[error.start]:02x}"
        return Row(number, where, problem=f"not UTF-8 ({byte}); save the file as UTF-8")
    except ValueError as error:
        return Row(number, where, problem=f"not JSON: {error}; every line must be one JSON object")
    if not isinstance(values, dict):
        return Row(number, where, problem=f"a JSON {type(values).__name__}, expected an object with named columns")
    return Row(number, where, values)


def read_hub(dataset: str, config: str, *, split: str, local: str) -> Iterator[Row]:
    """The rows of a dataset of the Hugging Face Hub.

    With `RLVR_DATA=<folder>` they come from the file `<folder>/<local>` and nothing is downloaded. Raises
    DataError when neither can be had.
    """
    folder = os.environ.get("RLVR_DATA")
    if folder:
        yield from read_jsonl(Path(folder) / local)
        return
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        rows = datasets.load_dataset(dataset, config, split=split)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise DataError(
            f"{dataset} ({config}, {split}) cannot be had from the Hub: {error}. Without a network put {local} into "
            f"a folder and set RLVR_DATA=<folder>, or give data.path=<file>.jsonl"
        ) from error
    for number, values in enumerate(rows, 1):
        yield Row(number, f"{dataset}/{split}:{number}", dict(values))


def build_tasks(rows: Iterable[Row], make: Callable[[Row], Task]) -> list[Task]:
    """A task of each row. A DataError that `make` raises is collected; then one DataError carries them all."""
    tasks: list[Task] = []
    problems: list[str] = []
    for row in rows:
        if row.problem is not None:
            problems.append(f"{row.where}: {row.problem}")
            continue
        try:
            tasks.append(make(row))
        except DataError as error:
            problems.append(f"{row.where}: {error}")
    raise_all(problems)
    return tasks


def raise_all(problems: list[str], *, heading: str = "") -> None:
    """Raise one DataError with the first ten problems and their number; nothing when there is none."""
    if problems:
        more = [f"... and {len(problems) - SHOWN} more ({len(problems)} in all)"] if len(problems) > SHOWN else []
        raise DataError("\n".join([*([heading] if heading else []), *problems[:SHOWN], *more]))
