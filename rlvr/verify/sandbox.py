"""Runs programs that a model wrote where they can do no harm. `Sandbox` starts them, `best_level` says how isolated.

Levels, strongest first:

- `namespaces`: a file tree that holds Python and an empty scratch directory of its own, no network, no other process in
  sight, nobody as user; no capability, and a filter of system calls. Needs unprivileged user namespaces.
- `landlock`: where a container forbids namespaces. Python's files can be read and nothing can be written; no socket, no
  signal to others, no capability, the same filter. Names and sizes of other files can be seen, contents cannot.

In both a program is one process for good (threads yes, `fork` and `exec` no), with limits on memory, CPU, time, files
and output. `none` keeps the limits alone; it is for those who say `unsafe`. A level counts as working when a program
that tries to get out of it has failed to.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from rlvr.errors import VerifierError

Level = Literal["namespaces", "landlock", "none"]
ISOLATED: tuple[Level, ...] = ("namespaces", "landlock")
START_SECONDS = 20.0
END_SECONDS = 5.0
MEMORY = 512 << 20  # bytes of address space of one program
OUTPUT = 1 << 20  # bytes that are read of what a program writes; more ends it
ROOT = str(Path(__file__).resolve().parents[2])
ADVICE = (
    "allow unprivileged user namespaces (sysctl user.max_user_namespaces above 0, "
    "kernel.apparmor_restrict_unprivileged_userns=0; docker run --security-opt seccomp=unconfined), or use a kernel "
    "with Landlock (5.13 or later), or, if every program may do what you may do on this machine, write `unsafe: true` "
    "beside the verifier's name"
)


class SandboxError(VerifierError):
    """Programs cannot be run here: no isolation, or the sandbox itself failed."""


@dataclass(frozen=True)
class Ended:
    """How a program ended. `why` is None when it did so itself, else "cpu", "wall", "output" or "closed"."""

    out: bytes
    err: str  # the last of what it wrote to stderr
    status: int  # exit status; negative: killed by that signal
    why: str | None
    cpu: float  # seconds

    @property
    def reason(self) -> str:
        """What went wrong, for people; empty where nothing did."""
        limits = {"cpu": "CPU time limit", "wall": "time limit", "output": "too much output", "closed": "stopped"}
        last = (self.err.strip().splitlines() or [f"exit status {self.status}"])[-1][:200]
        return limits[self.why] if self.why else last if self.status else ""


class _Spent:
    """CPU seconds that programs used; they are not the verifier's own."""

    seconds = 0.0


def cpu_spent() -> float:
    """CPU seconds of sandboxes that this process has closed."""
    return _Spent.seconds


class Running:
    """One program. `close` ends it at once; `poll` returns what it wrote since, and whether it has ended."""

    def __init__(self, out: int, err: int, report: socket.socket) -> None:
        self._files = {out: bytearray(), err: bytearray()}
        self.out, self.err, self.report = out, err, report
        self.ended: dict[str, Any] | None = None
        self.flooded = False

    def poll(self, *, deadline: float, until_line: bool = False) -> bool:
        """Read until the program has ended (True), or until a line is there or `deadline` (of monotonic) has passed."""
        open_fds = {self.out, self.err}
        while self.ended is None:
            if until_line and b"\n" in self._files[self.out]:
                return False
            poll = select.poll()
            for fd in (*open_fds, self.report.fileno()):
                poll.register(fd, select.POLLIN)
            ready = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
            if not ready:
                return False
            for fd in open_fds & ready.keys():
                chunk = os.read(fd, 1 << 16)
                if not chunk:
                    open_fds = open_fds - {fd}
                self._keep(fd, chunk)
            if self.flooded:
                self.report.shutdown(socket.SHUT_WR)
            if self.report.fileno() in ready:
                self.ended = _report(self.report)
        for fd in open_fds:
            self._rest(fd)
        return True

    def _keep(self, fd: int, chunk: bytes) -> None:
        kept = self._files[fd]
        if fd == self.err:
            kept[:] = (kept + chunk)[-4096:]
        elif len(kept) + len(chunk) > OUTPUT:
            self.flooded = True
        else:
            kept += chunk

    def _rest(self, fd: int) -> None:
        """What is still in a pipe whose program has ended."""
        os.set_blocking(fd, False)
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(fd, 1 << 16):
                self._keep(fd, chunk)

    def line(self) -> bytes | None:
        """The next whole line of its output, or None."""
        head, newline, rest = bytes(self._files[self.out]).partition(b"\n")
        if not newline:
            return None
        self._files[self.out][:] = rest
        return head

    def result(self) -> Ended:
        """After `poll` has returned True."""
        given = self.ended or {"status": -9, "why": "closed", "cpu": 0.0}
        why = "output" if self.flooded else given["why"]
        err = self._files[self.err].decode(errors="replace")
        return Ended(bytes(self._files[self.out]), err, given["status"], why, given["cpu"])

    def close(self) -> None:
        """End the program if it runs."""
        self.report.close()
        for fd in (self.out, self.err):
            os.close(fd)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _report(report: socket.socket) -> dict[str, Any]:
    data = b""
    with contextlib.suppress(OSError):
        data = report.recv(4096)
    return json.loads(data) if data else {"status": -9, "why": "closed", "cpu": 0.0}


class Sandbox:
    """A place for the programs of one verdict. Use as a context manager.

    Raises SandboxError where the level does not work here.
    """

    def __init__(self, level: Level | None = None, *, memory: int = MEMORY) -> None:
        self.level: Level = level or require_isolation()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._before = before.ru_utime + before.ru_stime
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = f"import sys; sys.path.insert(0, {ROOT!r}); from rlvr.verify.jail import main; main"
        call = f"({theirs.fileno()}, {self.level!r}, {memory})"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-s", "-P", "-S", "-c", code + call],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},
                cwd="/",
            )
        self._control.settimeout(START_SECONDS)
        try:
            said = json.loads(self._control.recv(4096) or b'{"failed": "it ended at its start"}')
        except TimeoutError:
            said = {"failed": f"not ready within {START_SECONDS:g} s"}
        if "failed" in said:
            self.close()
            raise SandboxError(f"the sandbox (level {self.level}) cannot be started: {said['failed']}")

    def start(
        self, job: dict[str, Any], *, stdin: bytes = b"", link: int | None = None, cpu: float, wall: float
    ) -> Running:
        """Start a program on a job (`rlvr.verify.jail.run`); `link` is a descriptor that it gets."""
        report, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        (out, out_in), (err, err_in) = os.pipe(), os.pipe()
        lent = [_memory_file(json.dumps(job).encode()), _memory_file(stdin), out_in, err_in]
        null = os.open(os.devnull, os.O_RDONLY)
        order = [theirs.fileno(), *lent, null if link is None else link]
        try:
            socket.send_fds(self._control, [json.dumps({"cpu": cpu, "wall": wall}).encode()], order)
        except OSError as error:
            raise SandboxError(f"the sandbox was lost: {error}") from None
        finally:
            theirs.close()
            for fd in (*lent, null):
                os.close(fd)
        return Running(out, err, report)

    def script(self, source: str, *, stdin: str = "", cpu: float, wall: float | None = None) -> Ended:
        """Run a whole program on an input. `wall` (default: twice `cpu` and a second) ends one that sleeps."""
        wall = 2 * cpu + 1 if wall is None else wall
        job = {"role": "program", "source": source}
        with self.start(job, stdin=stdin.encode(errors="replace"), cpu=cpu, wall=wall) as running:
            running.poll(deadline=time.monotonic() + wall + END_SECONDS)
            return running.result()

    @property
    def pid(self) -> int:
        """Of the process that programs are forked from."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether programs can be started in it."""
        return self._process.poll() is None

    def close(self) -> None:
        """End every program and the place itself; the scratch directories are gone with it."""
        self._control.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(END_SECONDS)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        _Spent.seconds += after.ru_utime + after.ru_stime - self._before

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_SHARED: dict[tuple[Level, int], Sandbox] = {}


def shared(level: Level, *, memory: int = MEMORY) -> Sandbox:
    """This process's own sandbox, started when there is none: a program then costs a fork, not an interpreter.

    It knows nothing of the programs that it ran: they were copies of it, and their files went with them.
    """
    place = _SHARED.get((level, memory))
    if place is None or not place.alive:
        if place is not None:
            place.close()
        place = _SHARED[level, memory] = Sandbox(level, memory=memory)
    return place


def shared_pids() -> set[int]:
    """Processes of shared sandboxes: they outlive a verdict, and end with this process."""
    return {place.pid for place in _SHARED.values()}


def _memory_file(content: bytes) -> int:
    fd = os.memfd_create("rlvr")
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def judged(sandbox: Sandbox, job: dict[str, Any], *, cpu: float, wall: float) -> Iterator[dict[str, Any]]:
    """Run `job["tests"]` against `job["source"]`, each in a process of its own; a result per test, in order.

    `{"passed": bool, "detail": str}`, "unsupported" where the test asks for what cannot cross (`rlvr.verify.remote`).
    A program that ends, or takes more than `wall` seconds over one test, fails that test and is started anew for the
    next. `cpu` (seconds) is what all tests together may use for each of them.
    """
    first = 0
    while first < len(job["tests"]):
        done = 0
        for result in _judged_from(sandbox, job, first, cpu=cpu, wall=wall):
            done += 1
            yield result
        first += done


def _judged_from(
    sandbox: Sandbox, job: dict[str, Any], first: int, *, cpu: float, wall: float
) -> Iterator[dict[str, Any]]:
    """At least one result: up to the first test over which the program, or the tests' process, was lost."""
    left, right = socket.socketpair()
    hidden = {"role": "test", "first": first} | {key: value for key, value in job.items() if key != "source"}
    shown = {"role": "answer", "source": job["source"], "setup": job["setup"]}
    rest = len(job["tests"]) - first
    limits = {"cpu": cpu * rest, "wall": wall * rest}
    with left, right, contextlib.ExitStack() as stack:
        program = stack.enter_context(sandbox.start(shown, link=left.fileno(), **limits))
        tests = stack.enter_context(sandbox.start(hidden, link=right.fileno(), **limits))
        left.close()
        right.close()
        for _ in range(rest):
            ended = tests.poll(deadline=time.monotonic() + wall, until_line=True)
            line = tests.line()
            if line is None:
                yield {"passed": False, "detail": tests.result().reason if ended else "time limit"}
                return
            result = json.loads(line)
            if result.get("lost"):
                if program.poll(deadline=time.monotonic() + 1.0):
                    result["detail"] = f"the program ended: {program.result().reason or 'exit status 0'}"
                yield result
                return
            yield result


# --- what works here ------------------------------------------------------------------------------------------

CANARY = """
import base64, json, os, socket, sys
aim = json.loads(base64.b64decode(AIM))
out = []
def attempt(what, do):
    try:
        do()
    except BaseException:
        return
    out.append(what)
attempt("read a file of the host", lambda: open(aim["file"]).read())
attempt("list a directory of the host", lambda: os.listdir(aim["folder"]))
attempt("write a file of the host", lambda: open(aim["file"] + "x", "w"))
attempt("open a socket", lambda: socket.socket())
attempt("read another process", lambda: open("/proc/%d/environ" % aim["pid"], "rb").read())
attempt("signal another process", lambda: os.kill(aim["pid"], 0))
attempt("fork", lambda: os.fork() or os._exit(0))
attempt("execute a program", lambda: os.execv(sys.executable, [sys.executable, "-c", ""]))
attempt("raise its limits", lambda: __import__("resource").setrlimit(9, (-1, -1)))
if set(os.environ) - {"PYTHONHASHSEED", "PYTHONUTF8", "LC_CTYPE"}:
    out.append("see the environment")
print(json.dumps(out))
"""


@cache
def trial(level: Level) -> str | None:
    """Why a level does not work here, or None. A program tries to get out; it takes about 0.1 s, once."""
    with tempfile.TemporaryDirectory() as folder:
        secret = Path(folder) / "secret"
        secret.write_text("secret")
        Path(folder).chmod(0o755)
        aim = json.dumps({"file": str(secret), "folder": folder, "pid": os.getpid()}).encode()
        source = CANARY.replace("AIM", repr(base64.b64encode(aim).decode()))
        try:
            with Sandbox(level) as sandbox:
                ended = sandbox.script(source, cpu=10, wall=20)
        except (SandboxError, OSError) as error:
            return str(error)
    try:
        escapes: Sequence[str] = json.loads(ended.out)
    except ValueError:
        return f"a program cannot be run in it: {ended.reason or 'it printed nothing'}"
    return f"a program could {', '.join(escapes)}" if escapes else None


def best_level() -> tuple[Level | None, dict[str, str]]:
    """The strongest level that works on this machine, and why the stronger ones do not."""
    reasons: dict[str, str] = {}
    for level in ISOLATED:
        if (why := trial(level)) is None:
            return level, reasons
        reasons[level] = why
    return None, reasons


def require_isolation() -> Level:
    """The level to use. Raises SandboxError saying what was tried and what to do."""
    level, reasons = best_level()
    if level is None:
        tried = "; ".join(f"{name}: {why}" for name, why in reasons.items())
        raise SandboxError(f"programs are not run without isolation, and none works here ({tried}). {ADVICE}")
    return level
