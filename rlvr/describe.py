"""What can be named in a recipe, told from the methods' own docstrings and Configs."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic_core import PydanticUndefined

from rlvr import catalog
from rlvr.errors import ConfigError
from rlvr.explore.base import AddOn
from rlvr.methods import FAMILIES, Family, method_class
from rlvr.surrogates.base import Surrogate
from rlvr.words import did_you_mean

PAPER = re.compile(r"\b\d{4}\.\d{4,5}\b")
FIDELITY = re.compile(r"\bFidelity: (exact|close|reconstructed)\.")
HOOKS = (
    *(
        "prepare",
        "tasks",
        "sampler",
        "guide",
        "reward",
        "advantage",
        "updates",
        "knobs",
        "token_advantage",
        "token_loss",
        "loss",
        "weights",
    ),
    "observe",
)
KEYS = {"explore": "explore", "advantage": "advantage", "objective": "objective", "correction": "objective.correction"}


@dataclass(frozen=True)
class Description:
    """One method as `rlvr methods` shows it."""

    kind: str
    key: str  # of the recipe
    written: str  # a line of YAML that takes it
    title: str  # one sentence
    text: str  # the module's docstring without its title
    papers: tuple[str, ...]  # arXiv ids of the title
    fidelity: str
    hooks: tuple[str, ...]  # that it overrides
    options: str  # what the Config says of them
    defaults: Mapping[str, Any]
    reduction: str | None  # of an objective
    recipes: tuple[str, ...]  # shipped ones that name it

    @property
    def reconstructed(self) -> bool:
        """Whether it must not be taken for the paper's own method."""
        return self.fidelity == "reconstructed"


def describe(name: str, *, project: Path) -> Description:
    """The method of that kind, of whichever family. Raises ConfigError with the closest name where there is none."""
    known = [kind for family in FAMILIES for kind in family.kinds]
    for family in FAMILIES:
        if name in family.kinds:
            return _describe(family, name, project=project)
    raise ConfigError(f"unknown method {name!r}{did_you_mean(name, known) or ';'} known: {', '.join(sorted(known))}")


def describe_all(*, project: Path) -> list[Description]:
    """Every shipped method, by family."""
    return [_describe(family, kind, project=project) for family in FAMILIES for kind in family.kinds]


def _describe(family: Family, kind: str, *, project: Path) -> Description:
    cls = method_class(family, kind, project=project)
    title, _, text = (inspect.getdoc(inspect.getmodule(cls)) or "").partition("\n\n")
    stated = FIDELITY.search(text)
    return Description(
        kind=kind,
        key=KEYS[family.name],
        written=_written(family, cls),
        title=" ".join(title.split()),
        text=text.strip("\n"),
        papers=tuple(PAPER.findall(title)),
        fidelity=stated[1] if stated else "not stated",
        hooks=tuple(hook for hook in HOOKS if _overrides(cls, hook)),
        options=inspect.getdoc(cls.Config) or "",
        defaults={name: _default(field) for name, field in cls.Config.model_fields.items()},
        reduction=cls.reduction if issubclass(cls, Surrogate) else None,
        recipes=tuple(_recipes(kind)),
    )


def _written(family: Family, cls: type[Any]) -> str:
    """The shortest line of a recipe that works."""
    if issubclass(cls, Surrogate) and cls.no_correction:
        return f"objective: {{kind: {cls.kind}, correction: {{kind: none}}}}"
    return family.written(cls.kind)


def _overrides(cls: type[Any], hook: str) -> bool:
    """Whether a class, or a base of ours below the root of its family, gives `hook` a body of its own."""
    owner = next((base for base in cls.__mro__ if hook in vars(base)), None)
    return owner is not None and owner is not AddOn


def _default(field: Any) -> Any:
    value = field.get_default(call_default_factory=True)
    return "required" if value is PydanticUndefined else value


def _recipes(kind: str) -> list[str]:
    """Shipped recipes that name the kind: its own first, then what others extend, then the shortest."""
    found = [name for name, named in _named_kinds() if kind in named]
    return sorted(found, key=lambda name: (not Path(name).name.startswith(f"{kind}_"), "/" in name))


@cache
def _named_kinds() -> list[tuple[str, set[str]]]:
    """Every shipped recipe and the kinds written in it."""
    root = catalog.shipped("recipes")
    files = sorted(root.rglob("*.yaml"), key=lambda file: (file.stat().st_size, str(file)))
    return [(str(f.relative_to(root)), _values(yaml.safe_load(f.read_text(encoding="utf-8")))) for f in files]


def _values(node: Any) -> set[str]:
    """Every `kind` below a YAML value, and what its short forms name."""
    if isinstance(node, list):
        return set().union(*map(_values, node))
    if not isinstance(node, dict):
        return set()
    short = {str(node[key]) for key in ("kind", *KEYS, "correction") if isinstance(node.get(key), str)}
    return short.union(*map(_values, node.values()))


def shown(value: Any) -> str:
    """A default as a recipe would write it."""
    return json.dumps(value)
