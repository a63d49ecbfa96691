"""YAML, `extends:` and `key=value` become one frozen recipe tree; every problem is reported at once.

A value's place (file and line, or the command line) travels with it, so that an error and `rlvr show` can
say where it was written. YAML is read as version 1.2 reads it: `1e-6` is a number, `no` is text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml

from rlvr import catalog
from rlvr.errors import ConfigError
from rlvr.recipe import Recipe, SftRecipe, Strict
from rlvr.words import shorten, validate

T = TypeVar("T", bound=Strict)
SWITCHES: Mapping[tuple[str, ...], tuple[str, str, tuple[str, ...]]] = {
    # where another file may be named -> by which key, the default, what stays when another one is
    ("verifier",): ("name", "math", ()),
    ("advantage",): ("kind", "grpo", ()),
    ("objective",): ("kind", "clip", ("correction",)),
    ("objective", "correction"): ("kind", "tis", ()),
}
COMMAND_LINE = "command line"
DEFAULT = "default"


@dataclass(frozen=True)
class Resolved(Generic[T]):
    """A recipe with where every leaf value came from: "recipes/base.yaml:12", "command line" or "default"."""

    recipe: T
    sources: dict[str, str]
    files: tuple[Path, ...]  # the recipe, then what it extends
    path: Path


@dataclass(frozen=True)
class Node:
    """A YAML value with its place; containers hold nodes."""

    value: Any
    where: str


def load(
    path: str | Path,
    *,
    overrides: Sequence[str] = (),
    tree: type[T] = Recipe,
    project: Path | None = None,
) -> Resolved[T]:
    """Read a recipe: a file, or a name (`quickstart`) in the project's `recipes/` or in ours.

    `overrides` are `key.sub=value` with YAML values; a number addresses an entry of a list
    (`explore.0.ratio=0.1`). Raises ConfigError with every problem, one a line.
    """
    project = project or Path.cwd()
    file = locate(str(path), project=project)
    problems: list[str] = []
    files: list[Path] = []
    root = _read_chain(file, project=project, files=files, problems=problems)
    for override in overrides:
        root = _merge(root, _override(override, problems), problems, ())
    data = _plain(root)
    places = dict(_places(root))
    recipe, complaints = validate(tree, data)
    if tree is not SftRecipe and "rows" in data:
        problems.append(f"{_show(file, project)}: `rows` makes this an SFT recipe: run it with `rlvr sft`")
        complaints = [c for c in complaints if c.key != "rows"]
    top = _show(file, project)
    problems += [f"{_place(c.key, places, top)}: {c.key}: {c.text}" for c in complaints]
    if problems or recipe is None:
        raise ConfigError(problems)
    sources = {key: places.get(key, DEFAULT) for key in leaves(recipe)}
    return Resolved(recipe, sources, tuple(files), file)


def locate(name: str, *, project: Path) -> Path:
    """The recipe file that `name` means: a path (from here or from the project), else a name in the catalogue."""
    for candidate in (Path(name).expanduser(), project / name):
        if candidate.is_file():
            return candidate.resolve()
    return _named_recipe(name, project=project)


def _named_recipe(name: str, *, project: Path) -> Path:
    short = name.removeprefix("recipes/").removesuffix(".yaml")
    try:
        return catalog.find("recipes", short, project=project).path.resolve()
    except ConfigError as error:
        raise ConfigError(f"{name}: no such file, and {error}") from error


def tree_of(path: str | Path, *, project: Path | None = None) -> type[Recipe] | type[SftRecipe]:
    """SftRecipe for a file in which the key `rows` is written (or in what it extends), else Recipe."""
    project = project or Path.cwd()
    root = _read_chain(locate(str(path), project=project), project=project, files=[], problems=[])
    return SftRecipe if "rows" in root.value else Recipe


def dump(recipe: Strict) -> str:
    """The resolved tree as YAML; `load` reads it back to an equal recipe."""
    data = recipe.model_dump(mode="json")
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def leaves(recipe: Strict) -> dict[str, Any]:
    """Every value of the tree by its dotted key; an empty list or mapping is a value."""
    return dict(_flatten(recipe.model_dump(mode="json"), ()))


def source_of(key: str, sources: Mapping[str, str]) -> str:
    """The closest place where something was written for `key`: itself, below it, else in the blocks around it."""
    while key:
        near = (place for leaf, place in sources.items() if leaf == key or leaf.startswith(f"{key}."))
        if (place := next((p for p in near if p != DEFAULT), None)) is not None:
            return place
        key = key.rpartition(".")[0]
    return DEFAULT


def _flatten(value: Any, key: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not items or not value:
        yield ".".join(key), value
        return
    for name, child in items:
        yield from _flatten(child, (*key, str(name)))


# --- files -------------------------------------------------------------------------------------------------


def _show(path: Path, project: Path) -> str:
    path, project = path.resolve(), project.resolve()
    return str(path.relative_to(project)) if path.is_relative_to(project) else str(path)


def _read_chain(file: Path, *, project: Path, files: list[Path], problems: list[str]) -> Node:
    """A file merged over all that it extends."""
    if file in files:
        chain = " -> ".join(_show(f, project) for f in [*files, file])
        problems.append(f"{_show(file, project)}: `extends` goes round in a circle: {chain}")
        return Node({}, _show(file, project))
    files.append(file)
    node = _read(file, _show(file, project), problems)
    parent = node.value.pop("extends", None)
    if parent is None:
        return node
    if not isinstance(parent.value, str):
        problems.append(f"{parent.where}: extends: got {shorten(_plain(parent))}, expected one file name")
        return node
    base = (file.parent / Path(parent.value).expanduser()).resolve()
    if not base.is_file():
        try:
            base = _named_recipe(parent.value, project=project)
        except ConfigError as error:
            problems.append(f"{parent.where}: extends: {error}")
            return node
    return _merge(_read_chain(base, project=project, files=files, problems=problems), node, problems, ())


def _read(file: Path, shown: str, problems: list[str]) -> Node:
    empty = Node({}, shown)
    try:
        loader = _Loader(file.read_text(encoding="utf-8"))
        tree = loader.get_single_node()
        if tree is None:
            return empty
        node = _node(loader, tree, shown, problems)
    except yaml.YAMLError as error:
        problems.append(f"{shown}: not valid YAML: {_oneline(error)}")
        return empty
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{shown}: cannot be read: {error}")
        return empty
    if not isinstance(node.value, dict):
        problems.append(f"{shown}: got {shorten(_plain(node))}, expected a mapping (key: value)")
        return empty
    return _normalise(node)


def _oneline(error: yaml.YAMLError) -> str:
    return re.sub(r'\s*in "<unicode string>",', ",", " ".join(str(error).split()))


# --- YAML 1.2 core schema ----------------------------------------------------------------------------------

_EXPONENT = re.compile(r"^[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$")
_FLOAT = re.compile(r"^[-+]?((\d[\d_]*\.[\d_]*|\.\d[\d_]*)|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$")


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2: no yes/no, no sexagesimals, no dates, but 1e-6."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - the name and form are PyYAML's


class _Dumper(yaml.SafeDumper):
    """Quotes what either YAML version would read as something else than text."""


for _tag, _pattern, _first in (
    ("null", re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"^[-+]?\d[\d_]*$"), list("-+0123456789")),
    ("float", _FLOAT, list("-+0123456789.")),
    ("float", _EXPONENT, list("-+0123456789.")),
    ("merge", re.compile(r"^<<$"), ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789."))
_Dumper.ignore_aliases = lambda self, data: True  # type: ignore[method-assign]
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value.replace("_", "")))


def _node(loader: _Loader, node: yaml.Node, shown: str, problems: list[str]) -> Node:
    where = f"{shown}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.SequenceNode):
        return Node([_node(loader, child, shown, problems) for child in node.value], where)
    if not isinstance(node, yaml.MappingNode):
        return Node(loader.construct_object(node), where)
    written = [str(key.value) for key, _ in node.value]
    repeated = sorted({k for k in written if written.count(k) > 1 and k != "<<"})
    problems += [f"{where}: {key}: written twice in one mapping" for key in repeated]
    loader.flatten_mapping(node)
    children: dict[str, Node] = {}
    for key, child in node.value:
        value = _node(loader, child, shown, problems)
        children[str(key.value)] = Node(value.value, f"{shown}:{key.start_mark.line + 1}")
    return Node(children, where)


# --- layers ------------------------------------------------------------------------------------------------


def _normalise(root: Node) -> Node:
    """Write the shorthands out: `model: NAME`, `advantage: KIND`, `data.train: NAME`, `explore: [KIND]` ..."""
    value = dict(root.value)
    for key, name in (("model", "path"), ("verifier", "name"), ("advantage", "kind"), ("objective", "kind")):
        if key in value:
            value[key] = _named(value[key], name)
    objective = value.get("objective")
    if objective is not None and isinstance(objective.value, dict) and "correction" in objective.value:
        correction = _named(objective.value["correction"], "kind")
        value["objective"] = Node({**objective.value, "correction": correction}, objective.where)
    if "explore" in value:
        value["explore"] = _entries(value["explore"], "kind")
    data = value.get("data")
    if data is not None and isinstance(data.value, dict):
        short = {k: _entries(v, "name") if k in ("train", "eval") else v for k, v in data.value.items()}
        value["data"] = Node(short, data.where)
    elif data is not None and isinstance(data.value, str | list):
        value["data"] = Node({"train": _entries(data, "name")}, data.where)
    return Node(value, root.where)


def _named(node: Node, key: str) -> Node:
    return Node({key: node}, node.where) if isinstance(node.value, str) else node


def _entries(node: Node, key: str) -> Node:
    """A name, a mapping or a list of both -> a list of mappings; `{0: ...}` addresses entries and stays."""
    if isinstance(node.value, list):
        return Node([_named(child, key) for child in node.value], node.where)
    if isinstance(node.value, str) or (isinstance(node.value, dict) and key in node.value):
        return Node([_named(node, key)], node.where)
    return node


def _merge(base: Node, top: Node, problems: list[str], key: tuple[str, ...]) -> Node:
    """`top` over `base`: mappings merge, all else is replaced. Another name or kind leaves the old one's options."""
    if isinstance(base.value, list) and isinstance(top.value, dict) and all(k.isdigit() for k in top.value):
        return _merge_entries(base, top, problems, key)
    if not (isinstance(base.value, dict) and isinstance(top.value, dict)):
        return top
    merged = dict(base.value)
    if key in SWITCHES:
        name, default, kept = SWITCHES[key]
        before = merged[name].value if name in merged else default
        if name in top.value and top.value[name].value != before:
            merged = {k: v for k, v in merged.items() if k in kept}
    for name, child in top.value.items():
        merged[name] = _merge(merged[name], child, problems, (*key, name)) if name in merged else child
    return Node(merged, top.where)


def _merge_entries(base: Node, top: Node, problems: list[str], key: tuple[str, ...]) -> Node:
    merged = list(base.value)
    for name, child in top.value.items():
        if int(name) < len(merged):
            merged[int(name)] = _merge(merged[int(name)], child, problems, (*key, name))
        else:
            dotted = ".".join((*key, name))
            problems.append(f"{child.where}: {dotted}: there are {len(merged)} entries, counted from 0")
    return Node(merged, top.where)


def _override(text: str, problems: list[str]) -> Node:
    """`key.sub=value` as a layer of its own."""
    dotted, equals, raw = text.partition("=")
    keys = dotted.strip().split(".")
    empty = Node({}, COMMAND_LINE)
    if not equals or not all(keys):
        problems.append(f"{COMMAND_LINE}: got {text!r}, expected key=value or key.sub=value")
        return empty
    try:
        node = _scalar_or_flow(raw, problems)
    except yaml.YAMLError as error:
        advice = f"quote text that is not plain: {dotted}='\"...\"'"
        problems.append(f"{COMMAND_LINE}: {dotted}: {raw!r} is not valid YAML ({_oneline(error)}); {advice}")
        return empty
    for key in reversed(keys):
        node = Node({key: node}, COMMAND_LINE)
    return _normalise(node)


def _scalar_or_flow(raw: str, problems: list[str]) -> Node:
    """A value of the command line. `a: b` without braces is text."""
    loader = _Loader(raw)
    tree = loader.get_single_node()
    if tree is None or (isinstance(tree, yaml.CollectionNode) and not tree.flow_style):
        return Node(None if tree is None else raw, COMMAND_LINE)
    return _everywhere(_node(loader, tree, COMMAND_LINE, problems), COMMAND_LINE)


def _everywhere(node: Node, where: str) -> Node:
    if isinstance(node.value, dict):
        return Node({k: _everywhere(v, where) for k, v in node.value.items()}, where)
    if isinstance(node.value, list):
        return Node([_everywhere(v, where) for v in node.value], where)
    return Node(node.value, where)


def _plain(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {key: _plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [_plain(child) for child in node.value]
    return node.value


def _places(node: Node, key: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    yield ".".join(key), node.where
    items: Any = ()
    if isinstance(node.value, dict):
        items = node.value.items()
    elif isinstance(node.value, list):
        items = enumerate(node.value)
    for name, child in items:
        yield from _places(child, (*key, str(name)))


def _place(key: str, places: Mapping[str, str], top: str) -> str:
    """The place of a key, or of the closest node above it; the file where nothing above was written."""
    while key and key not in places:
        key = key.rpartition(".")[0]
    return places[key] if key else top
