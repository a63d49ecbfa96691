from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr.batching import collate, micro_batches, row_table, split_updates, token_batch
from rlvr.credit import without_truncated
from tests.unit.rows import make_group

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=60)


@given(lengths=LENGTHS, ranks=st.integers(1, 5), budget=st.integers(1, 200))
def test_every_row_once_and_equal_counts(lengths: list[int], ranks: int, budget: int) -> None:
    shares = micro_batches(lengths, ranks=ranks, token_budget=budget)
    assert len({len(share) for share in shares}) == 1
    assert sorted(i for share in shares for micro in share for i in micro) == list(range(len(lengths)))
    for share in shares:
        for micro in share:
            assert len(micro) <= 1 or len(micro) * max(lengths[i] for i in micro) <= budget


@given(lengths=LENGTHS, budget=st.integers(50, 400))
def test_fillers_only_with_fewer_rows_than_needed(lengths: list[int], budget: int) -> None:
    shares = micro_batches(lengths, ranks=2, token_budget=budget)
    fillers = sum(not micro for share in shares for micro in share)
    assert fillers <= 1
    if fillers:
        assert all(len(m) <= 1 for share in shares for m in share)


def test_micro_batches_by_hand() -> None:
    # sorted: 8 7 | 3 3 2 with budget 16 -> (8,7) costs 16, (3,3,2) costs 9; each rank gets one
    assert micro_batches([3, 8, 2, 7, 3], ranks=2, token_budget=16) == [[(1, 3)], [(0, 4, 2)]]


def test_ranks_are_balanced() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 100, 256).tolist()
    loads = [
        sum(len(m) * max(lengths[i] for i in m) for m in share)
        for share in micro_batches(lengths, ranks=4, token_budget=1000)
    ]
    assert max(loads) / min(loads) < 1.1


@given(groups=st.integers(1, 40), minibatches=st.integers(1, 8), epochs=st.integers(1, 3), seed=st.integers(0, 9))
def test_updates_take_every_group_once_an_epoch(groups: int, minibatches: int, epochs: int, seed: int) -> None:
    updates = split_updates(groups, minibatches=minibatches, epochs=epochs, seed=seed)
    assert sorted(g for u in updates for g in u) == sorted(list(range(groups)) * epochs)
    assert len(updates) == epochs * min(groups, minibatches)
    assert updates == split_updates(groups, minibatches=minibatches, epochs=epochs, seed=seed)


def test_epochs_have_orders_of_their_own() -> None:
    first, second = (
        split_updates(16, minibatches=2, epochs=2, seed=3)[:2],
        split_updates(16, minibatches=2, epochs=2, seed=3)[2:],
    )
    assert first != second


def test_error_rows_and_truncated_rows_have_no_weight() -> None:
    group = make_group(0, scores=[1.0, 0.0, 0.0], errors=[None, "timeout", None], finishes=["stop", "stop", "length"])
    assert [float(r.weight.sum()) for r in collate([group])] == [3.0, 0.0, 3.0]
    masked = without_truncated([group])
    assert [float(r.weight.sum()) for r in collate(masked)] == [3.0, 0.0, 0.0]
    assert [v.score for v in (t.verdict for t in masked[0].trajectories) if v] == [1.0, 0.0, 0.0]
    assert row_table([group, group]) == [(0, 1, 2), (3, 4, 5)]


def test_supervised_scale_is_a_token_mean() -> None:
    rows = collate([make_group(0, scores=[1.0, 0.0])])
    batch = token_batch(rows, [0, 1], scale=np.ones(2, dtype=np.float32))
    assert batch.sft_scale.tolist() == [0.0, 0.0]
    assert batch.picked[1] is rows[1]
    imitated = [replace(row, sft_weight=np.array([0, 0.1, 0.1, 0, 0], np.float32)) for row in rows]
    batch = token_batch((imitated[0], rows[1], imitated[1]), [0, 1, 2], scale=np.ones(3, dtype=np.float32))
    assert batch.sft_scale.tolist() == [0.25] * 3  # of 4 tokens, whatever their weight: 0.1 is a coefficient
    with pytest.raises(IndexError):
        token_batch(rows, [2], scale=np.ones(1, dtype=np.float32))


def test_two_datasets_of_a_mixture_may_have_the_same_ids() -> None:
    groups = [make_group(i, scores=[1.0, 0.0]) for i in range(2)]
    tasks = [replace(groups[0].task, id="1", source=source) for source in ("easy", "hard")]
    rows = collate([g.with_(task=task) for g, task in zip(groups, tasks, strict=True)])
    assert {row.task for row in rows} == {"easy/1", "hard/1"}
