"""Append-only JSONL files that survive SIGKILL and can be cut back to a checkpoint.

The newline is the commit mark: a last line without one was torn by a kill and does not exist. Floats are
written with `repr` (the shortest text that reads back to the same number), keys in insertion order, so two
runs that compute the same numbers write the same bytes. JSON has no NaN: a number that is not finite is
written as null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlvr.errors import CheckpointError, DataError

Record = dict[str, Any]
_CHUNK = 1 << 16


class Journal:
    """Writer of one JSONL file. One process owns it (see `RunDir.lock`).

    Opening creates the file and removes a torn last line. Raises CheckpointError when the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = self._open()

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line, whole or not at all; it is with the operating system when this returns."""
        start = os.lseek(self._fd, 0, os.SEEK_END)
        try:
            _write(self._fd, encode(record))
        except OSError as error:
            os.ftruncate(self._fd, start)
            raise _refused(self.path, error) from error

    def cut(self, step: int) -> int:
        """Drop every line whose `step` is beyond `step`. Returns how many went."""
        return self.keep(lambda record: record["step"] <= step)

    def keep(self, wanted: Callable[[Record], bool]) -> int:
        """Keep the wanted lines, byte for byte, in one atomic replacement. Returns how many went.

        Raises DataError where a line is not JSON or lacks what `wanted` asks for.
        """
        temporary = self.path.with_name(self.path.name + ".cut")
        dropped = 0
        try:
            with temporary.open("wb") as out:
                for line, record in _lines(self.path):
                    if _ask(wanted, record, self.path):
                        out.write(line)
                    else:
                        dropped += 1
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise _refused(self.path, error) from error
        os.replace(temporary, self.path)
        os.close(self._fd)
        self._fd = self._open()
        return dropped

    def close(self) -> None:
        """Close the file. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> int:
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise _refused(self.path, error) from error
        os.ftruncate(fd, _whole(fd))
        return fd


def read(path: Path) -> Iterator[Record]:
    """The records of a journal in order, torn last line left out; nothing where there is no file.

    Raises DataError with the line number where a whole line is not a JSON object.
    """
    for _, record in _lines(Path(path)):
        yield record


def encode(record: Mapping[str, Any]) -> bytes:
    """One line of JSON with its newline. Lone surrogates become JSON escapes, so any text can be written."""
    text = json.dumps(_plain(record), ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
    return text.encode("utf-8", errors="backslashreplace") + b"\n"


def _plain(value: Any) -> Any:
    """numpy to Python, numbers that are not finite to None."""
    match value:
        case np.ndarray() | np.generic():
            return _plain(value.tolist())
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return value


def _lines(path: Path) -> Iterator[tuple[bytes, Record]]:
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield line, _decode(line, path, number)


def _decode(line: bytes, path: Path, number: int) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}, line {number}: not JSON ({error}). Remove the line or restore the file.") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}, line {number}: got {type(record).__name__}, expected an object of keys and values.")
    return record


def _ask(wanted: Callable[[Record], bool], record: Record, path: Path) -> bool:
    try:
        return wanted(record)
    except KeyError as error:
        raise DataError(f"{path}: a line has no key {error}: another program wrote it? Line: {record}") from None


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _whole(fd: int) -> int:
    """Length in bytes up to and with the last newline."""
    end = os.lseek(fd, 0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _CHUNK)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _refused(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"cannot write {path}: {error.strerror}. Lines written so far are whole; free some space (or fix the "
        "permissions) and give the same command again to resume."
    )
