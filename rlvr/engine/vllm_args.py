"""What a vLLM replica is started with: environment variables and engine arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Literal

from rlvr.errors import ConfigError

Transport = Literal["shm", "nccl", "ipc"]

# Keys of the recipe's `vllm:` block that other recipe keys decide, and who decides them.
OWNED = {
    "model": "model.path",
    "tokenizer": "model.path",
    "revision": "model.revision",
    "dtype": "model.dtype",
    "trust_remote_code": "model.trust_remote_code",
    "seed": "seed",
    "max_model_len": "prompt.max_tokens and sampling.max_tokens",
    "tensor_parallel_size": "resources.tensor_parallel",
    "enable_sleep_mode": "resources.colocate",
    "logprobs_mode": "nothing: behaviour log-probs are always those of the sampled distribution",
    "weight_transfer_config": "resources",
    "worker_extension_cls": "resources",
}
CPU_OWNED = {"enable_chunked_prefill": "resources.device: the CPU engine dies on a chunked seeded request"}
MIN_BATCHED_TOKENS = 8192
ANNEALED = "rlvr.engine.vllm_annealing:Annealed"  # touches no request that does not ask for it
GIB = 1 << 30


def environment(device: str, *, threads: int, eager: bool = True) -> dict[str, str]:
    """Environment variables of the process that holds a `VllmSampler`; set them before vLLM is imported.

    `device` is "cpu" or "gpu", `threads` the OpenMP threads of the replica, `eager` the CPU's `vllm.enforce_eager`.
    """
    common = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the worker lives in the engine's process: one process less
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
    }
    if device == "gpu":
        # The V1 runner is the one whose logits processors were proved.
        return common | {"VLLM_USE_V2_MODEL_RUNNER": "0"}
    return common | {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # trainer and sampler share the cores
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",  # idle threads would spin against the other process
        "GOMP_SPINCOUNT": "5000",  # but a few microseconds: with none, two threads are no faster than one
        "CUDA_VISIBLE_DEVICES": "",
        # vLLM compiles a few helpers of its sampler even in eager mode: seconds of a C++ compiler, no gain on a CPU.
        "TORCHDYNAMO_DISABLE": str(int(eager)),
    }


def engine_arguments(
    *,
    model_path: str,
    revision: str | None,
    dtype: str,
    device: str,
    max_len: int,
    tensor_parallel: int,
    seed: int,
    transport: Transport,
    worker_extension: str,
    trust_remote_code: bool,
    overrides: Mapping[str, Any],
) -> dict[str, Any]:
    """Arguments for `AsyncEngineArgs`; `overrides` is the recipe's `vllm:` block, verbatim.

    Raises `ConfigError` for a key that is unknown to the installed vLLM or that another recipe key decides.
    """
    check_overrides(overrides, device=device)
    owned = {
        "model": model_path,
        "revision": revision,
        "tokenizer_revision": revision,
        "dtype": dtype,
        "seed": seed,
        "max_model_len": max_len,
        "tensor_parallel_size": tensor_parallel,
        "trust_remote_code": trust_remote_code,
        "logprobs_mode": "processed_logprobs",
        "weight_transfer_config": {"backend": transport},
        "worker_extension_cls": worker_extension,
        "enable_sleep_mode": transport == "ipc",
    }
    if not overrides.get("speculative_config"):  # vLLM refuses logits processors beside it
        owned["logits_processors"] = [*(overrides.get("logits_processors") or ()), ANNEALED]
    if device == "gpu":
        return {"disable_log_stats": True, **overrides, **owned}
    # A seeded request whose prefill is chunked kills the CPU engine, so every waiting prompt must fit one step.
    batched = max(int(overrides.get("max_num_batched_tokens") or 0), max_len, MIN_BATCHED_TOKENS)
    owned |= {"enable_chunked_prefill": False, "max_num_batched_tokens": batched}
    defaults = {"enforce_eager": True, "kv_cache_memory_bytes": GIB, "disable_log_stats": True}
    return {**defaults, **overrides, **owned}


def check_overrides(overrides: Mapping[str, Any], *, device: str) -> None:
    """Raise `ConfigError` with every key of the `vllm:` block that cannot be there."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    owned = OWNED | (CPU_OWNED if device == "cpu" else {})
    known = {f.name for f in fields(AsyncEngineArgs)}
    problems = []
    for key in overrides:
        if key in owned:
            problems.append(f"vllm.{key}: cannot be set here, it is decided by {owned[key]}; remove the line")
        elif key not in known:
            close = get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            problems.append(f"vllm.{key}: not an argument of the installed vLLM{hint}")
    if problems:
        raise ConfigError(problems)
