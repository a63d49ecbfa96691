"""Who may import whom: docs/architecture.md, "Layers". Imports inside functions and for typing count as well."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "rlvr"
HEAVY = ("torch", "ray", "vllm", "deepspeed", "transformers")

BASE = ("rlvr", "rlvr.types", "rlvr.errors", "rlvr.recipe", "rlvr.words", "rlvr.seeds", "rlvr.config", "rlvr.catalog")
PLUGINS = (*BASE, "rlvr.plugins")
SEAM = (*BASE, "rlvr.engine.protocols", "rlvr.explore.base", "rlvr.objectives.*")
BASES = ("rlvr.advantages.base", "rlvr.surrogates.base", "rlvr.corrections.base")
METHOD = (*BASE, "rlvr.explore.base", "rlvr.objectives.*")  # siblings never import each other
FLOW = (
    *SEAM, "rlvr.surrogates.base", "rlvr.rollout.*", "rlvr.buffer", "rlvr.batching", "rlvr.credit", "rlvr.update",
    "rlvr.reference",
)  # fmt: skip

# The first row that matches a module says what it may import of ours. The last rows are the top layer.
MAY_IMPORT: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("rlvr", ()),
    ("rlvr.types", ()),
    ("rlvr.errors", ()),
    ("rlvr.recipe", ()),
    ("rlvr.words", ("rlvr.errors",)),
    ("rlvr.seeds", ()),
    ("rlvr.objectives.*", ("rlvr.objectives.*", "rlvr.recipe")),
    ("rlvr.engine.protocols", ("rlvr.types",)),
    ("rlvr.explore.base", ("rlvr.types", "rlvr.recipe", "rlvr.objectives.*")),
    ("rlvr.advantages.base", METHOD),
    ("rlvr.surrogates.base", METHOD),
    ("rlvr.corrections.base", METHOD),
    ("rlvr.advantages.*", (*METHOD, "rlvr.advantages.base", "rlvr.advantages.rows")),
    ("rlvr.surrogates.*", (*METHOD, "rlvr.surrogates.base", "rlvr.surrogates.group")),
    ("rlvr.corrections.*", (*METHOD, "rlvr.corrections.base")),
    ("rlvr.methods", (*BASE, "rlvr.explore.base", *BASES)),
    ("rlvr.config", BASE),
    ("rlvr.catalog", BASE),
    ("rlvr.explore.*", (*BASE, "rlvr.explore.base", "rlvr.explore.hashing", "rlvr.objectives.*", "rlvr.rollout.*")),
    ("rlvr.plugins", BASE),
    ("rlvr.verify*", (*PLUGINS, "rlvr.plugins", "rlvr.engine.protocols", "rlvr.verify*")),
    ("rlvr.engine.*", (*BASE, "rlvr.methods", "rlvr.explore.base", "rlvr.objectives.*", "rlvr.engine.*")),
    ("rlvr.rollout.*", FLOW),
    ("rlvr.buffer", FLOW),
    ("rlvr.batching", FLOW),
    ("rlvr.packing", ("rlvr.types",)),
    ("rlvr.credit", FLOW),
    ("rlvr.update", FLOW),
    ("rlvr.reference", FLOW),
    ("rlvr.parts", FLOW),
    ("rlvr.loop", (*FLOW, "rlvr.parts")),
    ("rlvr.checkpoint", (*FLOW, "rlvr.track.*")),
    ("rlvr.track.*", (*FLOW, "rlvr.track.*")),
    ("rlvr.plan", BASE),
    ("rlvr.cluster*", ("*",)),
    ("rlvr.evaluate.*", ("*",)),
    ("rlvr.*", ("*",)),
)

# Who may import these packages, anywhere in a file. Others reach them through the engines or the cluster.
ONLY = {
    "vllm": ("rlvr.engine.vllm_*", "rlvr.engine.weight_sync*"),
    "deepspeed": ("rlvr.engine.deepspeed_*", "rlvr.engine.weight_sync*"),
    "ray": ("rlvr.cluster*",),
}


def name_of(file: Path) -> str:
    """The dotted name of a module; of a package `rlvr.track.__init__`, so that `rlvr.track.*` fits it."""
    dotted = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    return "rlvr" if dotted == "rlvr.__init__" else dotted


MODULES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py")) if "_catalogue" not in file.parts}


def imported(file: Path) -> Iterator[str]:
    """Every module that the file imports, with `from a import b` as a.b where that is a module of ours, else a."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((name if name in MODULES else node.module) for name in inner)


def fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def allowed(module: str) -> tuple[str, ...]:
    return next(may for pattern, may in MAY_IMPORT if fnmatchcase(module, pattern))


def crossings(module: str, names: Iterator[str]) -> list[str]:
    """Imports of ours that the table does not allow to `module`."""
    ours = (name for name in names if name.split(".")[0] == "rlvr")
    return [name for name in ours if name != module and not fits(name, allowed(module))]


@pytest.mark.parametrize("module", MODULES)
def test_imports_stay_below(module: str) -> None:
    assert crossings(module, imported(MODULES[module])) == []


@pytest.mark.parametrize("module", MODULES)
def test_engines_and_ray_are_imported_in_their_places_alone(module: str) -> None:
    wrong = [n for n in imported(MODULES[module]) if not fits(module, ONLY.get(n.split(".")[0], ("*",)))]
    assert wrong == []


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("rlvr.objectives.")])
def test_objectives_import_torch_and_numpy_alone(module: str) -> None:
    known = {*sys.stdlib_module_names, "__future__", "numpy", "torch", "rlvr"}
    assert {n.split(".")[0] for n in imported(MODULES[module])} <= known


def test_the_rules_catch_what_they_forbid() -> None:
    assert crossings("rlvr.objectives.kl", iter(["rlvr.objectives.view", "rlvr.loop"])) == ["rlvr.loop"]
    assert crossings("rlvr.explore.clip_cov", iter(["rlvr.explore.entropy_bonus"])) == ["rlvr.explore.entropy_bonus"]
    assert crossings("rlvr.loop", iter(["rlvr.engine.vllm_sampler", "rlvr.engine.protocols"])) == [
        "rlvr.engine.vllm_sampler"
    ]
    assert not fits("rlvr.loop", ONLY["ray"]) and fits("rlvr.cluster", ONLY["ray"])


def loaded_by(code: str, names: tuple[str, ...]) -> list[str]:
    """Those of `names` that are in sys.modules of a fresh interpreter after `code`."""
    script = f"import sys\n{code}\nprint(*[n for n in {names!r} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=PACKAGE.parent, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("modules", ["rlvr, rlvr.config, rlvr.types", "rlvr.recipe, rlvr.catalog, rlvr.cli.main"])
def test_light_modules_load_no_engine(modules: str) -> None:
    assert loaded_by(f"import {modules}", HEAVY) == []


def test_the_probe_sees_a_loaded_module() -> None:
    assert loaded_by("import numpy", ("numpy", "torch")) == ["numpy"]
