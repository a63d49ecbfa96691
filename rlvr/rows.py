"""Rows of a dataset, wherever they come from, and every problem with them at once."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlvr.errors import DataError
from rlvr.types import Task

SHOWN = 10  # problems that an error lists before it only counts
SUFFIXES = (".jsonl", ".parquet")  # of local files, in the order in which they are looked for


class Drop(Exception):
    """Raised by a card over a row that its source marks as unusable; the text is the reason it is counted under."""


class Dataset(list[Task]):
    """The tasks of a dataset, in order; how many rows were left out for which reason, and what else to tell people."""

    def __init__(
        self, tasks: Iterable[Task] = (), dropped: Mapping[str, int] | None = None, notes: Iterable[str] = ()
    ) -> None:
        super().__init__(tasks)
        self.dropped: Counter[str] = Counter(dropped or {})
        self.notes = list(notes)


@dataclass(frozen=True)
class Row:
    """One row and where it stands; `problem` when it could not even be read."""

    number: int  # of the line or row, from 1
    where: str  # "file:line" or "dataset:row"
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None

    def get(self, column: str) -> Any:
        """The value of a column, None where it is not there; `a.b` looks for b inside the mapping a."""
        value: Any = self.values
        for key in (column,) if column in self.values else column.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def text(self, *columns: str) -> str:
        """The first of the columns that is there, as text, never empty. Raises DataError naming those that exist."""
        found = [(column, value) for column in columns if (value := self.get(column)) is not None]
        if not found:
            present = [c for c in columns if c in self.values]
            if present:
                raise DataError(f"{present[0]!r} is null, expected a text or a number")
            asked = " or ".join(map(repr, columns))
            raise DataError(f"no {asked}; the columns are: {', '.join(self.values) or 'none'}")
        column, value = next(((c, v) for c, v in found if str(v).strip()), found[0])
        if not isinstance(value, str | int | float) or isinstance(value, bool) or not str(value).strip():
            raise DataError(f"{column!r} is {json.dumps(value, default=str)[:60]}, expected a text or a number")
        return str(value)

    def texts(self, column: str) -> tuple[str, ...]:
        """The column's texts, without empty ones: of a text, of a list of texts, of nothing."""
        value = self.get(column)
        texts = value if isinstance(value, list | tuple) else [] if value is None else [value]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{column!r} must be text or a list of texts")
        return tuple(text for text in texts if text.strip())


def read_file(path: str | Path) -> Iterator[Row]:
    """The rows of a local file: `.parquet`, or else JSONL. Raises DataError when there is no such file."""
    path = Path(path).expanduser()
    return read_parquet(path) if path.suffix == ".parquet" else read_jsonl(path)


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


def read_parquet(path: str | Path) -> Iterator[Row]:
    """The rows of a Parquet file. Raises DataError when there is no such file, or it is none."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(Path(path).expanduser())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; give the path of a Parquet file") from error
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"cannot read {path}: not a Parquet file: {error}") from error
    number = 0
    for batch in table.iter_batches():
        for values in batch.to_pylist():
            number += 1
            yield Row(number, f"{path}:{number}", values)


def read_hub(
    dataset: str, config: str | None, *, split: str, local: str | None = None, revision: str | None = None
) -> Iterator[Row]:
    """The rows of a dataset of the Hugging Face Hub, at `revision` (None: the newest).

    With `RLVR_DATA=<folder>` they come from the file `<folder>/<local>.jsonl` (or `.parquet`) and nothing is
    downloaded. Raises DataError when neither can be had.
    """
    folder = os.environ.get("RLVR_DATA")
    if folder and local:
        yield from read_file(_beside(Path(folder).expanduser(), local))
        return
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        rows = datasets.load_dataset(dataset, config, split=split, revision=revision)
    except (OSError, ValueError, HfHubHTTPError) as error:
        put = f"put {local}.jsonl (or .parquet) into a folder and set RLVR_DATA=<folder>, or " if local else ""
        at = f"{config or 'default'}, {split}" + (f", revision {revision}" if revision else "")
        raise DataError(
            f"{dataset} ({at}) cannot be had from the Hub: {error}. Without a network {put}give the file's path: "
            "data.path=FILE for the training set, `{name: NAME, path: FILE}` for any"
        ) from error
    for number, values in enumerate(rows, 1):
        yield Row(number, f"{dataset}/{split}:{number}", dict(values))


def _beside(folder: Path, local: str) -> Path:
    files = [folder / f"{local}{suffix}" for suffix in SUFFIXES]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise DataError(f"RLVR_DATA={folder} has neither {files[0].name} nor {files[1].name}: put one of them there")
    return found


def build_tasks(rows: Iterable[Row], make: Callable[[Row], Task]) -> Dataset:
    """A task of each row that `make` does not `Drop`.

    A DataError that `make` raises is collected; then one DataError carries them all.
    """
    tasks = Dataset()
    problems: list[str] = []
    for row in rows:
        if row.problem is not None:
            problems.append(f"{row.where}: {row.problem}")
            continue
        try:
            tasks.append(make(row))
        except Drop as reason:
            tasks.dropped[str(reason)] += 1
        except DataError as error:
            problems.append(f"{row.where}: {error}")
    raise_all(problems)
    return tasks


def raise_all(problems: list[str], *, heading: str = "") -> None:
    """Raise one DataError with the first ten problems and their number; nothing when there is none."""
    if problems:
        more = [f"... and {len(problems) - SHOWN} more ({len(problems)} in all)"] if len(problems) > SHOWN else []
        raise DataError("\n".join([*([heading] if heading else []), *problems[:SHOWN], *more]))
