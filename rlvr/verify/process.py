"""One verifier child seen from the trainer: started clean, spoken to under deadlines, ended with all it forked."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MARK = "RLVR_VERIFIER_CHILD"  # in the environment of a child and of all that it starts
KEPT = ("PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
KEPT_PREFIXES = ("LC_", "PYTHON")
FIXED = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
END_SECONDS = 10.0


class Gone(Exception):
    """The child exited. `status` is its exit status, negative for a signal; `replaced`: a fresh copy waits for jobs.

    `where`: the line at which it was ended, where that is known.
    """

    def __init__(self, status: int, *, replaced: bool = False, where: str = "") -> None:
        self.status = status
        self.where = where
        self.replaced = replaced
        super().__init__(f"killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}")


class Late(Exception):
    """Nothing came before the deadline."""


def clean_environment() -> dict[str, str]:
    """What a child may see of ours: no tokens, no home; hashing and threads fixed, so verdicts repeat."""
    kept = {k: v for k, v in os.environ.items() if k in KEPT or k.startswith(KEPT_PREFIXES)}
    return kept | FIXED


class Child:
    """A running child process, in a session of its own."""

    def __init__(self) -> None:
        request_out, self._requests = os.pipe()
        self._replies, reply_in = os.pipe()
        self._mark = uuid.uuid4().hex
        script = Path(__file__).with_name("child.py")
        command = [sys.executable, "-P", str(script), str(request_out), str(reply_in), str(os.getpid())]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(request_out, reply_in),
                env=clean_environment() | {MARK: self._mark},
                start_new_session=True,
            )
        finally:
            os.close(request_out)
            os.close(reply_in)
        self._pidfd = os.pidfd_open(self._process.pid)  # a forked copy can hold the pipes open, never this
        self._buffer = bytearray()
        for fd in (self._requests, self._replies):
            os.set_blocking(fd, False)

    @property
    def pid(self) -> int:
        """Process id, which is its session's id too."""
        return self._process.pid

    def send(self, message: object, *, deadline: float) -> None:
        """Write one request. Raises Gone when the child has exited, Late at `deadline` (of time.monotonic)."""
        body = pickle.dumps(message)
        rest = memoryview(struct.pack("<I", len(body)) + body)
        while rest:
            self._wait(self._requests, select.POLLOUT, deadline=deadline)
            try:
                rest = rest[os.write(self._requests, rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise Gone(self._process.wait(END_SECONDS)) from None

    def receive(self, *, deadline: float) -> dict[str, Any]:
        """The next reply. Raises Gone when the child has exited, Late at `deadline` (of time.monotonic)."""
        while (frame := self._frame()) is None:
            self._wait(self._replies, select.POLLIN, deadline=deadline)
            with contextlib.suppress(BlockingIOError):
                chunk = os.read(self._replies, 1 << 16)
                if not chunk:
                    raise Gone(self._process.wait(END_SECONDS))
                self._buffer += chunk
        reply = json.loads(frame)
        if "gone" in reply:  # killed from outside it may have left half a request in the pipe
            raise Gone(reply["gone"], replaced=reply["gone"] != -signal.SIGKILL, where=reply["where"])
        return reply

    def _frame(self) -> bytes | None:
        if len(self._buffer) < 4:
            return None
        end = 4 + struct.unpack_from("<I", self._buffer)[0]
        if len(self._buffer) < end:
            return None
        frame = bytes(self._buffer[4:end])
        del self._buffer[:end]
        return frame

    def _wait(self, fd: int, event: int, *, deadline: float) -> None:
        poll = select.poll()
        poll.register(fd, event)
        poll.register(self._pidfd, select.POLLIN)
        ready = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
        if fd not in ready:  # what it wrote before it died is read first
            if self._pidfd in ready:
                raise Gone(self._process.wait(END_SECONDS))
            raise Late

    def running(self) -> bool:
        """Whether the child, or anything that it started, is on a CPU or waits for one."""
        family = set(self._family())
        return any(state == "R" for pid, (_, _, state) in _processes() if pid in family)

    def kill(self) -> None:
        """Kill the child alone, from any thread; whoever reads from it gets Gone and calls `end`."""
        self._process.kill()

    def end(self) -> None:
        """Kill the child and every process that it started, and reap it."""
        limit = time.monotonic() + END_SECONDS
        while (found := list(self._family())) and time.monotonic() < limit:
            for pid in found:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.05)
            time.sleep(0.001)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        for fd in (self._requests, self._replies, self._pidfd):
            os.close(fd)

    def _family(self) -> Iterator[int]:
        """Living processes of its session, of its descent, or with its mark (a daemon loses the first two)."""
        table = dict(_processes())
        mark = f"{MARK}={self._mark}".encode()
        ours = {self.pid}
        grew = True
        while grew:
            more = {pid for pid, (parent, session, _) in table.items() if parent in ours or session == self.pid}
            grew = not more <= ours
            ours |= more
        for pid, (_, _, state) in table.items():
            if state not in "ZX" and (pid in ours or mark in _environ(pid)):
                yield pid


def _processes() -> Iterator[tuple[int, tuple[int, int, str]]]:
    """(pid, (parent, session, state)) of every process on this machine."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                state, parent, _, session = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[:4]
                yield int(name), (int(parent), int(session), state)


def _environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
