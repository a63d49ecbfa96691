"""What a DeepSpeed rank is built from: environment, configuration, process group, model, optimizer.

Gradients of several micro-batches must *add*. DeepSpeed divides by its own accumulation count and averages over
ranks, so: accumulation 1, "managed" accumulation off (every `engine.step()` is the boundary, however many
backward passes came before), and the caller multiplies its loss by the number of ranks.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import torch

from rlvr.engine.forward import TokenStreams
from rlvr.errors import ConfigError, EngineError
from rlvr.recipe import KL, AddOnSpec, Objective, Optimizer

OWNED = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
    "managed_gradient_accumulation", "gradient_clipping", "optimizer", "scheduler", "fp16", "bf16",
)  # fmt: skip
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # environment of a rank
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class PolicySpec:
    """All that one rank needs; picklable. Every rank gets the same but for `rank`."""

    model_path: str  # Hub name or folder
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False
    revision: str | None = None
    device: Literal["cpu", "gpu"] = "cpu"
    optimizer: Optimizer = field(default_factory=Optimizer)
    deepspeed: Mapping[str, Any] = field(default_factory=dict)  # the recipe's block
    objective: Objective = field(default_factory=lambda: Objective.model_validate({}))
    kl: KL = field(default_factory=KL)
    addons: tuple[AddOnSpec, ...] = ()
    project: str = "."
    reference: bool = False  # load a second, frozen copy of the model
    reference_update: Literal["never", "every", "plateau", "average"] = "never"  # `reference.update` of the recipe
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = 0
    threads: int = 1  # CPU threads of this rank
    limit: float = 1800.0  # seconds that a collective may take

    @property
    def zero_stage(self) -> int:
        """`deepspeed.zero_optimization.stage`, 0 when the recipe says nothing; at least 1 in bfloat16.

        DeepSpeed's own bfloat16 without ZeRO accumulates and measures gradients in bfloat16.
        """
        asked = int(dict(self.deepspeed.get("zero_optimization", {})).get("stage", 0))
        return max(asked, 1) if self.dtype == "bfloat16" else asked


def ds_config(spec: PolicySpec) -> dict[str, Any]:
    """The recipe's block with our own keys added.

    Raises ConfigError where the block sets a key that we own.
    """
    config = copy.deepcopy(dict(spec.deepspeed))
    taken = [f"deepspeed.{k}: set by rlvr (see `optimizer:`, `resources:`); remove it" for k in OWNED if k in config]
    if taken:
        raise ConfigError(taken)
    zero = config.setdefault("zero_optimization", {})
    zero["stage"] = spec.zero_stage
    if spec.zero_stage < 2:
        zero["overlap_comm"] = False  # needs partitioned gradients when the caller owns the boundary
    config |= {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": spec.optimizer.max_norm if spec.zero_stage else 0.0,  # else: FiniteStep clips
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,  # torch's own AdamW
        "zero_force_ds_cpu_optimizer": False,
    }
    if spec.dtype == "bfloat16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        config.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
    return config


def join(spec: PolicySpec) -> None:
    """Enter the process group (once per process) and set this rank's threads."""
    place = (spec.rank, spec.world_size, 0, spec.master_addr, spec.master_port or free_port())
    os.environ |= dict(zip(PLACE, map(str, place), strict=True))
    if spec.device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel("ERROR")
    torch.set_num_threads(spec.threads)
    if torch.distributed.is_initialized():
        return
    # An op of inference alone; without this the first start compiles it (half a minute, needs a compiler).
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="gloo" if spec.device == "cpu" else "nccl",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timedelta(seconds=spec.limit),
        rank=spec.rank,
        world_size=spec.world_size,
    )


def leave() -> None:
    """Leave the process group and forget this rank's place, so that processes started later do not inherit it."""
    import deepspeed

    if torch.distributed.is_initialized():
        deepspeed.comm.destroy_process_group()
    for name in PLACE:
        os.environ.pop(name, None)


def free_port() -> int:
    """A TCP port that nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def load_model(spec: PolicySpec, path: str, config: Mapping[str, Any]) -> TokenStreams:
    """A causal LM as `TokenStreams`. With ZeRO-3 it is partitioned while it is read: no rank holds all of it.
    Raises EngineError where there is no such model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.integrations.deepspeed import HfDeepSpeedConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    partitioned = HfDeepSpeedConfig(dict(config)) if spec.zero_stage == 3 else None
    try:
        where = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
        still = _without_dropout(AutoConfig.from_pretrained(path, **where))
        lm = AutoModelForCausalLM.from_pretrained(path, config=still, dtype=DTYPES[spec.dtype], **where)
    except (OSError, ValueError) as error:
        raise EngineError(
            f"model {path!r} cannot be loaded: {error}\nExpected a Hub name, a Hugging Face folder or `runs/NAME`."
        ) from error
    finally:
        del partitioned  # transformers partitions for as long as this object lives
    _exact_buffers(lm)
    return TokenStreams(lm)


def _without_dropout(config: Any) -> Any:
    """A sampler drops nothing, so a trainer that did would disagree with it, and differ from run to run."""
    for name, value in config.to_dict().items():
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def _exact_buffers(lm: Any) -> None:
    """Compute rotary frequencies and the like again, in float32.

    While a model is partitioned, DeepSpeed rounds every tensor that is made to the dtype of the weights. Frequencies
    that are 0.4 % off ruin long contexts, and no sampler rounds them.
    """
    for module in lm.modules():
        names = [n for n, b in module.named_buffers(recurse=False) if b.dtype == torch.bfloat16]
        if not names:
            continue
        for name in names:
            setattr(module, name, module.get_buffer(name).float())
        lm._init_weights(module)


def make_optimizer(spec: PolicySpec, module: torch.nn.Module) -> torch.optim.Optimizer:
    """torch's AdamW, fused (also on a CPU, where DeepSpeed's own would have to be compiled)."""
    o = spec.optimizer
    params = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.AdamW(params, lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay, fused=True)


def make_engine(spec: PolicySpec) -> Any:
    """A DeepSpeed engine around the policy."""
    import deepspeed

    config = ds_config(spec)
    model = load_model(spec, spec.model_path, config)
    if spec.gradient_checkpointing:
        model.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    engine, *_ = deepspeed.initialize(model=model, optimizer=make_optimizer(spec, model), config=config)
    return engine
