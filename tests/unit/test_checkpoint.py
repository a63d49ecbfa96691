from __future__ import annotations

import asyncio
import errno
import json
from pathlib import Path

import pytest

from rlvr import checkpoint
from rlvr.errors import CheckpointError


async def write_policy(path: Path) -> None:
    (path / "weights.bin").write_bytes(b"w" * 1000)


def saved(folder: Path, step: int) -> Path:
    state, buffer = {"update": 4 * step}, {"next_draw": 7}
    partial = checkpoint.write(folder, step=step, state=state, buffer=buffer, policy=write_policy)
    return checkpoint.commit(asyncio.run(partial))


def test_round_trip(tmp_path: Path) -> None:
    path = saved(tmp_path, 3)
    loaded = checkpoint.load(path)
    assert (loaded.step, loaded.state["update"], loaded.buffer["next_draw"]) == (3, 12, 7)
    assert (loaded.policy / "weights.bin").stat().st_size == 1000
    assert checkpoint.newest(tmp_path) == path


def test_bytes_of_a_state_stand_in_a_file_of_their_own(tmp_path: Path) -> None:
    state = {"addons": {"a": {"x": b"\x00\xff\n", "y": [b"", (b"one", 2.5)], "z": {"n": None}}}, "empty": {}}
    partial = checkpoint.write(tmp_path, step=1, state=state, buffer={}, policy=write_policy)
    path = checkpoint.commit(asyncio.run(partial))
    assert (path / "state.bin").read_bytes() == b"\x00\xff\none"
    loaded = checkpoint.load(path).state
    assert loaded["addons"] == {"a": {"x": b"\x00\xff\n", "y": [b"", [b"one", 2.5]], "z": {"n": None}}}
    assert loaded["empty"] == {}


@pytest.mark.parametrize(
    ("name", "harm", "says"),
    [
        ("policy/weights.bin", lambda p: p.unlink(), "policy/weights.bin is missing"),
        ("policy/weights.bin", lambda p: p.write_bytes(b"x" * 1000), "sha256 of policy/weights.bin"),
        ("buffer.pkl", lambda p: p.write_bytes(b"short"), "buffer.pkl has 5 bytes, expected"),
        ("state.bin", lambda p: p.write_bytes(b"long"), "state.bin has 4 bytes, expected"),
        ("manifest.json", lambda p: p.unlink(), "manifest.json is missing"),
        ("manifest.json", lambda p: p.write_text("{"), "manifest.json is not JSON"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, harm: object, says: str) -> None:
    path = saved(tmp_path, 1)
    harm(path / name)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=says):
        checkpoint.load(path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, 1)
    state = json.loads((path / "state.json").read_text()) | {"format": 0}
    (path / "state.json").write_text(json.dumps(state))
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["state.json"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="has format 0, this version of rlvr reads format 2"):
        checkpoint.load(path)


def test_a_full_disk_keeps_the_older_one(tmp_path: Path) -> None:
    older = saved(tmp_path, 1)

    async def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match=r"No space left on device.*free some space"):
        asyncio.run(checkpoint.write(tmp_path, step=2, state={}, buffer={}, policy=full))
    assert checkpoint.newest(tmp_path) == older
    assert not list(tmp_path.glob(".step*"))


def test_an_interrupted_save_is_invisible_and_cleaned(tmp_path: Path) -> None:
    older = saved(tmp_path, 1)
    (tmp_path / ".step-000002.partial" / "policy").mkdir(parents=True)
    assert checkpoint.newest(tmp_path) == older
    checkpoint.clean(tmp_path)
    assert not list(tmp_path.glob(".step*"))


def test_prune_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        saved(tmp_path, step)
    checkpoint.prune(tmp_path, keep=2, best=1)
    assert checkpoint.steps(tmp_path) == [1, 3, 4]
