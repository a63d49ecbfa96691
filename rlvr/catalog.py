"""A name in a recipe -> a file: the user's project first, then the catalogue that we ship.

Catalogue folders (`recipes/`, `rewards/`, `data/`) hold plug-in files, not packages: files are loaded by
location under a private module name, so that `data` and `rewards` never become importable.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from rlvr.errors import ConfigError
from rlvr.words import did_you_mean

Folder = Literal["recipes", "rewards", "data"]
SUFFIXES: dict[str, tuple[str, ...]] = {"recipes": (".yaml",), "rewards": (".py",), "data": (".py", ".yaml")}
WHAT = {"recipes": "recipe", "rewards": "verifier", "data": "dataset"}
BROKEN = (SyntaxError, ImportError, NameError, AttributeError, TypeError, ValueError, LookupError, OSError)


@dataclass(frozen=True)
class Found:
    """Where a plug-in's code is. `attr` is set when the recipe named an object inside it."""

    name: str  # as the recipe wrote it
    path: Path
    digest: str  # sha256 of the file, hex
    attr: str | None = None
    module: str | None = None  # `package.module:name`: imported as usual
    shadows: Path | None = None  # the shipped file of the same name that this project file hides


def shipped(folder: Folder) -> Path:
    """Our own catalogue folder: beside the package in a source checkout, inside it in a wheel."""
    packaged = Path(__file__).parent / "_catalogue" / folder
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / folder


def digest(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names(folder: Folder, *, project: Path) -> list[str]:
    """Every name that can be written for `folder`, sorted; sub-folders with `/`."""
    found = {
        str(file.relative_to(root).with_suffix(""))
        for root in (project / folder, shipped(folder))
        for suffix in SUFFIXES[folder]
        for file in root.rglob(f"*{suffix}")
        if not any(part.startswith(("_", ".")) for part in file.relative_to(root).parts)
    }
    return sorted(found)


def find(folder: Folder, name: str, *, project: Path) -> Found:
    """The file that `name` means.

    `math` is `<project>/rewards/math.py`, then the shipped one; `path/file.py` and `path/file.py:name` are
    files, relative to the project; `package.module:name` is imported. Raises ConfigError with what exists.
    """
    if name.partition(":")[0].endswith(".py") or ":" in name:
        return find_object(WHAT[folder], name, project=project)
    own = _in_folder(project / folder, name, SUFFIXES[folder])
    ours = _in_folder(shipped(folder), name, SUFFIXES[folder])
    path = own or ours
    if path is None:
        raise unknown(WHAT[folder], name, names(folder, project=project), where=f"{folder}/")
    hides = ours if own and ours and not own.samefile(ours) else None
    return Found(name, path, digest(path), shadows=hides)


def _in_folder(root: Path, name: str, suffixes: Sequence[str]) -> Path | None:
    return next((p for s in suffixes if (p := root / f"{name}{s}").is_file()), None)


def find_object(what: str, name: str, *, project: Path) -> Found:
    """`path/file.py`, `path/file.py:name` (relative to the project) or `package.module:name`; `what` is for errors."""
    file, _, attr = name.partition(":")
    if file.endswith(".py"):
        path = project / Path(file).expanduser()
        if not path.is_file():
            raise ConfigError(f"{what} {name!r}: no such file: {path}")
        return Found(name, path, digest(path), attr or None)
    try:
        spec = importlib.util.find_spec(file)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise ConfigError(
            f"{what} {name!r}: python finds no module {file!r}; "
            "write `path/to/file.py:name`, `package.module:name` or the name of a file in a catalogue folder"
        )
    return Found(name, Path(spec.origin), digest(Path(spec.origin)), attr or None, module=file)


def unknown(what: str, name: str, known: Sequence[str], *, where: str) -> ConfigError:
    """The error about a name that nothing has, with the closest one that exists."""
    hint = did_you_mean(name, known)
    return ConfigError(f"unknown {what} {name!r}{hint or ';'} known in {where}: {', '.join(known) or 'none'}")


def load(found: Found) -> Any:
    """The module of a found file, or the object in it that `attr` names.

    Raises ConfigError where the file cannot be executed or holds no such object.
    """
    try:
        module = importlib.import_module(found.module) if found.module else _load_file(found)
    except BROKEN as error:
        raise ConfigError(f"{found.path}: cannot be loaded: {type(error).__name__}: {error}") from error
    if found.attr is None:
        return module
    if found.attr not in vars(module):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise ConfigError(f"{found.path}: has no {found.attr!r}{did_you_mean(found.attr, public)}")
    return vars(module)[found.attr]


def _load_file(found: Found) -> ModuleType:
    """Execute a file under a private name that depends on its content; the same file is executed once."""
    place = hashlib.sha256(str(found.path.resolve()).encode()).hexdigest()[:8]
    name = f"_rlvr_plugin_{found.path.stem}_{place}_{found.digest[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, found.path)
    if spec is None or spec.loader is None:
        raise ImportError(f"not a Python file: {found.path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up while it is being executed
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
