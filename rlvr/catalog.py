"""A name in a recipe -> a file: the user's project first, then the catalogue that we ship.

Catalogue folders (`recipes/`, `rewards/`, `data/`) hold plug-in files, not packages: files are loaded by
location under a private module name, so that `data` and `rewards` never become importable.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from rlvr.errors import ConfigError
from rlvr.explore.base import AddOn, AddOnConfig
from rlvr.recipe import AddOnSpec, Recipe, SftRecipe
from rlvr.words import Complaint, did_you_mean, validate

Folder = Literal["recipes", "rewards", "data"]
SUFFIXES: dict[str, tuple[str, ...]] = {"recipes": (".yaml",), "rewards": (".py",), "data": (".py", ".yaml")}
WHAT = {"recipes": "recipe", "rewards": "verifier", "data": "dataset", "explore": "add-on"}
EXPLORE = Path(__file__).parent / "explore"
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
    file, colon, attr = name.partition(":")
    if file.endswith(".py"):
        return _found_file(folder, name, project / Path(file).expanduser(), attr or None)
    if colon:
        return _found_module(folder, name, file, attr)
    own = _in_folder(project / folder, name, SUFFIXES[folder])
    ours = _in_folder(shipped(folder), name, SUFFIXES[folder])
    path = own or ours
    if path is None:
        raise _unknown(WHAT[folder], name, names(folder, project=project), where=f"{folder}/")
    hides = ours if own and ours and not own.samefile(ours) else None
    return Found(name, path, digest(path), shadows=hides)


def _in_folder(root: Path, name: str, suffixes: Sequence[str]) -> Path | None:
    return next((p for s in suffixes if (p := root / f"{name}{s}").is_file()), None)


def _found_file(folder: str, name: str, path: Path, attr: str | None) -> Found:
    if not path.is_file():
        raise ConfigError(f"{WHAT[folder]} {name!r}: no such file: {path}")
    return Found(name, path, digest(path), attr)


def _found_module(folder: str, name: str, module: str, attr: str) -> Found:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise ConfigError(
            f"{WHAT[folder]} {name!r}: python finds no module {module!r}; "
            "write `path/to/file.py:name`, `package.module:name` or the name of a file in a catalogue folder"
        )
    return Found(name, Path(spec.origin), digest(Path(spec.origin)), attr or None, module=module)


def _unknown(what: str, name: str, known: Sequence[str], *, where: str) -> ConfigError:
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


def plugins(recipe: Recipe | SftRecipe, *, project: Path) -> dict[str, Found]:
    """Every plug-in file of a recipe by its dotted key ("verifier", "data.train.0", "explore.1").

    Raises ConfigError for the first name that does not exist (`check.problems` lists all).
    """
    found = {f"data.train.{i}": find("data", s.name, project=project) for i, s in enumerate(recipe.data.train)}
    found |= {f"data.eval.{i}": find("data", s.name, project=project) for i, s in enumerate(recipe.data.eval)}
    if isinstance(recipe, Recipe):
        found["verifier"] = find("rewards", recipe.verifier.name, project=project)
        found |= {f"explore.{i}": addon_found(s.kind, project=project) for i, s in enumerate(recipe.explore)}
    return found


def addon_kinds() -> list[str]:
    """Kinds of the shipped add-ons: files of `rlvr/explore/` that state their own name as `kind`."""
    return sorted(
        file.stem
        for file in EXPLORE.glob("*.py")
        if re.search(rf"""\bkind\b[^=\n]*=\s*["']{file.stem}["']""", file.read_text(encoding="utf-8"))
    )


def addon_found(kind: str, *, project: Path) -> Found:
    """The file behind `kind`. Raises ConfigError listing the kinds that exist."""
    if ":" in kind:
        file, _, attr = kind.partition(":")
        if file.endswith(".py"):
            return _found_file("explore", kind, project / Path(file).expanduser(), attr)
        return _found_module("explore", kind, file, attr)
    if kind not in addon_kinds():
        where = "rlvr/explore/ (or write `my_file.py:MyAddOn`)"
        raise _unknown(WHAT["explore"], kind, addon_kinds(), where=where)
    path = EXPLORE / f"{kind}.py"
    return Found(kind, path, digest(path), module=f"rlvr.explore.{kind}")


def addon_class(kind: str, *, project: Path) -> type[AddOn]:
    """The AddOn subclass that `kind` names: a file of `rlvr/explore/`, or `my_file.py:MyAddOn`."""
    found = addon_found(kind, project=project)
    loaded = load(found)
    if found.attr is not None:
        if not (isinstance(loaded, type) and issubclass(loaded, AddOn)):
            raise ConfigError(f"{found.path}: {found.attr!r} is not a subclass of rlvr.explore.base.AddOn")
        return loaded
    for value in vars(loaded).values():
        if isinstance(value, type) and issubclass(value, AddOn) and value.kind == kind:
            return value
    raise ConfigError(f"{found.path}: holds no AddOn with kind = {kind!r}")


def read_addons(
    specs: Sequence[AddOnSpec], *, project: Path
) -> tuple[list[tuple[type[AddOn], AddOnConfig]], list[Complaint]]:
    """Class and validated Config of each spec that is right, and a complaint for each thing that is wrong."""
    pairs: list[tuple[type[AddOn], AddOnConfig]] = []
    complaints: list[Complaint] = []
    for i, spec in enumerate(specs):
        try:
            cls = addon_class(spec.kind, project=project)
        except ConfigError as error:
            complaints += [Complaint(f"explore.{i}.kind", text) for text in error.problems]
            continue
        config, wrong = validate(cls.Config, spec.options)
        complaints += [c.below(f"explore.{i}") for c in wrong]
        if config is not None:
            pairs.append((cls, config))
    return pairs, complaints


def build_addons(specs: Sequence[AddOnSpec], *, seed: int, project: Path) -> list[AddOn]:
    """One instance per spec, in order, with unique names ("kind", "kind#2", ...).

    Raises ConfigError with every unknown kind and every bad option of all of them.
    """
    pairs, complaints = read_addons(specs, project=project)
    if complaints:
        raise ConfigError([f"{c.key}: {c.text}" for c in complaints])
    built: list[AddOn] = []
    for cls, config in pairs:
        label = cls.kind or cls.__name__
        number = 1 + sum(other.name.partition("#")[0] == label for other in built)
        built.append(cls(config, name=label if number == 1 else f"{label}#{number}", seed=seed))
    return built
