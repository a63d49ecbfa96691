"""Rows packed for the way to the ranks come out as they went in."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rlvr.batching import collate
from rlvr.packing import Ragged, pack_rows, pack_streams, ragged, spread, unpack_rows, unpack_streams
from rlvr.types import Row
from tests.unit.rows import make_group


def same(a: Row, b: Row) -> None:
    for field in fields(Row):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)
        elif field.name == "streams":
            assert x.keys() == y.keys()
            for name in x:
                assert x[name].dtype == y[name].dtype
                np.testing.assert_array_equal(x[name], y[name])
        else:
            assert x == y


def rows() -> tuple[Row, ...]:
    """Rows of several lengths, with and without streams (per token and per sequence) and a supervised channel."""
    out = []
    group = make_group(3, scores=[1.0, 0.0, 1.0], lengths=[3, 1, 7])
    for i, row in enumerate(collate([group.with_(rewards=group.scores)])):
        length = len(row.tokens)
        row = replace(row, logprobs=np.where(np.arange(length) == 1, np.nan, row.logprobs).astype(np.float32))
        if i != 1:
            row = replace(
                row, streams={"old_logp": np.arange(length, dtype=np.float32), "rank": np.ones(3, np.float32)}
            )
        if i == 2:
            row = replace(row, sft_weight=np.ones(length, np.float32))
        out.append(row)
    return tuple(out)


def test_rows_come_back_as_they_were() -> None:
    for before, after in zip(rows(), unpack_rows(pickle.loads(pickle.dumps(pack_rows(rows())))), strict=True):
        same(before, after)


def test_a_field_is_one_array() -> None:
    packed = pack_rows(rows())
    assert isinstance(packed["tokens"], Ragged) and packed["tokens"].flat.shape == (17,)
    assert packed["sft_weight"].lengths.tolist() == [-1, -1, 9]
    assert packed["streams"]["old_logp"].lengths.tolist() == [5, -1, 9]


def test_values_that_are_no_flat_arrays_of_one_type_stay_as_they_are() -> None:
    mixed = [np.zeros(2, np.float32), np.zeros(2, np.float64)]
    assert isinstance(ragged(mixed), list) and spread(ragged(mixed))[1].dtype == np.float64
    assert isinstance(ragged([np.zeros((2, 2))]), list)
    assert spread(ragged([None, None])) == [None, None]


@given(st.lists(st.none() | st.lists(st.floats(width=32, allow_nan=False), max_size=4), max_size=6))
def test_any_streams_come_back(values: list[list[float] | None]) -> None:
    before = [{} if v is None else {"x": np.array(v, np.float32)} for v in values]
    after = unpack_streams(pack_streams(before), len(before))
    assert [{k: v.tolist() for k, v in row.items()} for row in after] == [
        {k: v.tolist() for k, v in row.items()} for row in before
    ]
