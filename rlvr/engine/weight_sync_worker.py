"""The receiving end of weight transfer: what a vLLM worker imports (`worker_extension_cls`).

Importing this module registers the transport "shm": a `WeightTransferEngine` that reads safetensors files which
the trainer wrote to shared memory. It is the CPU counterpart of vLLM's own "nccl" and "ipc".
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_worker import Worker
else:
    Worker = object


@dataclass
class ShmInitInfo(WeightTransferInitInfo):
    """Nothing has to be agreed beforehand: every payload names its file."""


@dataclass
class ShmUpdateInfo(WeightTransferUpdateInfo):
    """One bucket of weights, in checkpoint names."""

    path: str


class ShmEngine(WeightTransferEngine[ShmInitInfo, ShmUpdateInfo]):
    """Loads buckets of weights from safetensors files on this machine."""

    init_info_cls = ShmInitInfo
    update_info_cls = ShmUpdateInfo

    def init_transfer_engine(self, init_info: ShmInitInfo) -> None:
        """Nothing to do."""

    def start_weight_update(self) -> None:
        """Prepare the layers to be loaded one by one."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: ShmUpdateInfo) -> None:
        """Load one bucket."""
        load_weights: Callable[..., object] = self.model.load_weights  # type: ignore[assignment]
        load_weights(load_file(update_info.path).items())

    def finish_weight_update(self) -> None:
        """Finish the layers, then cure the tied ones."""
        finalize_layerwise_reload(self.model, self.model_config)
        repack_tied(self.model)

    def shutdown(self) -> None:
        """Nothing is held."""


def repack_tied(model: torch.nn.Module) -> int:
    """Pack anew every layer whose weight is the tensor of another layer; the number of layers packed.

    The CPU backend keeps a packed copy of each matrix. A tied `lm_head` is never loaded itself, so after an update
    its copy would still be the old embedding and log-probabilities would be wrong without any error.
    """
    first: dict[int, torch.nn.Module] = {}
    packed = 0
    for layer in model.modules():
        weight = layer._parameters.get("weight")
        if weight is None or first.setdefault(id(weight), layer) is layer:
            continue
        for tied in (first[id(weight)], layer):
            method = tied._modules.get("quant_method", tied.__dict__.get("quant_method"))
            if isinstance(method, QuantizeMethodBase):
                method.process_weights_after_loading(tied)
                packed += 1
    return packed


class WorkerExtension(Worker):
    """Methods added to every vLLM worker, reached by `collective_rpc`."""

    def receive_pickled(self, payload: bytes) -> None:
        """`update_weights` for payloads that vLLM's message format cannot carry (CUDA IPC handles)."""
        self.update_weights(pickle.loads(payload))

    def abandon_update(self) -> None:
        """End an update that failed half way, so that the next one starts clean."""
        model = self.model_runner.get_model()
        finalize_layerwise_reload(model, self.model_config)
        if self.weight_transfer_engine is not None:
            self.weight_transfer_engine.reset_weight_update_target()
        self._weight_update_active = False


def _quiet(record: logging.LogRecord) -> bool:
    """Every update would warn that a tied head was not loaded; `repack_tied` takes care of it."""
    return "Failed to load weights" not in record.msg or record.args != ("ParallelLMHead",)


def register() -> None:
    """Make the transport "shm" known to vLLM in this process."""
    if "shm" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("shm", ShmEngine)
    logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").addFilter(_quiet)


register()
