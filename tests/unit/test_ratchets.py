"""Limits that keep the code readable. Raise one only in a commit that says why."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import types
import typing
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from rlvr.methods import FAMILIES
from rlvr.recipe import AddOnSpec, Plugin, Recipe

ROOT = Path(__file__).resolve().parents[2]
FILE_LINES = 400
FUNCTION_LINES = 60
LOOP_LINES = 150
AGENTS_LINES = 60
RECIPE_KEYS = 130
ANNOTATED = 0.9
PRINTING = ("rlvr/cli/", "rlvr/track/")  # what talks to a person

# Written in pieces, so that this file does not hold what it looks for.
PLACES = ("root", "home", "Users", "tmp", "work", "opt")
MACHINE = re.compile(rf"(?<![\w.])/({'|'.join(PLACES)})/\w")


def tracked() -> list[Path]:
    """Files under version control that still exist."""
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


def sources(*folders: str) -> list[Path]:
    found = (file for folder in folders for file in (ROOT / folder).rglob("*.py"))
    return sorted(file for file in found if "_catalogue" not in file.parts)


def short(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


OURS = sources("rlvr", "rewards", "data")
ALL = [*OURS, *sources("tests", "tools", "benchmarks")]
each_of_ours = pytest.mark.parametrize("file", OURS, ids=short)
each_file = pytest.mark.parametrize("file", ALL, ids=short)


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@each_file
def test_files_and_functions_are_short(file: Path) -> None:
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= (LOOP_LINES if short(file) == "rlvr/loop.py" else FILE_LINES)
    long = {f.name: n for f in functions(parse(file)) if (n := (f.end_lineno or 0) - f.lineno + 1) > FUNCTION_LINES}
    assert long == {}


def called(node: ast.AST) -> str:
    """The last part of the name that a call names, else nothing."""
    function = node.func if isinstance(node, ast.Call) else None
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def swallows(handler: ast.ExceptHandler, lines: list[str]) -> bool:
    """A handler that takes everything: never `except:` or Exception; BaseException handed on, or with its reason."""
    caught = handler.type or ast.Name("Exception")
    names = {node.id for node in ast.walk(caught) if isinstance(node, ast.Name)}
    if "BaseException" in names:
        hands_on = any(isinstance(node, ast.Raise) or called(node) == "set_exception" for node in ast.walk(handler))
        return not hands_on and "#" not in lines[handler.lineno - 1]
    return "Exception" in names


def bad_habits(source: str, *, may_print: bool) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler) and swallows(node, source.splitlines()):
            found.append(f"line {node.lineno}: catches everything")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "getattr" and len(node.args) + len(node.keywords) > 2:
                found.append(f"line {node.lineno}: getattr with a default hides a misspelt name")
            if node.func.id == "print" and not may_print:
                found.append(f"line {node.lineno}: print outside {' and '.join(PRINTING)}")
    return found


@each_of_ours
def test_no_bad_habits(file: Path) -> None:
    assert bad_habits(file.read_text(encoding="utf-8"), may_print=short(file).startswith(PRINTING)) == []


def test_bad_habits_are_seen() -> None:
    source = """
try: x = getattr(y, "z", None)
except Exception: print(1)
try: pass
except: pass
try: pass
except (ValueError, BaseException): pass
try: pass
except BaseException: raise
try: pass
except BaseException as e: # the parent must hear of it
    pass
"""
    assert [line.partition(":")[0] for line in bad_habits(source, may_print=False)] == [
        "line 3", "line 5", "line 7", "line 2", "line 3"
    ]  # fmt: skip
    assert len(bad_habits(source, may_print=True)) == 4


def annotations(tree: ast.AST) -> Iterator[bool]:
    """For every argument and every return: is it annotated? `self` and `cls` need none."""
    for function in functions(tree):
        a = function.args
        named = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
        yield from (arg.annotation is not None for arg in named if arg.arg not in ("self", "cls"))
        yield function.returns is not None


def test_annotated() -> None:
    known = [ok for file in OURS for ok in annotations(parse(file))]
    assert sum(known) / len(known) > ANNOTATED


def test_agents_file_is_short() -> None:
    assert len((ROOT / "AGENTS.md").read_text(encoding="utf-8").splitlines()) < AGENTS_LINES


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """The pydantic models that a field's type mentions."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for inner in typing.get_args(annotation):
        yield from models_in(inner)


def keys(model: type[BaseModel]) -> Iterator[str]:
    """Dotted names of every key that can be written below `model`; a block counts by what is in it."""
    for name, field in model.model_fields.items():
        inner = list(models_in(field.annotation))
        for child in inner:
            yield from (f"{name}.{key}" for key in keys(child))
        if not inner:
            yield name


def test_recipe_has_few_keys() -> None:
    found = list(keys(Recipe))
    assert {"steps", "advantage.kind", "objective.correction.kind", "data.train.name"} <= set(found)
    assert len(found) <= RECIPE_KEYS


def test_only_plugins_accept_unknown_keys() -> None:
    open_ends = {m for m in every_model(Recipe) if m.model_config.get("extra") != "forbid"}
    assert all(issubclass(m, Plugin) for m in open_ends) and AddOnSpec in open_ends


def every_model(model: type[BaseModel]) -> set[type[BaseModel]]:
    inner = {m for field in model.model_fields.values() for m in models_in(field.annotation)}
    return {model}.union(*(every_model(m) for m in inner))


METHODS = [(family.folder, kind) for family in FAMILIES for kind in family.kinds]


def test_there_are_methods() -> None:
    assert {("explore", "clip_cov"), ("advantages", "grpo"), ("surrogates", "clip"), ("corrections", "tis")} <= {
        *METHODS
    }


@pytest.mark.parametrize(("folder", "kind"), METHODS)
def test_every_method_has_an_index_row_and_a_recipe(folder: str, kind: str) -> None:
    rows = (ROOT / "docs/paper_index.md").read_text(encoding="utf-8").splitlines()
    named = [row for row in rows if row.startswith("|") and f"rlvr/{folder}/{kind}.py" in row]
    assert named, "no row in docs/paper_index.md"
    recipes = [file for file in (ROOT / "recipes").rglob("*.yaml") if names_kind(file, kind)]
    assert recipes, f"no recipe below recipes/ has `kind: {kind}`"


def names_kind(recipe: Path, kind: str) -> bool:
    return re.search(rf"\bkind:\s*{kind}\b", recipe.read_text(encoding="utf-8")) is not None


def test_no_machine_is_named_in_tracked_files() -> None:
    texts = ((file, file.read_bytes().decode("utf-8", "ignore")) for file in tracked())
    hits = [f"{short(file)}: {match.group()}" for file, text in texts for match in MACHINE.finditer(text)]
    assert hits == []


def test_a_machine_path_is_seen() -> None:
    assert MACHINE.search("open('/" + "home/me/x')") and not MACHINE.search("recipes/home.yaml, /dev/shm, runs/work/x")


CHECKS = re.compile(r"^(assert_|check|fail$|raises$|warns$|spawn$)")  # spawn raises what a child raises


def can_fail(test: ast.AST, helpers: Collection[str] = ()) -> bool:
    """A test asserts, expects an error, or calls a helper that does, or one whose name says that it checks."""
    names = (called(node) for node in ast.walk(test))
    return any(isinstance(node, ast.Assert) for node in ast.walk(test)) or any(
        name in helpers or CHECKS.match(name) for name in names
    )


@pytest.mark.parametrize("file", sources("tests"), ids=short)
def test_every_test_can_fail(file: Path) -> None:
    all_of_them = list(functions(parse(file)))
    helpers = {f.name for f in all_of_them if not f.name.startswith("test_") and can_fail(f)}
    assert [f.name for f in all_of_them if f.name.startswith("test_") and not can_fail(f, helpers)] == []


def test_a_test_that_cannot_fail_is_seen() -> None:
    assert not can_fail(ast.parse("def test_x():\n    run()"))
    assert can_fail(ast.parse("def test_x():\n    with pytest.raises(ValueError): run()"))
    assert can_fail(ast.parse("def test_x():\n    check_rows(run())"))
    assert can_fail(ast.parse("def test_x():\n    close(1, 2)"), helpers={"close"})


def test_ruff_is_content() -> None:
    command = [sys.executable, "-m", "ruff", "check", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
