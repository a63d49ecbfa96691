"""The trainer's weights as a stream of full tensors in checkpoint names, whatever the ZeRO stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ParamMeta:
    """One tensor that will be sent: the same fields as vLLM's own `ParamMeta`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class DeepSpeedWeightSource:
    """A re-iterable source over a Hugging Face module under ZeRO 0-3: vLLM's `WeightSource`, structurally.

    (It does not inherit from it, so that a CPU trainer need not import vLLM.) Under ZeRO-3 one layer is gathered at
    a time, a collective: every rank must iterate, in lockstep. Tensors are cast to the sampler's `dtype`; tied
    tensors come once. A tensor that was yielded stays valid after its layer is partitioned again.
    """

    def __init__(self, module: torch.nn.Module, *, zero_stage: int, dtype: torch.dtype) -> None:
        self._zero3, self._dtype = zero_stage == 3, dtype
        self._groups = layer_groups(dict(module.named_parameters()))
        self._pass: Iterator[tuple[str, torch.Tensor]] = iter(())

    def metadata(self) -> list[ParamMeta]:
        """Name, dtype on the wire and full shape of every tensor, in the order of iteration; nothing is gathered."""
        return [ParamMeta(n, self._wire(p), self._shape(p)) for group in self._groups for n, p in group.items()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self._pass = self._tensors()
        return self._pass

    def drain(self) -> None:
        """Run the current pass to its end: a sender that failed half way must not leave the other ranks waiting."""
        for _ in self._pass:
            pass

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for group in self._groups:
            with self._gathered(list(group.values())):
                for name, param in group.items():
                    yield name, param.detach().to(self._wire(param))

    def _gathered(self, params: list[torch.nn.Parameter]) -> AbstractContextManager[None]:
        if not self._zero3:
            return nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters(params)

    def _wire(self, param: torch.Tensor) -> torch.dtype:
        return self._dtype if param.is_floating_point() else param.dtype

    def _shape(self, param: torch.Tensor) -> tuple[int, ...]:
        return tuple(param.ds_shape if self._zero3 else param.shape)  # type: ignore[attr-defined]


def layer_groups(params: dict[str, torch.nn.Parameter]) -> list[dict[str, torch.nn.Parameter]]:
    """Consecutive parameters of one layer together: the key is the name up to its first number."""
    groups: list[dict[str, torch.nn.Parameter]] = []
    last: tuple[str, ...] | None = None
    for name, param in params.items():
        parts = name.split(".")
        numbers = [i for i, part in enumerate(parts) if part.isdigit()]
        key = tuple(parts[: numbers[0] + 1]) if numbers else ()
        if key != last:
            groups.append({})
        groups[-1][name] = param
        last = key
    return groups
