"""Engine arguments: whose key is whose."""

from __future__ import annotations

from typing import Any

import pytest

from rlvr.engine.vllm_args import ANNEALED, engine_arguments, environment
from rlvr.engine.vllm_sampler import _batches
from rlvr.errors import ConfigError


def arguments(device: str = "cpu", max_len: int = 512, **overrides: Any) -> dict[str, Any]:
    return engine_arguments(
        model_path="m", revision=None, dtype="float32", device=device, max_len=max_len, tensor_parallel=2, seed=3,
        transport="shm" if device == "cpu" else "ipc", worker_extension="a.B", trust_remote_code=False,
        overrides=overrides,
    )  # fmt: skip


def test_cpu_never_chunks_a_prefill() -> None:
    for kwargs, batched in (({}, 8192), ({"max_len": 10_000}, 10_000), ({"max_num_batched_tokens": 9000}, 9000)):
        made = arguments(**kwargs)
        assert made["enable_chunked_prefill"] is False and made["max_num_batched_tokens"] == batched
    assert arguments(max_num_batched_tokens=100)["max_num_batched_tokens"] == 8192
    assert "enable_chunked_prefill" not in arguments("gpu")


def test_the_recipe_wins_but_for_keys_we_own() -> None:
    made = arguments(block_size=32, kv_cache_memory_bytes=7, max_num_seqs=9)
    assert (made["block_size"], made["kv_cache_memory_bytes"], made["max_num_seqs"]) == (32, 7, 9)
    assert arguments("gpu", enable_chunked_prefill=False)["enable_chunked_prefill"] is False
    assert arguments("gpu")["enable_sleep_mode"] is True


def test_the_annealing_is_there_unless_vllm_would_refuse_it() -> None:
    assert arguments("gpu")["logits_processors"] == arguments()["logits_processors"] == [ANNEALED]
    assert arguments(logits_processors=["a:B"])["logits_processors"] == ["a:B", ANNEALED]
    assert "logits_processors" not in arguments(speculative_config={"method": "ngram"})


def test_every_bad_key_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        arguments(dtype="half", gpu_memory_utilisation=0.5, enable_chunked_prefill=True, seed=1)
    text = str(raised.value)
    assert len(raised.value.problems) == 4
    assert "vllm.dtype: cannot be set here, it is decided by model.dtype" in text
    assert "did you mean gpu_memory_utilization?" in text
    assert "resources.device" in text


def test_environment_of_both_devices() -> None:
    cpu, gpu = environment("cpu", threads=2), environment("gpu", threads=2)
    assert cpu["OMP_NUM_THREADS"] == "2" and cpu["OMP_WAIT_POLICY"] == "passive"
    assert cpu["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert cpu["TORCHDYNAMO_DISABLE"] == "1"
    assert environment("cpu", threads=2, eager=False)["TORCHDYNAMO_DISABLE"] == "0"
    assert gpu["VLLM_USE_V2_MODEL_RUNNER"] == "0" and "CUDA_VISIBLE_DEVICES" not in gpu
    assert cpu["VLLM_ENABLE_V1_MULTIPROCESSING"] == gpu["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_scoring_is_split_by_tokens() -> None:
    import numpy as np

    sequences = [np.zeros(n, np.int32) for n in (3, 3, 3, 20, 1, 9)]
    assert [[len(s) for s in batch] for batch in _batches(sequences, limit=10)] == [[3, 3, 3], [20], [1, 9]]
