"""The token covariance that drives entropy (2505.22617), in numpy: it is a matter of the controller."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


def token_covariances(
    advantages: Sequence[F32], logps: Sequence[F32], trained: Sequence[npt.NDArray[np.bool_]]
) -> list[F32]:
    """c = (A - mean A)(logp - mean logp) [L] per row, with means over all `trained` tokens; 0 elsewhere."""
    use = np.concatenate(trained)
    centred = []
    for values in (advantages, logps):
        flat = np.where(use, np.concatenate(values), 0.0).astype(np.float64)
        centred.append(np.where(use, flat - flat.sum() / max(int(use.sum()), 1), 0.0))
    cov = (centred[0] * centred[1]).astype(np.float32)
    return np.split(cov, np.cumsum([len(t) for t in trained])[:-1])
