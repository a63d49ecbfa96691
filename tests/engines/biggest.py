"""Sees every tensor that is made inside the block, in forward and backward alike."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Biggest(TorchDispatchMode):
    """Counts rows of tensors whose last dimension is the vocabulary.

    `rows`: the most in one tensor; `kept`: of all that autograd keeps for backward, together (what a checkpoint
    recomputes is not kept).
    """

    def __init__(self, *, vocab: int) -> None:
        super().__init__()
        self.vocab, self.rows, self.kept = vocab, 0, 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda x: x)

    def __enter__(self) -> Biggest:
        self._hooks.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hooks.__exit__(*error)

    def _keep(self, x: torch.Tensor) -> torch.Tensor:
        self.kept += self._count(x)
        return x

    def _count(self, x: torch.Tensor) -> int:
        return x.numel() // self.vocab if x.dim() > 1 and x.shape[-1] == self.vocab else 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_iter(out):
            if isinstance(x, torch.Tensor):
                self.rows = max(self.rows, self._count(x))
        return out
