"""Verifier files that misbehave in every way that a test needs, written where a project has its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlvr.types import Task
from rlvr.verify.pool import VerifierPool
from rlvr.verify.specs import VerifierSpec, verifier_specs

NASTY = """
import os, signal, subprocess, sys, time, math, ctypes

VERSION = "nasty-7"
kept = []


class Odd(BaseException):
    pass


def verify(response, answer, task, config):
    word, _, rest = response.partition(" ")
    if word == "echo":
        return {"score": float(rest), "answer_key": f"{task['id']}/{rest}", "detail": str(os.getpid())}
    if word == "spin":
        while True:
            pass
    if word == "spin_in_c":  # one call that holds the interpreter
        return len(str(7 ** (10 ** 8)))
    if word == "spin_below":  # CPU seconds of a process of its own
        subprocess.run(["sh", "-c", "ulimit -t 1; while :; do :; done"])
    if word == "sleep":
        time.sleep(float(rest))
        return True
    if word == "sleep_once":  # only in the first process that sees it
        if not os.path.exists(rest):
            open(rest, "w").close()
            time.sleep(600)
        return True
    if word == "fork":  # a sleeper, then a hang
        if os.fork() == 0:
            time.sleep(600)
        subprocess.Popen(["sleep", "600"], env={}, start_new_session=True)
        open(rest, "w").close()
        time.sleep(600)
    if word == "leave":  # sleepers left behind by a verdict that is fine
        subprocess.Popen(["sleep", "601"], start_new_session=True)
        return True
    if word == "twin":  # the copy runs on into our code, and first
        if os.fork():
            time.sleep(0.2)
        return True
    if word == "raise":
        raise ValueError("bad " + rest)
    if word == "odd":
        raise Odd("not an Exception")
    if word == "exit":
        sys.exit(3)
    if word == "_exit":
        os._exit(4)
    if word == "segv":
        ctypes.string_at(0)
    if word == "memory":
        return len(bytearray(8 << 30))
    if word == "grow":
        kept.append(b"x" * (300 << 20))
        return True
    if word == "burn":  # CPU seconds, then a verdict
        started = time.process_time()
        while time.process_time() < started + float(rest):
            pass
        return True
    if word == "pid":
        return {"score": 1, "detail": str(os.getpid())}
    if word == "print":
        print("\\x05\\x00\\x00\\x00hello" * 1000, flush=True)
        os.write(1, b"{}" * 100000)
        sys.stderr.write("x" * 100000)
        return True
    if word == "secrets":
        return {"score": 1, "detail": ",".join(sorted(os.environ))}
    if word == "torch":
        return "torch" in sys.modules
    if word == "return":
        return eval(rest)
    return False


def check_answer(answer, config):
    if answer == "crash":
        os._exit(5)
    return "it is bad" if answer == "bad" else None
"""


def write_verifier(project: Path, text: str = NASTY, *, name: str = "nasty") -> dict[str, VerifierSpec]:
    """Write `rewards/<name>.py` into a project and return what a pool takes."""
    (project / "rewards").mkdir(parents=True, exist_ok=True)
    (project / "rewards" / f"{name}.py").write_text(text)
    return specs(name, project=project)


def specs(name: str, *, project: Path, **options: Any) -> dict[str, VerifierSpec]:
    from rlvr.recipe import Verifier

    return verifier_specs(Verifier(name=name, **options), project=project)


def task(answer: str = "1", **fields: Any) -> Task:
    return Task(**({"id": "t", "prompt": "?", "answer": answer} | fields))


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def child_pid(pool: VerifierPool, worker: int = 0) -> int:
    return pool._children[worker].pid
