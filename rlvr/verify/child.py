"""The process that runs verifiers, started by path by `rlvr.verify.process`; it never loads torch.

One job at a time: a pickled request comes in, one JSON reply per item goes out as soon as it is known, both
framed on private pipes, so that what a verifier prints can never be read as a verdict. The kernel's
profiling timer (CPU time of this process, whatever else the machine does) ends a verdict that takes too
long: nothing in Python, and no C code that holds the interpreter, can delay it.

The process that loads the verifiers answers nothing itself. It forks a copy that does, and forks the next one when
that copy is lost over a verdict: a millisecond instead of the second that loading takes. Where a verifier has
started threads, which no fork survives, it answers itself, and the pool starts a new process when it is lost.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import json
import math
import mmap
import os
import pickle
import re
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from rlvr.verify.runner import Runner

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
GROWTH = 256 << 20  # bytes that a copy may grow by before a fresh one takes its place
Reply = dict[str, Any]


def main(argv: list[str]) -> None:
    """`child.py REQUEST_FD REPLY_FD PARENT_PID`: load the verifiers, then answer until the pipe closes."""
    request_fd, reply_fd, parent = map(int, argv)
    for fd in (request_fd, reply_fd):
        os.set_inheritable(fd, False)
    _tie_to_parent(parent)
    requests, replies = os.fdopen(request_fd, "rb"), os.fdopen(reply_fd, "wb")
    sys.path[:] = _receive(requests) or []  # first, since what follows is unpickled from there
    setup = _receive(requests)
    if setup is None:
        return
    os.nice(setup["nice"])
    for kind, limit in ((resource.RLIMIT_AS, setup["memory"]), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (limit, limit))
    try:
        from rlvr.verify.runner import Runner  # not before the path is set

        verifiers = {name: Runner(spec) for name, spec in setup["verifiers"].items()}
    except BaseException as error:  # whatever it is, the trainer must hear why there is no verifier
        _send(replies, {"failed": f"{type(error).__name__}: {error}"})
        return
    _send(replies, {"ready": True, "versions": {name: run.version for name, run in verifiers.items()}})
    if len(os.listdir("/proc/self/task")) == 1:
        _serve_by_copies(requests, replies, verifiers)
    else:
        _serve(requests, replies, verifiers, room=math.inf, trace=None)


def _serve_by_copies(requests: BinaryIO, replies: BinaryIO, verifiers: Mapping[str, Runner]) -> None:
    """Keep one copy of this process answering; say how each was lost."""
    gc.freeze()
    ended = mmap.mmap(-1, 1)  # shared: 1 once a copy has nothing more to answer
    trace = os.memfd_create("trace")  # what the copy was doing when it was ended
    while not ended[0]:
        if (pid := os.fork()) == 0:
            _become_subreaper()
            _serve(requests, replies, verifiers, room=_resident() + GROWTH, trace=trace)
            ended[0] = 1
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        _end_leftovers()
        where = _last_line(trace, [run.path for run in verifiers.values()])
        if ended[0] and not _hung_up(requests):
            ended[0] = 0  # it had grown too large
        elif not ended[0]:
            _send(replies, {"gone": os.waitstatus_to_exitcode(status), "where": where})


def _serve(
    requests: BinaryIO, replies: BinaryIO, verifiers: Mapping[str, Runner], *, room: float, trace: int | None
) -> None:
    """Answer jobs until the pipe closes, or this process has come to hold more than `room` bytes."""
    while _resident() <= room and (job := _receive(requests)) is not None:
        run = verifiers[job["verifier"]]
        for item in job["items"]:
            ask = {"score": run.score, "explain": run.explain}.get(job["ask"])
            call = partial(run.check, item) if ask is None else partial(ask, item, job["task"])
            _send(replies, _limited(call, cpu_seconds=job["cpu_seconds"], where=run.where, trace=trace))


def _last_line(trace: int, paths: Sequence[str]) -> str:
    """`FILE:LINE` of a verifier (or of what it had called) at which a copy was ended; empties the trace."""
    text = os.pread(trace, 1 << 16, 0).decode(errors="replace")
    os.ftruncate(trace, 0)
    os.lseek(trace, 0, os.SEEK_SET)
    frames = re.findall(r'File "([^"]+)", line (\d+)', text)
    own = [frame for frame in frames if frame[0] in paths] or frames
    return ":".join(own[0]) if own else ""


def _hung_up(pipe: BinaryIO) -> bool:
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def _resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _tie_to_parent(parent: int) -> None:
    """Die with the trainer; adopt whatever a verifier leaves behind, so that it can be ended."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _become_subreaper()
    os.register_at_fork(after_in_child=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    if os.getppid() != parent:  # it died before the tie was made
        os._exit(1)


def _become_subreaper() -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _receive(pipe: BinaryIO) -> Any:
    header = pipe.read(4)
    if len(header) < 4:
        return None
    return pickle.loads(pipe.read(struct.unpack("<I", header)[0]))


def _send(pipe: BinaryIO, reply: Reply) -> None:
    body = json.dumps(reply).encode()
    pipe.write(struct.pack("<I", len(body)) + body)
    pipe.flush()


def _limited(
    call: Callable[[], Reply], *, cpu_seconds: float, where: Callable[[BaseException], str], trace: int | None
) -> Reply:
    """One verdict under its CPU limit. Beyond it the timer's signal ends this process: the pool reports it."""
    me, started, used = os.getpid(), time.perf_counter(), _cpu_seconds()
    faulthandler.unregister(signal.SIGPROF)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    if trace is not None:  # written from the signal's handler, whatever the interpreter is doing; then the default
        faulthandler.register(signal.SIGPROF, file=trace, all_threads=False, chain=True)
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        reply = call()
    except BaseException as error:  # SystemExit and math-verify's TimeoutException are no Exception
        reply = {"error": "crash", "detail": where(error)}
    if os.getpid() != me:
        os._exit(0)  # a copy that a verifier forked and let run on: it has no verdict to give
    signal.setitimer(signal.ITIMER_PROF, 0)
    _end_leftovers()
    used = _cpu_seconds() - used
    if used > cpu_seconds:  # its own children's CPU seconds count too
        reply = {"error": "timeout", "detail": f"used {used:.1f} CPU seconds, the limit is {cpu_seconds:g}"}
    return reply | {"elapsed": time.perf_counter() - started, "cpu": used}


def _cpu_seconds() -> float:
    """Of this process and of those that it has waited for; programs in the sandbox have limits of their own."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    sandbox = sys.modules.get("rlvr.verify.sandbox")
    return sum(usage.ru_utime + usage.ru_stime for usage in both) - (sandbox.cpu_spent() if sandbox else 0.0)


def _end_leftovers() -> None:
    """Kill every process that a verdict started and left, daemons included (they are ours by adoption)."""
    sandbox = sys.modules.get("rlvr.verify.sandbox")
    kept = sandbox.shared_pids() if sandbox else set()
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            left = [child for child in _children() if child not in kept]
            if not left:
                return
            for child in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            os.waitpid(-1, 0)


def _children() -> list[int]:
    me, found = os.getpid(), []
    with contextlib.suppress(OSError), open(f"/proc/self/task/{me}/children") as file:  # where the kernel has it
        return [int(pid) for pid in file.read().split()]
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                if int(file.read().rpartition(b")")[2].split()[1]) == me:
                    found.append(int(name))
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
