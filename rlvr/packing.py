"""Many small arrays as few large ones, for the way to the ranks and back.

A step has some hundred rows of a dozen short arrays each. Pickled one by one they cost more than they weigh: the
ranks spent a tenth of a step reading them. Packed, each field is one array, and unpacking gives views of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from rlvr.types import Row

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Ragged:
    """Arrays [L] of one type end to end; `lengths` is -1 where there was None."""

    flat: Array  # [sum of L]
    lengths: npt.NDArray[np.int64]  # [rows]

    def split(self) -> list[Array | None]:
        """Inverse of `ragged`: views of `flat`."""
        ends = np.cumsum(np.maximum(self.lengths, 0)).tolist()
        return [None if n < 0 else self.flat[end - n : end] for n, end in zip(self.lengths.tolist(), ends, strict=True)]


Column = Ragged | list[Any]  # a list where values are no arrays [L] of one type


def ragged(values: Sequence[Any]) -> Column:
    """Values, one a row, as one `Ragged` where all are arrays [L] of one type (or None); else as they are."""
    arrays = [v for v in values if v is not None]
    plain = all(isinstance(v, np.ndarray) and v.ndim == 1 for v in arrays)
    if not arrays or not plain or len({v.dtype for v in arrays}) > 1:
        return list(values)
    lengths = np.array([-1 if v is None else len(v) for v in values], np.int64)
    return Ragged(np.concatenate(arrays), lengths)


def spread(column: Column) -> list[Any]:
    """Inverse of `ragged`."""
    return column.split() if isinstance(column, Ragged) else column


def pack_streams(rows: Sequence[Mapping[str, Array]]) -> dict[str, Column]:
    """Named arrays of every row, as one column a name; a name may be absent from some rows."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: ragged([row.get(name) for row in rows]) for name in names}


def unpack_streams(columns: Mapping[str, Column], count: int) -> list[dict[str, Array]]:
    """Inverse of `pack_streams` for `count` rows."""
    out: list[dict[str, Array]] = [{} for _ in range(count)]
    for name, column in columns.items():
        for row, value in zip(out, spread(column), strict=True):
            if value is not None:
                row[name] = value
    return out


def pack_rows(rows: Sequence[Row]) -> dict[str, Any]:
    """Training rows as one column a field."""
    names = [f.name for f in fields(Row) if f.name != "streams"]
    packed: dict[str, Any] = {name: ragged([getattr(row, name) for row in rows]) for name in names}
    return packed | {"streams": pack_streams([row.streams for row in rows])}


def unpack_rows(packed: Mapping[str, Any]) -> tuple[Row, ...]:
    """Inverse of `pack_rows`; the arrays are views."""
    columns = {name: spread(column) for name, column in packed.items() if name != "streams"}
    streams = unpack_streams(packed["streams"], len(columns["key"]))
    made = zip(*columns.values(), streams, strict=True)
    return tuple(Row(**dict(zip((*columns, "streams"), values, strict=True))) for values in made)
