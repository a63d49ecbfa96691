"""The process that programs are forked from: isolated first, then it starts one on each request.

`rlvr.verify.sandbox` starts it in a clean interpreter with the standard library alone. It is handed nothing but file
descriptors: what a program reads and writes passes by, so that there is nothing in it for a program to find.
Each program has a supervisor, which enforces its limits and reports how it ended.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from rlvr.verify import kernel, remote

NOBODY = 65534
INSIDE = 1000  # uid and gid of a program in its own user namespace
FDS = 6  # report, job, stdin, stdout, stderr, link
THREADS = 32
FILE_BYTES, SCRATCH_BYTES, OPEN_FILES, STACK = 16 << 20, 32 << 20, 64, 64 << 20
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/usr/share/zoneinfo")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


def main(control_fd: int, level: str, memory: int) -> None:
    """Isolate, say so, then fork a program for each message until the other end closes."""
    control = socket.socket(fileno=control_fd)
    sys.path[:] = [p for p in sys.path if p.startswith(sys.base_prefix)]
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        if level == "namespaces":
            enter_namespaces()
        elif level == "landlock" and not kernel.landlock_abi():
            raise OSError(kernel.ENOSYS, "this kernel has no Landlock")
    except OSError as error:
        control.send(json.dumps({"failed": str(error)}).encode())
        return
    control.send(b'{"ready": true}')
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while True:
        order, fds, _, _ = socket.recv_fds(control, 4096, FDS)
        _reap(wait=False)
        if len(fds) < FDS:
            break
        limits = json.loads(order)
        if os.fork() == 0:
            control.close()
            if supervise(fds, level, limits, memory=memory):
                return run(level)
        for fd in fds:
            os.close(fd)
    _reap(wait=True)


def _reap(*, wait: bool) -> None:
    """Collect supervisors that have ended; at the end wait for all: they end as their reports are closed."""
    try:
        while os.waitpid(-1, 0 if wait else os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


# --- isolation -----------------------------------------------------------------------------------------------


def enter_namespaces() -> None:
    """A user, mount, network, IPC and name space of our own, with a root that holds Python and nothing else."""
    start, ready = os.pipe()
    helper = os.fork() if os.geteuid() == 0 else None
    if helper == 0:  # root keeps nobody for programs: limits on processes do not hold for root
        os.close(ready)
        os.read(start, 1)
        mapped = f"0 0 1\n{INSIDE} {NOBODY} 1\n"
        for kind in ("gid_map", "uid_map"):
            Path(f"/proc/{os.getppid()}/{kind}").write_text(mapped)
        os._exit(0)
    uid, gid = os.geteuid(), os.getegid()
    wanted = kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    kernel.unshare(kernel.CLONE_NEWUSER | wanted)
    os.close(ready)  # the helper goes on
    if helper is None:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{INSIDE} {uid} 1\n")
        Path("/proc/self/gid_map").write_text(f"{INSIDE} {gid} 1\n")
    elif os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1]):
        raise OSError(kernel.EPERM, "the user namespace cannot be given its users")
    else:
        os.setgroups([])
    os.close(start)
    _build_root()


def _build_root() -> None:
    kernel.mount("", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    root = next(place for place in ("/tmp", "/mnt", "/usr") if os.path.isdir(place))
    sources = {path: os.open(path, os.O_PATH) for path in (*_readable(), *DEVICES) if os.path.exists(path)}
    kernel.mount("tmpfs", root, "tmpfs", kernel.MS_NOSUID, "size=1m,mode=755")
    for path, source in sources.items():
        target = root + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if stat.S_ISDIR(os.fstat(source).st_mode):
            os.makedirs(target, exist_ok=True)
        else:
            Path(target).touch()
        kernel.mount(f"/proc/self/fd/{source}", target, flags=kernel.MS_BIND | kernel.MS_REC)
        os.close(source)
    os.mkdir(f"{root}/scratch")
    kernel.read_only(root)
    kernel.enter_root(root)


def _readable() -> list[str]:
    """Files of the operating system that an interpreter opens, and its standard library."""
    found = [os.path.dirname(os.path.realpath(os.__file__)), *sys.path, *LIBRARIES]
    kept: list[str] = []
    for path in sorted({p for p in found if os.path.exists(p)}):
        if not any(path.startswith(f"{k}/") for k in kept):
            kept.append(path)
    return kept


def lock(level: str, *, memory: int, cpu: float) -> None:
    """The last step, in the program's own process: users, limits, capabilities, files, system calls."""
    threads = True
    if level == "namespaces":
        kernel.mount("tmpfs", "/scratch", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, f"size={SCRATCH_BYTES},mode=777")
        os.chdir("/scratch")
        os.setresgid(INSIDE, INSIDE, INSIDE)
        os.setresuid(INSIDE, INSIDE, INSIDE)
        processes = THREADS + 3 * 8
    elif level == "landlock":
        os.chdir("/")
        threads = _become_nobody()
        processes = THREADS + _threads_of(os.geteuid())
    for kind, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, int(cpu) + 2),  # the supervisor is exact; this holds without it
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_STACK, STACK),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if level == "none":
        return
    resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.drop_capabilities()
    if level == "landlock":
        kernel.landlock([p for p in (*_readable(), *DEVICES) if os.path.exists(p)])
    kernel.seccomp(threads=threads)


def _become_nobody() -> bool:
    """Root becomes nobody where nobody can reach Python. Else it stays root without any power, and without threads."""
    if os.geteuid() != 0:
        return True
    if not all(place.stat().st_mode & 1 for path in _readable() for place in Path(path).parents):
        return False
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    except OSError:
        return False  # a user namespace around us knows no nobody
    return True


def _threads_of(uid: int) -> int:
    """Threads that this user runs now: a limit on processes counts them all."""
    total = 0
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == uid:
                total += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue
    return total


# --- one program ----------------------------------------------------------------------------------------------


def supervise(fds: list[int], level: str, limits: dict[str, Any], *, memory: int) -> bool:
    """Start a program and watch it. True in the program's process, locked in; the supervisor does not return."""
    report = socket.socket(fileno=fds[0])
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    if level == "namespaces":
        kernel.unshare(kernel.CLONE_NEWPID | kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.set_inheritable(report.fileno(), False)
        report.close()
        os.dup2(fds[1], 3)
        for target, fd in ((0, fds[2]), (1, fds[3]), (2, fds[4]), (4, fds[5])):
            os.dup2(fd, target)
        os.closerange(5, 4096)
        lock(level, memory=memory, cpu=limits["cpu"])
        return True
    for fd in fds[1:]:
        os.close(fd)
    why = _watch(pid, report, cpu=limits["cpu"], wall=limits["wall"])
    _, status, usage = os.wait4(pid, 0)
    ended = {"status": os.waitstatus_to_exitcode(status), "why": why, "cpu": usage.ru_utime + usage.ru_stime}
    try:
        report.send(json.dumps(ended).encode())
    except OSError:
        os._exit(0)  # nobody asks any more
    os._exit(0)


def _watch(pid: int, report: socket.socket, *, cpu: float, wall: float) -> str | None:
    """Wait until the program ends, or end it: beyond its limits, or when the other end of `report` closes."""
    deadline = time.monotonic() + wall
    clock = (~pid << 3) | 2  # CPU time of that process, all its threads
    poll = select.poll()
    watched = os.pidfd_open(pid)
    poll.register(watched, select.POLLIN)
    poll.register(report, select.POLLIN)
    while True:
        left = cpu - _clock(clock)
        why = "cpu" if left <= 0 else "wall" if time.monotonic() > deadline else None
        if why is None:
            pause = max(0.005, min(left / 2, deadline - time.monotonic(), 1.0))
            ready = dict(poll.poll(pause * 1000))
            if watched in ready:
                return None
            why = "closed" if ready else None
        if why is not None:
            for kill in (os.kill, os.killpg):
                try:
                    kill(pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    continue
            return why


def _clock(clock: int) -> float:
    try:
        return time.clock_gettime(clock)
    except OSError:
        return 0.0  # it has just ended


def run(level: str) -> None:
    """The program itself, in the outermost frame but two: what it raises ends the interpreter as usual."""
    job = json.loads(b"".join(_chunks(3)))
    os.close(3)
    sys.setrecursionlimit(job.get("recursion", 1000))
    if job["role"] != "program":
        remote.ROLES[job["role"]](job, link=4)
        return
    os.close(4)
    module = ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["program.py"]
    sys.stdin = sys.__stdin__ = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    exec(compile(job["source"], "program.py", "exec"), vars(module))


def _chunks(fd: int) -> Iterator[bytes]:
    place = 0
    while chunk := os.pread(fd, 1 << 20, place):
        place += len(chunk)
        yield chunk
