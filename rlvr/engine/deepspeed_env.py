"""The environment of a DeepSpeed rank; imports nothing, so that it can be set before torch is imported."""

from __future__ import annotations


def environment(device: str, *, threads: int) -> dict[str, str]:
    """Environment variables of a process that holds a `RankPolicy`; set them before torch is imported."""
    common = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(threads)}
    if device == "gpu":
        return common
    # Idle OpenMP threads must not spin against the sampler on the same cores; but with no spinning at all two
    # threads train a small model no faster than one (0.18 s a step; 0.075 s when they spin for some microseconds).
    return common | {"DS_ACCELERATOR": "cpu", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "5000", "LOCAL_RANK": "0"}
