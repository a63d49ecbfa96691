"""One plain gradient step on the weights that are served, which the optimizer never hears of.

The gradient is taken by `torch.autograd.grad` on the module inside the engine: DeepSpeed collects gradients in the
hooks of accumulation, and this runs none of them. Under ZeRO-3 each parameter's gradient is cut down to this rank's
shard as soon as it is there; without shards a rank holds one whole gradient in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rlvr.engine.deepspeed_state import is_sharded, local


class Gradient:
    """Sum over micro-batches and ranks of the gradient of every trained parameter: what this rank holds of it."""

    def __init__(self, lm: nn.Module) -> None:
        self.params = [p for p in lm.parameters() if p.requires_grad]
        self._parts: list[Tensor | None] = [None] * len(self.params)

    def add(self, loss: Tensor) -> None:
        """One micro-batch; under ZeRO-3 a collective."""
        hooks = [p.register_hook(self._keeper(i)) for i, p in enumerate(self.params)]
        try:
            torch.autograd.grad(loss, self.params, allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()

    def parts(self) -> list[Tensor | None]:
        """In the order of `params`; a collective where the parameters are not sharded."""
        for p, part in zip(self.params, self._parts, strict=True):
            if part is not None and not is_sharded(p):
                _sum(part)
        return self._parts

    def _keeper(self, i: int) -> Callable[[Tensor], Tensor]:
        def keep(grad: Tensor) -> Tensor:
            p, part = self.params[i], grad.detach().float()
            part = own_shard(p, _sum(part.clone())) if is_sharded(p) else part
            old = self._parts[i]
            self._parts[i] = part.clone() if old is None else old.add_(part)
            return grad.new_zeros(()).expand_as(grad)  # autograd collects what is returned, and this takes no memory

        return keep


def own_shard(p: nn.Parameter, full: Tensor) -> Tensor:
    """This rank's part of a whole tensor, laid out as its shard of `p` is: flat, padded with 0."""
    held = local(p)
    rank = torch.distributed.get_rank(p.ds_process_group)  # type: ignore[attr-defined]
    mine = full.flatten()[rank * held.numel() : (rank + 1) * held.numel()]
    return nn.functional.pad(mine, (0, held.numel() - mine.numel()))


@torch.no_grad()
def descend(params: Sequence[nn.Parameter], gradient: Sequence[Tensor | None], *, eta: float) -> None:
    """p <- p - eta * gradient.

    In bfloat16 p on the right is the optimizer's float32 copy, which is only read: a step as small as this one is below
    the spacing of the weights, and from the copy as many of them are rounded to another one as should be.
    """
    for p, part in zip(params, gradient, strict=True):
        if is_sharded(p):
            p.partition()  # type: ignore[attr-defined] # a small one may be kept whole: the next use gathers it anew
        if part is not None:
            held = local(p)
            held.copy_(exact(p).to(held.device) - eta * part.view_as(held).to(held.device))


def exact(p: nn.Parameter) -> Tensor:
    """What this rank holds of `p` in float32: of bfloat16 weights the optimizer's copy."""
    held = local(p)
    if held.dtype == torch.float32:
        return held
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_local_fp32_param

    copy = safe_get_local_fp32_param(p) if is_sharded(p) else safe_get_full_fp32_param(p)
    assert copy is not None, "bfloat16 weights without an optimizer's copy"
    flat = copy.flatten()
    return nn.functional.pad(flat, (0, held.numel() - flat.numel())).view_as(held)


def total(values: Sequence[float], device: torch.device) -> list[float]:
    """Each summed over ranks."""
    return _sum(torch.tensor(values, dtype=torch.float64, device=device)).tolist()


def _sum(values: Tensor) -> Tensor:
    """Over ranks, in place."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.all_reduce(values)
    return values
