"""The documents speak of what exists: names, files, tests, make targets, commands, keys; their examples work."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from rlvr.catalog import find
from rlvr.cli.main import VERBS
from rlvr.methods import EXPLORE, method_class
from rlvr.plugins import load_plugin
from rlvr.recipe import Recipe
from rlvr.types import Group, Task
from tests.unit.test_ratchets import models_in

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "AGENTS.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDERS = "rlvr|recipes|rewards|data|launch|docs|tests|tools|benchmarks"
PATH = re.compile(rf"(?<![\w./])(?:{FOLDERS})/[\w./*-]*[\w/]")
DOTTED = re.compile(r"\brlvr(?:\.[A-Za-z_]\w*)+")
LATER = {"rewards/last_word.py", "rlvr/_catalogue"}  # what an example tells the reader to write; in a wheel alone
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@each_page
def test_paths_exist(page: Path) -> None:
    named = {path.rstrip("/") for path in PATH.findall(text(page))} - LATER
    assert [p for p in sorted(named) if "NAME" not in p and not any(ROOT.glob(p))] == []


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", text(page))
    assert [t for t in targets if "://" not in t and not (page.parent / t).exists()] == []


@each_page
def test_tests_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", text(page))
    assert [f"{file}::{test}" for file, test in named if test not in defined(ROOT / file)] == []


def defined(file: Path) -> set[str]:
    """Names that a module defines or imports at its top level."""
    names: set[str] = set()
    for node in ast.parse(text(file)).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def exists(dotted: str) -> bool:
    """Whether `rlvr.a.b.Name` is a module, or a name at the top level of one. Imports nothing."""
    parts = dotted.split(".")
    for n in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:n])
        module = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
        if module.is_file():
            return n == len(parts) or parts[n] in defined(module)
    return False


@each_page
def test_dotted_names_exist(page: Path) -> None:
    assert [name for name in DOTTED.findall(text(page)) if not exists(name)] == []


def test_a_name_that_is_gone_is_seen() -> None:
    assert exists("rlvr.types.Task") and exists("rlvr.explore.base") and not exists("rlvr.types.Tusk")
    assert PATH.findall("see `rlvr/gone.py`.") == ["rlvr/gone.py"] and PATH.findall("a/rlvr/x.py") == []


@each_page
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", text(ROOT / "Makefile"), flags=re.MULTILINE))
    named = re.findall(r"(?:^\s*|`)make ([a-z]+)", text(page), flags=re.MULTILINE)
    assert {"quickstart", "test", "setup"} <= targets and set(named) <= targets


@each_page
def test_commands_exist(page: Path) -> None:
    named = re.findall(r"(?:`|bin/|^\s*)rlvr ([a-z]+)\b", text(page), flags=re.MULTILINE)
    assert [verb for verb in named if verb not in VERBS] == []


def test_recipes_that_commands_name_exist() -> None:
    named = re.findall(r"(?:rlvr (?:train|sft|show|check)|launch/\S+) ([a-z][\w./]+)", README)
    folder = ROOT / "recipes"
    known = {file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml")}
    assert {"quickstart", "grpo/tiny_gsm8k_cpu"} <= set(named) and set(named) <= known


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_readme_has_the_two_commands_and_the_small_examples() -> None:
    assert "make quickstart" in README and "make test" in README
    verifier, _ = blocks("python")
    assert len(verifier.strip().splitlines()) < 15
    assert "not yet been run on a GPU" in " ".join(README.replace("*", "").split())


def test_the_readme_verifier_works(tmp_path: Path) -> None:
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "last_word.py").write_text(blocks("python")[0])
    plugin = load_plugin(find("rewards", "last_word", project=tmp_path), {"lower": True}, function="verify")
    assert plugin.function("It is Seven", "seven", config=plugin.config) is True
    assert plugin.function("", "seven", config=plugin.config) is False


def test_the_readme_method_works(tmp_path: Path) -> None:
    (tmp_path / "my_method.py").write_text(blocks("python")[1])
    cls = method_class(EXPLORE, "my_method.py:SoftNegatives", project=tmp_path)
    addon = cls(cls.Config(factor=0.3))
    advantages = tuple(np.array([0.0, a, a], dtype=np.float32) for a in (1.0, -1.0))
    group = Group(task=Task(id="t", prompt="p", answer="a"), draw=0, trajectories=(), advantages=advantages)
    (changed,) = addon.advantage([group])
    assert changed.advantages is not None
    np.testing.assert_allclose(changed.advantages, [[0, 1, 1], [0, -0.3, -0.3]], rtol=1e-6)
    assert addon.observe([group], {}) == {"active": 1.0}


def test_the_readme_recipe_is_one(tmp_path: Path) -> None:
    from rlvr.config import load

    (recipe,) = blocks("yaml")
    assert yaml.safe_load(recipe)["extends"] == "../base.yaml"
    for file in (ROOT / "recipes").glob("*.yaml"):
        (tmp_path / file.name).write_text(text(file))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "r.yaml").write_text(recipe)
    assert load(tmp_path / "mine" / "r.yaml").recipe.explore[0].kind == "clip_cov"


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every key with its default."""
    for name, field in model.model_fields.items():
        inner = list(models_in(field.annotation))
        for child in inner:
            yield from fields(child, f"{prefix}{name}.")
        if not inner:
            yield f"{prefix}{name}", field.get_default(call_default_factory=True)


def documented() -> Mapping[str, str]:
    rows = re.findall(r"^\| `([\w.]+)` \| (\S.*?) \|", text(ROOT / "docs/configuration.md"), flags=re.MULTILINE)
    return {key: default.strip("`") for key, default in rows}


def test_every_key_is_documented_with_its_default() -> None:
    expected = {key: "required" if v is PydanticUndefined else json.dumps(v) for key, v in fields(Recipe)}
    assert dict(documented()) == expected
