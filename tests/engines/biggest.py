"""Sees every tensor that is made inside the block, in forward and backward alike."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Biggest(TorchDispatchMode):
    """`rows`: the most logit rows in one tensor whose last dimension is the vocabulary; `largest`: elements of any."""

    def __init__(self, *, vocab: int) -> None:
        super().__init__()
        self.vocab, self.rows, self.largest = vocab, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_iter(out):
            if isinstance(x, torch.Tensor) and x.dim() > 1 and x.numel():
                self.largest = max(self.largest, x.numel())
                if x.shape[-1] == self.vocab:
                    self.rows = max(self.rows, x.numel() // self.vocab)
        return out
