"""State of a DeepSpeed engine: saving, exporting, perturbing, moving between device and host.

Under ZeRO-3 a parameter is a shard; whatever needs it whole gathers one parameter at a time.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlvr.errors import CheckpointError
from rlvr.seeds import stable_seed

TAG, MODEL, IDENTITY = "deepspeed", "model", "identity.json"


class FiniteStep:
    """Global norm, clipping and the finite check for ZeRO-0, where DeepSpeed steps whatever the gradient is.

    Runs inside the optimizer's step, after DeepSpeed's all-reduce: gradients are the same on all ranks, and so
    is the decision. A parameter without gradient is skipped by the optimizer, state and step count included.
    """

    def __init__(self, engine: Any, max_norm: float) -> None:
        self.norm = 0.0
        self._params = [p for p in engine.module.parameters() if p.requires_grad]
        self._max_norm = max_norm
        engine.basic_optimizer.register_step_pre_hook(self._check)

    def _check(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.norm = float(nn.utils.clip_grad_norm_(self._params, self._max_norm))
        if not torch.isfinite(torch.tensor(self.norm)):
            for p in self._params:
                p.grad = None


def save(engine: Any, path: Path, identity: Mapping[str, Any]) -> None:
    """Write `path/deepspeed/` (all ranks) and `path/identity.json`. Raises CheckpointError when the disk refuses."""
    path.mkdir(parents=True, exist_ok=True)
    try:
        engine.save_checkpoint(str(path), tag=TAG, save_latest=False)
        if torch.distributed.get_rank() == 0:
            (path / IDENTITY).write_text(json.dumps(identity))
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as RuntimeError
        raise CheckpointError(f"{path} cannot be written: {error}. Free some space and resume the run.") from error


def restore(engine: Any, path: Path, identity: Mapping[str, Any]) -> None:
    """Inverse of `save`. Raises CheckpointError when incomplete, or made by other ranks, stage or dtype."""
    try:
        saved = json.loads((path / IDENTITY).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {IDENTITY} cannot be read ({error}); the checkpoint is incomplete") from error
    if saved != dict(identity):
        raise CheckpointError(
            f"{path} was written with {saved}, this run has {dict(identity)}. Resume with the same `deepspeed`, "
            "`resources.trainers` and `model.dtype`, or start a new run from its weights (`checkpoint.start_from`)."
        )
    try:
        loaded, _ = engine.load_checkpoint(str(path), tag=TAG, load_lr_scheduler_states=False)
    except (OSError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path / TAG} is damaged: {error}. Resume from an earlier checkpoint.") from error
    if loaded is None:
        raise CheckpointError(f"{path / TAG} is missing or incomplete. Resume from an earlier checkpoint.")


def export(lm: Any, path: Path, *, rank: int) -> None:
    """Write config and safetensors below `path`; every rank gathers, rank 0 writes."""
    weights = {}
    for name, p in lm.named_parameters():  # tied weights appear once
        with whole(p):
            if rank == 0:
                weights[name] = p.detach().to("cpu", copy=True)
    if rank == 0:
        try:
            lm.save_pretrained(path, state_dict=weights)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{path} cannot be written: {error}. Free some space and try again.") from error


@contextlib.contextmanager
def whole(p: nn.Parameter, *, write: bool = False) -> Iterator[None]:
    """`p` with its full data inside the block; with `write`, rank 0's changes are kept on all ranks."""
    if not is_sharded(p):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([p], modifier_rank=0 if write else None):
        yield


def is_sharded(p: nn.Parameter) -> bool:
    """Is `p` managed by ZeRO-3?"""
    return hasattr(p, "ds_id")


def weights(lm: nn.Module) -> list[torch.Tensor]:
    """Host copies of every parameter: this rank's shard under ZeRO-3."""
    return [local(p).detach().to("cpu", copy=True) for p in lm.parameters()]


def local(p: Any) -> torch.Tensor:
    """What this rank holds of `p`: its shard under ZeRO-3, else all of it."""
    return p.ds_tensor if is_sharded(p) else p


@torch.no_grad()
def perturb(lm: nn.Module, *, scale: float, seed: int) -> None:
    """See `RankPolicy.perturb`. The noise is drawn on the host, from (seed, place of the parameter)."""
    for place, p in enumerate(lm.parameters()):
        with whole(p, write=True):
            generator = torch.Generator().manual_seed(stable_seed(seed, "perturb", place))
            noise = torch.randn(p.shape, generator=generator).to(p.device)
            size = p.detach().float().square().mean().sqrt()
            p.copy_(p.float() + scale * size * noise)


@torch.no_grad()
def put_back(lm: nn.Module, before: list[torch.Tensor]) -> None:
    """Inverse of `perturb`, from `weights`."""
    parameters: list[Any] = list(lm.parameters())
    for p, old in zip(parameters, before, strict=True):
        if is_sharded(p):
            p.partition()  # a small parameter may be kept whole between uses: the next use gathers it anew
        local(p).copy_(old)


@torch.no_grad()
def forget(optimizer: torch.optim.Optimizer) -> None:
    """The optimizer as before its first step: moments and step counts 0. Master weights stay."""
    for values in optimizer.state.values():
        for value in values.values():
            if isinstance(value, torch.Tensor):
                value.zero_()


def offload(engine: Any, zero_stage: int) -> None:
    """Weights, master weights and optimizer state to the host; gradients are dropped."""
    if zero_stage == 0:
        _move(engine.module, engine.basic_optimizer, torch.device("cpu"))
    elif zero_stage < 3:
        engine.offload_states()
    else:
        engine.offload_states(include=_stage3_states())
        _move_stage3(engine.optimizer, torch.device("cpu"))
    torch.cuda.empty_cache()


def reload(engine: Any, zero_stage: int) -> None:
    """Inverse of `offload`."""
    device = torch.device(engine.device)
    if zero_stage == 0:
        _move(engine.module, engine.basic_optimizer, device)
        return
    engine.reload_states()
    if zero_stage == 3:
        _move_stage3(engine.optimizer, device)


def _move(module: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    module.to(device)
    _move_adam(optimizer, device)


def _move_adam(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    for values in optimizer.state.values():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                values[name] = value.to(device)


def _stage3_states() -> list[Any]:
    # DeepSpeed moves master weights and moments of its own FusedAdam alone; torch's are moved below.
    from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as State

    return [State.lp_params, State.lp_grads, State.contiguous_grad_buffer]


def _move_stage3(optimizer: Any, device: torch.device) -> None:
    for flat in optimizer.fp32_partitioned_groups_flat:
        flat.data = flat.data.to(device)
    _move_adam(optimizer.optimizer, device)
