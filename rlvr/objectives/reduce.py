"""From token losses to one number: a scale per row, with the normalisers of the whole update in it.

`loss = sum_b scale[b] * sum_t weight[b,t] * l[b,t]` is then the same however rows are split over micro-batches
and ranks, in whatever order they come and however they are padded.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rlvr.recipe import Reduction


def row_scales(lengths: npt.ArrayLike, *, reduction: Reduction, constant: int | None = None) -> npt.NDArray[np.float32]:
    """Scales [B] for the rows of one update from their trained tokens `lengths` [B] = sum_t weight[b,t].

    With N = sum of lengths and B' = rows of non-zero length:
    "token" 1/N (DAPO); "sequence" 1/(B' |y_i|) (the GRPO paper); "constant" 1/(B' constant) (Dr.GRPO);
    "sum" 1/B' (the mean over rows of their sums).
    A fully masked row has scale 0 and is not counted in B', so such rows never change a loss.
    Raises ValueError when `reduction` is "constant" without a positive `constant`.
    """
    sizes = np.asarray(lengths, dtype=np.float64)
    alive = sizes > 0
    rows = max(int(alive.sum()), 1)
    if reduction == "token":
        scale = np.full(sizes.shape, 1.0 / max(sizes.sum(), 1e-30))
    elif reduction == "sequence":
        scale = 1.0 / (rows * np.where(alive, sizes, 1.0))
    elif reduction == "sum":
        scale = np.full(sizes.shape, 1.0 / rows)
    else:
        if constant is None or constant <= 0:
            raise ValueError(f"reduction 'constant' divides by a fixed length: got constant={constant}, expected > 0")
        scale = np.full(sizes.shape, 1.0 / (rows * constant))
    return np.where(alive, scale, 0.0).astype(np.float32)


def scaled_sum(loss: Tensor, *, weight: Tensor, scale: Tensor) -> Tensor:
    """`sum_b scale[b] * sum_t weight[b,t] * loss[b,t]`: this micro-batch's share ([B,T], [B,T], [B] -> scalar)."""
    return (scale * (weight * loss).sum(dim=1)).sum()
