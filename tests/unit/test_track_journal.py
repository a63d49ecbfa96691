"""Journals: whole lines or none, cut back byte for byte."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr.errors import CheckpointError, ConfigError, DataError
from rlvr.track.journal import Journal, encode, read
from rlvr.track.run_dir import RunDir, find_run

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def steps(path: Path) -> list[int]:
    return [record["step"] for record in read(path)]


def test_lines_are_exact(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    with Journal(path) as journal:
        journal.append({"step": 1, "b": 0.1, "a": np.float32(0.5), "n": np.int64(3), "x": math.nan, "y": [math.inf]})
    assert path.read_bytes() == b'{"step": 1, "b": 0.1, "a": 0.5, "n": 3, "x": null, "y": [null]}\n'


@settings(max_examples=60, deadline=None)
@given(record=st.dictionaries(st.text(max_size=4), VALUES, max_size=4))
def test_whatever_goes_in_comes_out_on_one_line(record: dict) -> None:
    line = encode(record)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert json.loads(line) == record


def test_lone_surrogates_and_line_separators_stay_in_their_line(tmp_path: Path) -> None:
    record = {"step": 1, "text": "a\ud800b\u2028c\x85d\ne"}
    with Journal(tmp_path / "r.jsonl") as journal:
        journal.append(record)
        journal.append({"step": 2})
    assert list(read(tmp_path / "r.jsonl")) == [record, {"step": 2}]


@pytest.mark.parametrize("torn", [b"{", b'{"step": 3', b'{"step": 3, "x": 1.0}', b"x" * 200_000])
def test_a_torn_last_line_does_not_exist(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "m.jsonl"
    whole = b'{"step": 1}\n{"step": 2}\n'
    path.write_bytes(whole + torn)
    assert steps(path) == [1, 2]
    with Journal(path) as journal:
        assert path.read_bytes() == whole
        journal.append({"step": 3})
    assert steps(path) == [1, 2, 3]


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"st')
    Journal(path).close()
    assert path.read_bytes() == b""


def test_cut_and_written_again_is_byte_identical(tmp_path: Path) -> None:
    records = [{"step": i, "x": (i * 0.1) ** 3, "text": "é" * i} for i in range(1, 30)]
    straight, resumed = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    with Journal(straight) as journal:
        for record in records:
            journal.append(record)
    resumed.write_bytes(straight.read_bytes()[:-7])  # killed in the middle of the last line
    with Journal(resumed) as journal:
        assert journal.cut(10) == 18  # steps 11..28
        assert steps(resumed) == list(range(1, 11))
        for record in records[10:]:
            journal.append(record)
    assert resumed.read_bytes() == straight.read_bytes()


def test_cut_looks_at_the_step_and_not_at_the_place(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    with Journal(path) as journal:
        for step in (0, 5, 2, 9, 4):
            journal.append({"step": step})
        journal.cut(4)
    assert steps(path) == [0, 2, 4]
    assert [p.name for p in tmp_path.iterdir()] == ["e.jsonl"]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\nnonsense\n')
    with pytest.raises(DataError, match=r"m\.jsonl, line 2: not JSON"):
        list(read(path))
    path.write_bytes(b'{"other": 1}\n')
    with Journal(path) as journal, pytest.raises(DataError, match="no key 'step'"):
        journal.cut(1)


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.jsonl"
    write = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) > 20:
            return write(fd, data[:20])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Journal(path) as journal:
        journal.append({"step": 1})
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(CheckpointError, match="No space left"):
            journal.append({"step": 2, "text": "long enough to be torn"})
        monkeypatch.undo()
        assert path.read_bytes() == b'{"step": 1}\n'
        journal.append({"step": 2})
    assert steps(path) == [1, 2]


def test_one_process_writes_a_run(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "mine")
    other = (
        "import sys; from rlvr.track.run_dir import RunDir\n"
        "with RunDir(sys.argv[1]).lock(): print('locked', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", other, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        with pytest.raises(ConfigError, match=rf"process {holder.pid}\b.*run=NAME"), run.lock():
            pass
    finally:
        holder.kill()  # SIGKILL frees the run
        holder.wait(10)
        for stream in (holder.stdin, holder.stdout):
            if stream is not None:
                stream.close()
    with run.lock():
        assert (run.path / ".lock").read_text().strip() == str(os.getpid())


def test_a_missing_run_lists_the_others(tmp_path: Path) -> None:
    for name in ("alpha", "beta"):
        RunDir(tmp_path / name).path.mkdir()
        RunDir(tmp_path / name).recipe.touch()
    (tmp_path / "not_a_run").mkdir()
    assert find_run("beta", root=tmp_path).path == tmp_path / "beta"
    assert find_run(str(tmp_path / "beta")).name == "beta"
    with pytest.raises(DataError, match=r"'bata'.*Did you mean 'beta'.*alpha, beta$"):
        find_run("bata", root=tmp_path)
    with pytest.raises(DataError, match="none yet"):
        find_run("x", root=tmp_path / "empty")
