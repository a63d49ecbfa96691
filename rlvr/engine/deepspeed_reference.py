"""The reference model of one rank: where pi_ref comes from, how it follows the policy, what a checkpoint keeps of it.

Under ZeRO-3 policy and reference are partitioned alike, so each rank moves its own shards: nothing is gathered.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlvr.engine.deepspeed_setup import PolicySpec, ds_config, load_model
from rlvr.engine.deepspeed_state import is_sharded, local
from rlvr.engine.forward import TokenStreams
from rlvr.errors import CheckpointError

FOLDER = "reference"


class ReferenceModel:
    """A model without gradient; `net` is what a forward calls.

    Replicated over the ranks, but partitioned like the policy under ZeRO-3 (where it would not fit otherwise).
    """

    def __init__(self, spec: PolicySpec, device: torch.device) -> None:
        self._spec, self._device = spec, device
        self.net: Any = _load(spec, device)
        # A moving average in bfloat16 stands still as soon as a step is less than half a unit in the last place.
        rough = spec.reference_update == "average" and spec.dtype == "bfloat16"
        self._average = {name: _host(p).float() for name, p in self._parameters()} if rough else None

    @property
    def model(self) -> nn.Module:
        """The Hugging Face model (its parameters are shards under ZeRO-3)."""
        return (self.net if isinstance(self.net, TokenStreams) else self.net.module).lm

    @torch.no_grad()
    def follow(self, policy: nn.Module, *, alpha: float) -> None:
        """ref <- alpha * policy + (1 - alpha) * ref; with `alpha` 1 a copy, bit for bit, of the weights served.

        In bfloat16 a moving average is kept in float32 on the host, and what the forward sees is rounded from it.
        """
        for (name, mine), theirs in zip(self._parameters(), policy.parameters(), strict=True):
            if self._average is not None:
                self._average[name].lerp_(_host(theirs).float(), alpha)
                _put(mine, self._average[name])
            elif alpha == 1.0:
                _put(mine, local(theirs))
            else:
                _put(mine, local(mine).lerp(local(theirs), alpha))

    def save(self, path: Path) -> None:
        """Write this rank's weights below `path/reference` (one file for all ranks where they are replicas)."""
        if self._spec.zero_stage == 3 or self._spec.rank == 0:
            _write(self._file(path), self._average or {name: _host(p) for name, p in self._parameters()})
        if self._spec.world_size > 1:
            torch.distributed.barrier()  # nobody reads what is not there yet

    @torch.no_grad()
    def restore(self, path: Path) -> None:
        """Inverse of `save`, bit for bit. Raises CheckpointError where the file is missing or of another model."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = self._file(path)
        try:
            weights = load_file(file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}. Resume from an earlier checkpoint.") from error
        expected = {name: local(p).shape for name, p in self._parameters()}
        if {name: w.shape for name, w in weights.items()} != expected:
            raise CheckpointError(f"{file} holds other parameters than the model. Resume from an earlier checkpoint.")
        for name, p in self._parameters():
            _put(p, weights[name])
        if self._average is not None:
            self._average = weights

    def to(self, device: torch.device | str) -> None:
        """Colocation: move replicated weights; a partitioned reference stays (see `deepspeed.zero_optimization`)."""
        if isinstance(self.net, TokenStreams):
            self.net.to(device)

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Tied weights appear once."""
        return self.model.named_parameters()

    def _file(self, path: Path) -> Path:
        return path / FOLDER / f"rank-{self._spec.rank if self._spec.zero_stage == 3 else 0}.safetensors"


def _load(spec: PolicySpec, device: torch.device) -> Any:
    import deepspeed

    config = ds_config(spec)
    model = load_model(spec, spec.model_path, config).requires_grad_(False).eval()
    if spec.zero_stage < 3:
        return model.to(device)
    zero = {"stage": 3} | {k: v for k, v in config["zero_optimization"].items() if k == "offload_param"}
    frozen = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, "steps_per_print": 2**31}
    if "bf16" in config:
        frozen["bf16"] = {"enabled": True}
    engine, *_ = deepspeed.initialize(model=model, config=frozen)
    engine.eval()
    return engine


def _write(file: Path, weights: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, file)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{file} cannot be written: {error}. Free some space and resume the run.") from error


def _host(p: nn.Parameter) -> torch.Tensor:
    return local(p).detach().to("cpu", copy=True)


def _put(p: Any, values: torch.Tensor) -> None:
    if is_sharded(p):
        p.partition()  # a small parameter may be kept whole between uses: the next use gathers it anew
    local(p).copy_(values)
