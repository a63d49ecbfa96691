"""The set-up: never a CUDA build of torch for the CPU, companions that do not fit are removed, and it is repeatable."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "setup_env.py"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """tools/setup_env.py, with `.venv` in an empty folder."""
    spec = importlib.util.spec_from_file_location("setup_env", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").touch()
    monkeypatch.setattr(module, "VENV", venv)
    monkeypatch.setattr(module, "STAMP", venv / "stamp")
    monkeypatch.setattr(module, "LOG", venv / "log")
    monkeypatch.setattr(module, "PYTHON", venv / "bin" / "python")
    return module


def offering(*wanted: str) -> object:
    """A pip whose sources have a CPU build only when all of `wanted` are among the options."""
    return lambda options: set(wanted) <= set(options)


def test_a_cpu_build_that_pip_already_finds_needs_no_index(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "offers_cpu_build", offering())
    assert tool.cpu_options() == []


def test_otherwise_the_cpu_index_is_added(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "offers_cpu_build", offering("--extra-index-url", tool.CPU_INDEX))
    assert tool.cpu_options() == ["--extra-index-url", tool.CPU_INDEX]


def test_no_cpu_build_anywhere_stops_before_anything_is_installed(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Sequence[str]] = []
    monkeypatch.setattr(tool, "offers_cpu_build", lambda options: False)
    monkeypatch.setattr(tool, "run", lambda command, **env: ran.append(command))
    with pytest.raises(SystemExit, match=r"no CPU build of torch 2\.13\.0.*\n.*was not installed"):
        tool.install("cpu")
    assert ran == []


def test_companions_of_another_build_are_removed(tool: ModuleType) -> None:
    found = {"torch": "2.13.0+cpu", "torchvision": "0.28.0", "torchaudio": "2.13.0+cpu", "torchcodec": "0.14.0+cu130"}
    assert tool.mismatched(found) == ["torchvision", "torchcodec"]
    assert tool.mismatched({"torch": "2.13.0", "torchvision": "0.28.0"}) == []  # as on a Mac
    assert tool.mismatched({"torch": "2.13.0+cpu"}) == []


def test_nothing_is_done_when_nothing_changed(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    tool.STAMP.write_text(json.dumps({"extra": "cpu", "key": tool.key("cpu"), "python": "any"}))
    monkeypatch.setattr("sys.argv", ["setup_env.py"])
    monkeypatch.setattr(tool, "check_machine", lambda extra: None)
    monkeypatch.setattr(tool, "run", lambda command, **env: pytest.fail(f"ran {command}"))
    assert tool.main() is None


def test_a_gpu_environment_is_kept_by_a_plain_setup(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    tool.STAMP.write_text(json.dumps({"extra": "gpu", "key": tool.key("gpu"), "python": "any"}))
    monkeypatch.setattr("sys.argv", ["setup_env.py"])
    monkeypatch.setattr(tool, "check_machine", seen.append)
    tool.main()
    assert seen == ["gpu"]


def test_the_key_follows_pyproject_and_extra(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text("a = 1")
    before = tool.key("cpu")
    assert tool.key("cpu") == before != tool.key("gpu")
    (tmp_path / "pyproject.toml").write_text("a = 2")
    assert tool.key("cpu") != before


def test_a_failing_step_shows_its_output_and_where_the_rest_is(tool: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"(?s)no wheel for you.*log"):
        tool.run(["sh", "-c", "echo no wheel for you; exit 1"])


def test_a_machine_without_compiler_is_told_before_the_download(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match=r"C\+\+ compiler"):
        tool.check_machine("cpu")
