"""The trainer's side of weight transfer: what is sent, in lockstep, under every ZeRO stage, and what it leaves."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import nn

from rlvr.engine import weight_sync_send
from rlvr.engine.weight_sync_send import FanoutClient, ShmSender, VllmSender, buckets, limited, vllm_source
from rlvr.engine.weight_sync_source import DeepSpeedWeightSource, layer_groups
from rlvr.errors import EngineError
from tests.engines import sync_ranks
from tests.engines.sync_ranks import FileReader
from tests.engines.tiny import tiny_model


def module() -> nn.Module:
    """Five fp32 tensors, one of them tied: 4, 4, 8, 8 and 4 numbers."""
    net = nn.Module()
    net.embed = nn.Linear(2, 2, bias=False)
    net.layers = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(4, 2, bias=False), nn.Linear(4, 2, bias=False)])
    net.norm = nn.Linear(4, 1, bias=False)
    net.head = nn.Linear(2, 2, bias=False)
    net.head.weight = net.embed.weight
    return net


def source(dtype: torch.dtype = torch.float32) -> DeepSpeedWeightSource:
    return DeepSpeedWeightSource(module(), zero_stage=0, dtype=dtype)


NAMES = ["embed.weight", "layers.0.weight", "layers.1.weight", "layers.2.weight", "norm.weight"]


def test_source_tells_what_it_yields_ties_once_and_casts() -> None:
    weights = source(torch.bfloat16)
    told = [(m.name, m.dtype, m.shape) for m in weights.metadata()]
    for _ in range(2):  # every pass is fresh
        assert told == [(n, t.dtype, tuple(t.shape)) for n, t in weights]
    assert [name for name, *_ in told] == NAMES
    assert {dtype for _, dtype, _ in told} == {torch.bfloat16}


def test_groups_are_layers() -> None:
    groups = layer_groups(dict(module().named_parameters()))
    assert [list(g) for g in groups] == [[name] for name in NAMES]
    experts = {f"model.layers.{i}.mlp.experts.{e}.w": nn.Parameter(torch.zeros(1)) for i in range(2) for e in range(3)}
    assert [len(g) for g in layer_groups(experts)] == [3, 3]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(10_000, [5]), (32, [2, 1, 1, 1]), (31, [1, 1, 1, 1, 1]), (48, [2, 1, 2]), (1, [1, 1, 1, 1, 1])],
)
def test_buckets_hold_at_most_their_limit(limit: int, expected: list[int]) -> None:
    parts = list(buckets(source(), limit=limit))
    assert [len(part) for part in parts] == expected
    assert [name for part in parts for name in part] == NAMES


def test_files_are_gone_after_a_push_and_the_folder_after_close(tmp_path: Path) -> None:
    sender = ShmSender(source(), rank=0, run_id="a/b c", root=tmp_path)
    reader = FileReader()
    sender.send(reader)
    assert sorted(reader.tensors) == NAMES
    assert sender.folder.name.startswith("rlvr-a_b_c-") and sender.folder.stat().st_mode & 0o77 == 0
    assert list(sender.folder.iterdir()) == []
    with pytest.raises(EngineError, match="gone"):
        sender.send(FileReader(fail="receive"))
    assert list(sender.folder.iterdir()) == []
    sender.close()
    sender.close()
    assert list(tmp_path.iterdir()) == []


def test_full_shared_memory_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sender = ShmSender(source(), rank=0, run_id="full", root=tmp_path)
    usage = namedtuple("usage", "total used free")(200, 150, 50)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(weight_sync_send, "BUCKET_BYTES", 64)
    reader = FileReader()
    with pytest.raises(EngineError, match=r"MB of weights do not fit into .*--shm-size"):
        sender.send(reader)
    assert reader.calls == []
    sender.close()


def test_what_a_killed_run_left_is_removed_and_a_living_one_kept(tmp_path: Path) -> None:
    living = ShmSender(source(), rank=0, run_id="living", root=tmp_path)
    child = f"""
        import time
        from pathlib import Path
        from tests.engines.test_weight_sync import ShmSender, source
        sender = ShmSender(source(), rank=0, run_id="killed", root=Path({str(tmp_path)!r}))
        (sender.folder / "weights.safetensors").write_bytes(b"x" * 1000)
        print("ready", flush=True)
        time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(child)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    first = ShmSender(source(), rank=0, run_id="first", root=tmp_path)
    assert len(list(tmp_path.glob("rlvr-killed-*"))) == 1, "it was still alive"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)
    second = ShmSender(source(), rank=0, run_id="second", root=tmp_path)
    assert sorted(f.name.split("-")[1] for f in tmp_path.iterdir()) == ["first", "living", "second"]
    for sender in (living, first, second):
        sender.close()


def test_two_deepspeed_ranks_send_in_lockstep_and_fail_together(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, layers=2, width=32)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = torch.multiprocessing.spawn(
        sync_ranks.push_and_fail, (str(model), port, (2, 3)), nprocs=sync_ranks.RANKS, join=False
    )
    ended = ranks.join(timeout=200) or ranks.join(timeout=20)  # None: one ended, wait for the other
    for process in ranks.processes:
        process.kill()
    assert ended, "the ranks wait for each other"


# ---- vLLM's own transports: what can be said without a GPU


def test_nccl_group_is_the_sender_and_every_worker() -> None:
    sender = VllmSender(source(), transport="nccl", rank=0, sampler_world=6, limit=5)
    info = sender.init_info()
    assert (info.backend, info.rank, info.world_size, info.packed) == ("nccl", 0, 7, True)  # type: ignore[attr-defined]
    assert 0 < info.master_port < 65536 and info.master_address  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match="not joined"):
        sender.send(FileReader())


def test_ipc_packs() -> None:
    info = VllmSender(source(), transport="ipc", rank=1, sampler_world=2, limit=5).init_info()
    assert (info.backend, info.rank, info.packed, info.is_sender) == ("ipc", 1, True, False)  # type: ignore[attr-defined]


def test_ranks_without_a_client_only_iterate() -> None:
    """The sender engine of vLLM on a rank other than 0: no rendezvous, no call, the whole source."""
    weights = source()
    sender = VllmSender(weights, transport="nccl", rank=1, sampler_world=2, limit=5)
    sender.join(None)
    sender.send(None)
    assert list(weights._pass) == []
    sender.close()


def test_client_reaches_every_replica_and_leaves_start_and_finish_to_the_push() -> None:
    from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient

    client = FanoutClient()
    assert isinstance(client, VLLMWeightSyncClient)
    with pytest.raises(EngineError, match="receive outside of rank 0"):
        client.update_weights({})
    reader = client.fanout = FileReader(fail="receive")
    client.init_weight_transfer_engine({"world_size": 3})
    client.start_weight_update()
    client.finish_weight_update("4")
    assert reader.calls == ["init_transfer"]
    with pytest.raises(EngineError, match="gone"):
        client.update_weights({"names": []})


def test_adapter_is_a_weight_source_of_vllm() -> None:
    from vllm.distributed.weight_transfer.base import WeightSource

    adapter = vllm_source(source())
    assert isinstance(adapter, WeightSource)
    assert [m.name for m in adapter.metadata()] == [name for name, _ in adapter] == NAMES
    assert [names for names, _ in adapter.iter_groups()] == [[n] for n in NAMES]


def test_limited_gives_up_and_passes_errors_on() -> None:
    assert limited(lambda: 3, limit=5, what="counting") == 3
    with pytest.raises(ValueError, match="inner"):
        limited(lambda: (_ for _ in ()).throw(ValueError("inner")), limit=5, what="raising")
    started = time.monotonic()
    with pytest.raises(EngineError, match=r"meeting was not finished within 0\.1 s \(limits.push\)"):
        limited(lambda: time.sleep(2), limit=0.1, what="meeting")
    assert time.monotonic() - started < 1.5


def test_a_transfer_beyond_its_limit_is_aborted() -> None:
    """NCCL's own wait has no end: at the limit the communicator is destroyed, and the push fails."""

    class Stuck:
        aborted = False

        def shutdown(self) -> None:
            self.aborted = True

        def send_weights(self) -> None:
            while not self.aborted:
                time.sleep(0.01)

    sender = VllmSender(source(), transport="nccl", rank=0, sampler_world=1, limit=0.2)
    sender._engine = stuck = Stuck()  # type: ignore[assignment]
    with pytest.raises(EngineError, match=r"the transfer \(nccl\) was not finished within 0\.2 s"):
        sender.send(FileReader())
    assert stuck.aborted and sender._engine is None
