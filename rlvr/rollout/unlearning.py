"""Rows of an unlearning step: the mean over responses of the mean over their tokens, over all of them together."""

from __future__ import annotations

from collections.abc import Sequence

from rlvr.batching import collate, token_batch
from rlvr.objectives.reduce import row_scales
from rlvr.types import Group, TokenBatch


def unlearning_batch(groups: Sequence[Group]) -> TokenBatch:
    """Every response of the policy without a verifier's error, with the global normaliser 1 / (B' |y_i|)."""
    rows = collate(groups)
    index = [i for i, row in enumerate(rows) if row.source == "policy"]
    lengths = [float(rows[i].weight.sum()) for i in index]
    return token_batch(rows, index, scale=row_scales(lengths, reduction="sequence"))
