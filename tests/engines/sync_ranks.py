"""What two DeepSpeed ranks do in test_weight_sync.py; every function runs in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RANKS = 2


class FileReader:
    """A fanout without samplers: reads what the trainer sends. `fail` names the method that breaks."""

    def __init__(self, fail: str | None = None) -> None:
        self.fail = fail
        self.calls: list[str] = []
        self.tensors: dict[str, torch.Tensor] = {}

    def start(self, method: str, *args: Any) -> Callable[[], list[Any]]:
        from safetensors.torch import load_file

        from rlvr.errors import EngineError

        self.calls.append(method)

        def wait() -> list[Any]:
            if method == self.fail:
                raise EngineError(f"sampler replica 1, {method}: gone")
            if method == "receive":
                self.tensors |= load_file(args[0]["path"])
            return [None]

        return wait


def push_and_fail(rank: int, model: str, port: int, stages: tuple[int, ...]) -> None:
    """Push under each ZeRO stage and compare with the model's own tensors; then a push that fails on rank 0."""
    import deepspeed
    from transformers import AutoModelForCausalLM

    from rlvr.engine import weight_sync_send
    from rlvr.engine.deepspeed_setup import PolicySpec, join
    from rlvr.engine.weight_sync import TrainerSide
    from rlvr.errors import EngineError

    join(PolicySpec(model_path=model, rank=rank, world_size=RANKS, master_port=port, limit=60))
    weight_sync_send.BUCKET_BYTES = 10_000  # several buckets
    for stage in stages:
        module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        expected = {name: p.detach().clone() for name, p in module.named_parameters()}
        config = {
            "train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
        }  # fmt: skip
        engine, *_ = deepspeed.initialize(model=module, optimizer=torch.optim.AdamW(module.parameters()), config=config)
        side = TrainerSide(
            engine.module, zero_stage=stage, dtype="bfloat16", rank=rank, world_size=RANKS, transport="shm",
            run_id=f"zero{stage}", device="cpu", replicas=2, replica_world=1, limit=30,
        )  # fmt: skip
        reader = FileReader()
        metrics = side.push(1, reader)
        assert metrics["sync/bytes"] == 2 * sum(p.numel() for p in expected.values())
        if rank == 0:
            assert reader.calls.count("receive") > 3 and reader.calls[-2:] == ["finish_update", "resume"]
            assert sorted(reader.tensors) == sorted(expected)
            assert all(torch.equal(reader.tensors[n], p.bfloat16()) for n, p in expected.items())
        for method in ("begin_update", "receive", "finish_update"):
            broken = FileReader(fail=method)
            try:
                side.push(2, broken)
            except EngineError as error:
                assert f"replica 1, {method}: gone" in str(error)
            else:
                raise AssertionError(f"rank {rank} did not notice that {method} failed")
            assert broken.calls == [] if rank else broken.calls[-1] == "resume"
        side.close()
    assert rank or not list(Path("/dev/shm").glob("rlvr-zero*"))
