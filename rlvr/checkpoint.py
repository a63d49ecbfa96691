"""Checkpoints: one atomic directory each, checked before it is trusted.

`checkpoints/step-000040/` holds `policy/` (what the engine wrote), `state.json`, `state.bin` (the bytes in that state,
such as a replay store's arrays), `buffer.pkl` (groups that wait to be trained on) and, written last, `manifest.json`
with the size of every file and the sha256 of the small ones.
It appears by one rename, so a kill leaves either all of it or a `.partial` that the next start removes.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr.errors import CheckpointError

FORMAT = 2
HASH_LIMIT = 64 * 2**20  # bytes; larger files are checked by their size
STATE, BYTES, BUFFER, MANIFEST, POLICY = "state.json", "state.bin", "buffer.pkl", "manifest.json", "policy"
PLACE = "$bytes"  # in state.json: {"$bytes": [start, stop]}, a part of state.bin


@dataclass(frozen=True)
class Saved:
    """A checkpoint as read: `state` is JSON and bytes, `buffer` what `Buffer.state_dict` gave."""

    path: Path
    step: int
    state: Mapping[str, Any]
    buffer: Mapping[str, Any]

    @property
    def policy(self) -> Path:
        """The engine's part."""
        return self.path / POLICY


async def write(
    folder: Path,
    *,
    step: int,
    state: Mapping[str, Any],
    buffer: Mapping[str, Any],
    policy: Callable[[Path], Awaitable[None]],
) -> Path:
    """Write a checkpoint of `step` that nobody sees before `commit`; returns where it is.

    Raises:
        CheckpointError: the disk is full or refuses; older checkpoints are untouched.
    """
    partial = folder / f".step-{step:06d}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / POLICY).mkdir(parents=True)
        await policy(partial / POLICY)
        text, blob = pack({"format": FORMAT, "step": step, **state})
        (partial / STATE).write_text(text, encoding="utf-8")
        (partial / BYTES).write_bytes(blob)
        (partial / BUFFER).write_bytes(pickle.dumps(dict(buffer), protocol=5))
        (partial / MANIFEST).write_text(json.dumps(_manifest(partial), indent=1), encoding="utf-8")
        _sync_tree(partial)
    except (OSError, TypeError, CheckpointError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        why = f"an add-on's state_dict is not JSON and bytes: {error}" if isinstance(error, TypeError) else str(error)
        raise CheckpointError(
            f"cannot save step {step} below {folder}: {why}. Earlier checkpoints are untouched; free some space (or "
            "lower `checkpoint.keep`) and give the same command again to resume from the last one."
        ) from error
    return partial


def commit(partial: Path) -> Path:
    """Make what `write` wrote the checkpoint of its step, by one rename."""
    target = partial.with_name(partial.name.removeprefix(".").removesuffix(".partial"))
    if target.exists():
        shutil.rmtree(partial)
        return target
    os.rename(partial, target)
    _sync(target.parent)
    return target


def load(path: Path) -> Saved:
    """Read and check a checkpoint.

    Raises:
        CheckpointError: it is of another format, incomplete or damaged; the message names the file.
    """
    manifest = _json(path / MANIFEST)
    for name, (size, digest) in manifest.items():
        file = path / name
        if not file.exists():
            raise _damaged(path, f"{name} is missing")
        if file.stat().st_size != size:
            raise _damaged(path, f"{name} has {file.stat().st_size} bytes, expected {size}")
        if digest and _digest(file) != digest:
            raise _damaged(path, f"the sha256 of {name} is not the one in {MANIFEST}")
    state = _json(path / STATE)
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {state.get('format')}, this version of rlvr reads format {FORMAT}. "
            "Resume it with the version that wrote it, or start a new run from its weights (`checkpoint.start_from`)."
        )
    buffer = pickle.loads((path / BUFFER).read_bytes())
    state = unpack(state, (path / BYTES).read_bytes())
    return Saved(path=path, step=state["step"], state=state, buffer=buffer)


def pack(state: Mapping[str, Any]) -> tuple[str, bytes]:
    """The JSON of a state, and its `bytes` (at any depth) one behind the other: a third smaller than as text."""
    parts: list[bytes] = []

    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            start = sum(map(len, parts))
            parts.append(value)
            return {PLACE: [start, start + len(value)]}
        if isinstance(value, Mapping):
            return {key: plain(inner) for key, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value

    return json.dumps(plain(state), indent=1), b"".join(parts)


def unpack(state: Any, blob: bytes) -> Any:
    """Inverse of `pack`, from its JSON as read."""
    if isinstance(state, list):
        return [unpack(inner, blob) for inner in state]
    if not isinstance(state, dict):
        return state
    if state.keys() == {PLACE}:
        start, stop = state[PLACE]
        return blob[start:stop]
    return {key: unpack(inner, blob) for key, inner in state.items()}


def steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint below `folder`, ascending."""
    names = [p.name.removeprefix("step-") for p in folder.glob("step-*") if p.is_dir()]
    return sorted(int(name) for name in names if name.isdigit())


def newest(folder: Path) -> Path | None:
    """The latest checkpoint, or None."""
    found = steps(folder)
    return folder / f"step-{found[-1]:06d}" if found else None


def prune(folder: Path, *, keep: int, best: int | None) -> None:
    """Remove all but the last `keep` checkpoints and the best one."""
    for step in steps(folder)[:-keep]:
        if step != best:  # out of sight first: a kill must not leave half of one
            doomed = folder / f".step-{step:06d}.partial"
            os.rename(folder / f"step-{step:06d}", doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def clean(folder: Path) -> None:
    """Remove what an interrupted save left."""
    for partial in folder.glob(".step-*.partial"):
        shutil.rmtree(partial)


def _manifest(root: Path) -> dict[str, tuple[int, str]]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {
        str(p.relative_to(root)): (size := p.stat().st_size, _digest(p) if size <= HASH_LIMIT else "") for p in files
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _damaged(path.parent, f"{path.name} is missing") from None
    except ValueError as error:
        raise _damaged(path.parent, f"{path.name} is not JSON ({error})") from None


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {path} is damaged: {what}. Remove this folder to resume from an earlier checkpoint of the run, "
        "or to start it anew when there is none."
    )


def _sync_tree(root: Path) -> None:
    for path in [*root.rglob("*"), root]:
        _sync(path)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
