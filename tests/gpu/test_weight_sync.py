"""vLLM's own transports on real devices: ipc with the trainer on the same GPU, nccl between two."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from rlvr.engine.handshake import handshake, random_sequences
from rlvr.errors import HandshakeError
from tests.engines.vllm_helpers import BLOCK, Scored, TorchPolicy, requests, running

SEQUENCES = random_sequences(4, length=2 * BLOCK + 5, vocab=128, seed=0)
TOLERANCE = 5e-2


def shake(policy: TorchPolicy, scored: Scored) -> dict[str, float]:
    return asyncio.run(handshake(policy, policy, [scored], tolerance=TOLERANCE, sequences=SEQUENCES, version=1, seed=0))


@pytest.mark.parametrize("tied", [True, False])
def test_ipc_with_sleep_and_wake(tmp_path: Path, tied: bool) -> None:
    with running(tmp_path, tied=tied, dtype="bfloat16", device="gpu", transport="ipc") as replica:
        policy = TorchPolicy(replica.model, [replica], dtype="bfloat16", device="gpu", transport="ipc")
        assert shake(policy, Scored(replica))["handshake/moved"] >= 10 * TOLERANCE
        replica.do(replica.sampler.sleep())
        replica.do(replica.sampler.wake(["weights"]))
        policy.side.push(2, policy.fanout)
        replica.do(replica.sampler.wake(["kv_cache"]))
        completions = replica.do(replica.sampler.generate(requests(64, key="awake")))
        assert {v for c in completions for v in c.versions.tolist()} == {2}
        shake(policy, Scored(replica))
        policy.skip = True
        with pytest.raises(HandshakeError):
            shake(policy, Scored(replica))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="nccl needs a GPU for the trainer and one for the sampler")
def test_nccl_between_two_devices_and_a_replica_that_joins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.cuda.set_device(0)
    torch.zeros(1, device="cuda")  # this process keeps device 0; the engine's process sees device 1 alone
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "1")
    with running(tmp_path, tied=True, dtype="bfloat16", device="gpu", transport="nccl") as replica:
        policy = TorchPolicy(replica.model, [replica], dtype="bfloat16", device="gpu", transport="nccl")
        assert shake(policy, Scored(replica))["handshake/moved"] >= 10 * TOLERANCE
        policy.side.reset()  # as after a replica was started anew
        shake(policy, Scored(replica))
        call = replica.submit(replica.sampler.generate(requests(16, key="flight", max_tokens=400)))
        policy.side.push(3, policy.fanout)
        versions = [c.versions for c in call.result(timeout=120)]
        assert all((np.diff(v) >= 0).all() and set(v.tolist()) <= {1, 3} for v in versions)
        policy.side.close()
