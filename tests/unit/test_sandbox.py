"""Programs that try to get out of the sandbox, at every level that works on this machine."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlvr.verify import kernel, sandbox
from rlvr.verify.sandbox import ISOLATED, Level, Sandbox, SandboxError


@pytest.fixture(scope="module", params=ISOLATED)
def place(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    if why := sandbox.trial(request.param):
        pytest.skip(f"isolation {request.param!r} does not work here: {why}")
    with Sandbox(request.param) as place:
        yield place


def tried(place: Sandbox, action: str, *, cpu: float = 5.0) -> str:
    """What came of an action: "done", or the error that stopped it."""
    indented = "\n".join(f"    {line}" for line in action.splitlines())
    source = f"""
import ctypes, os, resource, signal, socket, subprocess, sys, threading, time
try:
{indented}
    print("done")
except BaseException as error:
    print(type(error).__name__, error)
"""
    ended = place.script(source, cpu=cpu)
    return ended.out.decode().strip() or f"ended: {ended.reason}"


FILE_TRICKS = {
    "read": "open(PATH).read()",
    "write": "open(PATH, 'w').write('x')",
    "new file": "open(FOLDER + '/new', 'w')",
    "list": "os.listdir(FOLDER)",
    "remove": "os.remove(PATH)",
    "rename": "os.rename(PATH, PATH + '2')",
    "truncate": "os.truncate(PATH, 0)",
    "chmod": "os.chmod(PATH, 0o777)",
    "touch": "os.utime(PATH)",
    "mkdir": "os.mkdir(FOLDER + '/d')",
    "symlink escape": "os.symlink(PATH, 'a')\nopen('a').read()",
    "hard link": "os.link(PATH, 'b')\nopen('b').read()",
    "dot-dot": "open('../../../../../../..' + PATH).read()",
    "through the root of a process": "open('/proc/1/root' + PATH).read()",
    "through the current folder of a process": "os.listdir('/proc/%d/cwd' % os.getppid())",
    "chroot": "os.mkdir('x')\nos.chroot('x')",
    "execute": "subprocess.run(['cat', PATH], check=True)",
    "device": "open('/dev/mem', 'rb').read(1)",
    "sql": "import sqlite3\nsqlite3.connect(PATH).execute('select * from x')",
}


@pytest.mark.parametrize("trick", FILE_TRICKS)
def test_files_of_the_host_are_out_of_reach(place: Sandbox, trick: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)  # nothing but the sandbox protects the file
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    secret.chmod(0o666)
    before = (secret.stat().st_mtime_ns, secret.stat().st_mode)
    action = FILE_TRICKS[trick].replace("PATH", repr(str(secret))).replace("FOLDER", repr(str(tmp_path)))
    said = tried(place, action)
    assert "done" not in said and "hidden" not in said
    assert secret.read_text() == "hidden" and os.listdir(tmp_path) == ["secret"]
    assert (secret.stat().st_mtime_ns, secret.stat().st_mode) == before


@pytest.mark.parametrize("folder", [str(Path.home()), str(Path(__file__).parents[2]), "/etc", "/proc", "/sys", "/home"])
def test_home_and_repository_cannot_be_listed(place: Sandbox, folder: str) -> None:
    said = tried(place, f"print(os.listdir({folder!r}))")
    if said.endswith("done"):  # there is a folder of that name, made for Python's own files or for nothing
        listed = json.loads(said.splitlines()[0].replace("'", '"'))
        assert set(listed) <= {".pyenv", ".local", "ld.so.cache"}


def test_environment_holds_nothing_of_ours(place: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    with Sandbox(place.level) as fresh:
        said = tried(fresh, "print(dict(os.environ))\nprint(open('/proc/self/environ').read())")
    assert "secret" not in said and "TOKEN" not in said and "PATH" not in said


def test_no_file_descriptor_is_left_to_use(place: Sandbox) -> None:
    probe = "for fd in range(3, 200):\n    try:\n        os.fstat(fd)\n        print(fd)\n    except OSError: pass"
    assert tried(place, probe) == "done"


NETWORK = {
    "tcp": "socket.create_connection(('127.0.0.1', PORT), 2)",
    "udp": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))",
    "raw": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "unix": "socket.socket(socket.AF_UNIX).connect(chr(0) + 'NAME')",
    "datagrams of a pair": "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', chr(0) + 'NAME')",
    "name": "socket.getaddrinfo('localhost', 80)[0] and socket.socket()",
    "server": "s = socket.socket(); s.bind(('', 0)); s.listen()",
}


@pytest.mark.parametrize("trick", NETWORK)
def test_no_network(place: Sandbox, trick: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as unix:
        name = f"rlvr-test-{os.getpid()}"
        unix.bind(f"\0{name}")
        unix.listen()
        action = NETWORK[trick].replace("PORT", str(server.getsockname()[1])).replace("NAME", name)
        said = tried(place, action)
    assert "done" not in said


PROCESSES = {
    "fork": "os.fork()",
    "daemon": "if os.fork() == 0:\n    os.setsid()\n    time.sleep(600)",
    "fork bomb": "while True: os.fork()",
    "vfork and exec": "subprocess.Popen(['/bin/sleep', '600'])",
    "posix_spawn": "os.posix_spawn(sys.executable, [sys.executable], {})",
    "multiprocessing": "import multiprocessing as m\nm.get_context('fork').Process(target=print).start()",
    "exec": "os.execv(sys.executable, [sys.executable, '-c', ''])",
    "raw clone": "assert ctypes.CDLL(None, use_errno=True).syscall(CLONE, 17, 0, 0, 0, 0) >= 0",
    "raw clone of a namespace": "assert ctypes.CDLL(None).syscall(CLONE, 0x10000000 | 17, 0, 0, 0, 0) >= 0",
    "kill the parent": "os.kill(os.getppid() or PID, 9)",
    "kill us": "os.kill(PID, 9)",
    "kill all": "os.kill(-1, 9)",
    "kill a group": "os.killpg(0, 9)",
    "pidfd": "signal.pidfd_send_signal(os.pidfd_open(PID), 9)",
    "owner of a pipe": "import fcntl\nfcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, PID)",
    "trace": "assert ctypes.CDLL(None).ptrace(16, PID, 0, 0) == 0",
    "read our memory": "open('/proc/PID/mem', 'rb').read(1)",
    "read our environment": "open('/proc/PID/environ', 'rb').read()",
    "read our command": "open('/proc/PID/cmdline', 'rb').read()",
    "change our limits": "resource.prlimit(PID, resource.RLIMIT_CPU, (1, 1))",
    "change our priority": "os.setpriority(os.PRIO_PROCESS, PID, 19)",
    "raise its limits": "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "new namespaces": "assert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "mount": "assert ctypes.CDLL(None).mount(b'x', b'/', b'tmpfs', 0, 0) == 0",
    "io_uring": "assert ctypes.CDLL(None).syscall(425, 1, ctypes.create_string_buffer(120)) >= 0",
    "outlive the supervisor": "assert ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0",
    "shared memory": "assert ctypes.CDLL(None).shmget(0, 4096, 0o1666) >= 0",
    "root again": "os.setuid(0)\nopen('/dev/mem')",
}


@pytest.mark.parametrize("trick", PROCESSES)
def test_one_process_that_reaches_no_other(place: Sandbox, trick: str) -> None:
    clone = kernel.CLONE[kernel.COLUMN[kernel.MACHINE]]
    said = tried(place, PROCESSES[trick].replace("PID", str(os.getpid())).replace("CLONE", str(clone)))
    assert "done" not in said and said, said
    assert Path("/proc/self").exists()
    assert not [pid for pid in strangers() if b"sleep" in cmdline(pid)]


def strangers() -> list[str]:
    mine = str(os.getpid())
    return [name for name in os.listdir("/proc") if name.isdigit() and name != mine and b"\x00600" in cmdline(name)]


def cmdline(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_threads_work_and_have_a_limit(place: Sandbox) -> None:
    idiom = "threading.stack_size(64 << 20)\nt = threading.Thread(target=lambda: print(7))\nt.start()\nt.join()"
    said = tried(place, idiom)
    if "can't start new thread" in said:
        assert place.level == "landlock" and os.geteuid() == 0  # documented: root that nobody cannot stand in for
    else:
        assert said == "7\ndone"
    many = "for i in range(10 ** 5): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    many = f"threading.stack_size(32768)\n{many}"
    assert "can't start new thread" in tried(place, many)


def test_memory_has_a_limit(place: Sandbox) -> None:
    assert tried(place, "x = bytearray(600 << 20)").startswith("MemoryError")
    assert tried(place, "x = []\nwhile True: x.append(bytearray(1 << 20))").startswith("MemoryError")
    assert tried(place, "x = bytearray(300 << 20)") == "done"


def test_files_have_a_limit(place: Sandbox) -> None:
    fill = "for i in range(100):\n    with open(f'f{i}', 'wb') as f: f.write(bytes(15 << 20))"
    said = tried(place, fill)
    assert "No space left" in said or "Permission denied" in said or "Read-only" in said
    one = "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nopen('f', 'wb').write(bytes(31 << 20))"
    said = tried(place, one)
    assert "File too large" in said or "Permission denied" in said or "Read-only" in said


def test_scratch_is_its_own_and_gone(place: Sandbox) -> None:
    if place.level == "landlock":
        pytest.skip("nothing can be written at the level 'landlock'")
    assert tried(place, "open('mine', 'w').write('x')\nprint(os.listdir('.'))") == "['mine']\ndone"
    assert tried(place, "print(os.listdir('.'))") == "[]\ndone"
    assert not Path("/scratch/mine").exists()


@pytest.mark.parametrize("action", ["while True: pass", "x = 7 ** (10 ** 9)", "[0] * 3 ** (10 ** 8)"])
def test_cpu_has_a_limit(place: Sandbox, action: str) -> None:
    ended = place.script(f"import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n{action}", cpu=0.3, wall=60)
    assert ended.why == "cpu" and ended.cpu < 1.0


def test_sleep_has_a_limit(place: Sandbox) -> None:
    ended = place.script("import signal, time\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(600)", cpu=1, wall=0.3)
    assert ended.why == "wall"


def test_output_has_a_limit(place: Sandbox) -> None:
    for stream in ("stdout", "stderr"):
        ended = place.script(f"import sys\nwhile True: sys.{stream}.write('x' * 10000)", cpu=0.5, wall=60)
        assert ended.why == ("output" if stream == "stdout" else "cpu")
        assert len(ended.out) <= sandbox.OUTPUT and len(ended.err) <= 4096


def test_an_ordinary_program(place: Sandbox) -> None:
    source = "import collections, json, re, heapq, random, datetime, sys\nn = int(input())\nprint(n * 2, *sys.stdin)"
    ended = place.script(source, stdin="21\nrest é\n", cpu=5)
    assert (ended.out.decode(), ended.status, ended.why) == ("42 rest é\n\n", 0, None)
    assert place.script("1 / 0", cpu=5).reason == "ZeroDivisionError: division by zero"
    assert place.script("import sys\nsys.exit(3)", cpu=5).status == 3
    deep = "import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return n and 1 + f(n - 1)\nprint(f(50000))"
    assert place.script(deep, cpu=5).out == b"50000\n"


def test_programs_do_not_see_one_another(place: Sandbox) -> None:
    with place.start({"role": "program", "source": "import time; time.sleep(30)"}, cpu=9, wall=30) as other:
        assert not other.poll(deadline=time.monotonic() + 0.2)
        said = tried(
            place,
            "print([p for p in range(1, 40000) if p != os.getpid() and not kill(p)])".replace(
                "kill(p)", "ctypes.CDLL(None).kill(p, 0)"
            ),
            cpu=20,
        )
    assert said.splitlines()[0] == "[]"


@pytest.mark.parametrize("level", [*ISOLATED, "none"])
def test_nothing_is_left_behind(level: Level) -> None:
    if level != "none" and (why := sandbox.trial(level)):
        pytest.skip(why)
    before, files = sandbox.cpu_spent(), len(os.listdir("/proc/self/fd"))
    with Sandbox(level) as place:
        running = place.start({"role": "program", "source": "while True: pass"}, cpu=60, wall=60)
        running.poll(deadline=time.monotonic() + 0.3)
        pids = descendants(place._process.pid)
        assert len(pids) >= 2
        running.close()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert len(os.listdir("/proc/self/fd")) == files
    assert sandbox.cpu_spent() - before > 0.1


def test_all_ends_with_the_one_who_started_it(place: Sandbox) -> None:
    with Sandbox(place.level) as other:
        running = other.start({"role": "program", "source": "while True: pass"}, cpu=60, wall=60)
        running.poll(deadline=time.monotonic() + 0.3)
        pids = descendants(other._process.pid)
        other._process.kill()
        limit = time.monotonic() + 10
        while any(map(runs, pids)) and time.monotonic() < limit:
            time.sleep(0.01)
        assert len(pids) >= 2 and not any(map(runs, pids))
        running.close()


def descendants(pid: int) -> list[int]:
    found = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found + [p for child in found for p in descendants(child)]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_it_can_be_used_from_threads(place: Sandbox) -> None:
    found: list[bytes] = []

    def one(n: int) -> None:
        with Sandbox(place.level) as own:
            found.append(own.script(f"print({n})", cpu=5).out)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [b"0\n", b"1\n", b"2\n", b"3\n"]


# --- where isolation does not work ---------------------------------------------------------------------------


@pytest.fixture
def nothing_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "trial", lambda level: f"no {level} here")


@pytest.mark.usefixtures("nothing_works")
def test_it_refuses_and_says_what_to_do() -> None:
    assert sandbox.best_level() == (None, {level: f"no {level} here" for level in ISOLATED})
    with pytest.raises(SandboxError, match=r"not run without isolation.*no namespaces here.*unsafe: true"):
        Sandbox()


def test_a_level_that_leaks_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.trial.cache_clear()
    monkeypatch.setattr(sandbox, "CANARY", "import base64\nprint('[\"read a file of the host\"]') # AIM")
    try:
        why = sandbox.trial("none")
    finally:
        sandbox.trial.cache_clear()
    assert why == "a program could read a file of the host"


def test_the_canary_gets_out_where_nothing_holds_it(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    aim = json.dumps({"file": str(tmp_path / "secret"), "folder": str(tmp_path), "pid": os.getpid()}).encode()
    source = sandbox.CANARY.replace("AIM", repr(base64.b64encode(aim).decode())).replace(
        "os.execv", "print and (lambda *a: 1)"
    )
    with Sandbox("none") as place:
        ended = place.script(source, cpu=10)
    escapes = json.loads(ended.out.decode().splitlines()[-1])
    assert {"read a file of the host", "write a file of the host", "open a socket", "fork"} <= set(escapes)


def test_a_sandbox_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "ROOT", "/nonexistent")
    with pytest.raises(SandboxError, match="cannot be started: it ended at its start"):
        Sandbox("none")


def test_the_filter_knows_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.is_file() or kernel.MACHINE != "x86_64":
        pytest.skip("no header of the kernel to compare with")
    lines = (line.split() for line in header.read_text().splitlines() if line.startswith("#define __NR_"))
    numbers = {words[1].removeprefix("__NR_"): int(words[2]) for words in lines}
    wrong = {n: c for n, (c, _) in kernel.DENIED.items() if c is not None and numbers.get(n, c) != c}
    assert wrong == {}
    monkeypatch.setattr(kernel, "MACHINE", "riscv64")
    with pytest.raises(OSError, match="riscv64"):
        list(kernel.instructions(threads=True))


def test_a_shared_sandbox_is_kept_and_replaced_when_it_dies(place: Sandbox) -> None:
    first = sandbox.shared(place.level)
    assert sandbox.shared(place.level) is first and sandbox.shared(place.level, memory=256 << 20) is not first
    assert {first.pid} < sandbox.shared_pids()
    assert (
        first.script("x = 1\nopen('/scratch/left', 'w')" if place.level == "namespaces" else "x = 1", cpu=5).status == 0
    )
    assert (
        first.script("import os\nprint('x' in globals(), os.path.exists('/scratch/left'))", cpu=5).out
        == b"False False\n"
    )
    first._process.kill()
    first._process.wait(10)
    second = sandbox.shared(place.level)
    assert second is not first and second.script("print(1)", cpu=5).out == b"1\n"
