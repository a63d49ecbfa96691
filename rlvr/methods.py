"""What a recipe names by `kind`: add-ons, advantage estimators, objectives and corrections, one file each.

A kind is a file of the family's package (`explore: [{kind: clip_cov}]` is `rlvr/explore/clip_cov.py`), or from outside
`my_file.py:MyClass` or `package.module:MyClass`. The other keys beside `kind` are checked by the class's own Config.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rlvr import catalog
from rlvr.advantages.base import Estimator
from rlvr.catalog import Found
from rlvr.corrections.base import Correction
from rlvr.errors import ConfigError
from rlvr.explore.base import AddOn, AddOnConfig
from rlvr.recipe import AddOnSpec, Advantage, Method, Objective, Recipe, SftRecipe
from rlvr.recipe import Correction as CorrectionSpec
from rlvr.surrogates.base import Surrogate
from rlvr.words import Complaint, validate

ROOT = Path(__file__).parent


@dataclass(frozen=True)
class Family:
    """Methods of one kind: where their files are and what they derive from."""

    name: str  # the last part of the recipe's key, without an index
    folder: str  # below `rlvr/`
    base: type
    what: str  # in messages, after "unknown" and "no"

    def written(self, kind: str) -> str:
        """A line of a recipe that takes `kind`."""
        block = f"{{kind: {kind}}}"
        return {"explore": f"explore: [{block}]", "correction": f"objective: {{correction: {block}}}"}.get(
            self.name, f"{self.name}: {block}"
        )

    @property
    def kinds(self) -> list[str]:
        """Of the shipped methods: files that state their own name as `kind`."""
        return _kinds(self.folder)


EXPLORE = Family("explore", "explore", AddOn, "add-on")
ADVANTAGE = Family("advantage", "advantages", Estimator, "advantage estimator")
OBJECTIVE = Family("objective", "surrogates", Surrogate, "objective")
CORRECTION = Family("correction", "corrections", Correction, "correction")
FAMILIES = (ADVANTAGE, OBJECTIVE, CORRECTION, EXPLORE)
TAKEN = (ADVANTAGE.name, OBJECTIVE.name)  # the names of the estimator and the surrogate among the add-ons


@cache
def _kinds(folder: str) -> list[str]:
    return sorted(
        file.stem
        for file in (ROOT / folder).glob("*.py")
        if re.search(rf"""\bkind\b[^=\n]*=\s*["']{file.stem}["']""", file.read_text(encoding="utf-8"))
    )


@dataclass(frozen=True)
class Read:
    """One method of a recipe, its options checked."""

    key: str  # dotted: "advantage", "objective", "objective.correction", "explore.1"
    cls: type[Any]
    config: AddOnConfig

    def build(self) -> Any:
        """An instance under its plain name, to be asked and not to be run."""
        return self.cls(self.config)


@dataclass(frozen=True)
class Methods:
    """The methods of a run."""

    estimator: Estimator
    surrogate: Surrogate
    correction: Correction
    addons: Sequence[AddOn]

    @property
    def hooks(self) -> list[AddOn]:
        """All that have the hooks of an add-on, in the order of application."""
        return [self.estimator, self.surrogate, *self.addons]


def places(recipe: Recipe) -> list[tuple[str, Family, Method]]:
    """Every place of a recipe that names a method: dotted key, family and what is written there."""
    return [
        ("advantage", ADVANTAGE, recipe.advantage),
        ("objective", OBJECTIVE, recipe.objective),
        ("objective.correction", CORRECTION, recipe.objective.correction),
        *((f"explore.{i}", EXPLORE, spec) for i, spec in enumerate(recipe.explore)),
    ]


def find(family: Family, kind: str, *, project: Path) -> Found:
    """The file behind `kind`. Raises ConfigError listing the kinds that exist."""
    if ":" in kind:
        return catalog.find_object(family.what, kind, project=project)
    if kind not in family.kinds:
        if other := next((one for one in FAMILIES if kind in one.kinds), None):
            only = "" if other is EXPLORE else ", of which a run has one"
            raise ConfigError(f"{kind!r} is no {family.what} but {other.what}{only}: write `{other.written(kind)}`")
        where = f"rlvr/{family.folder}/ (or write `my_file.py:MyClass`)"
        raise catalog.unknown(family.what, kind, family.kinds, where=where)
    path = ROOT / family.folder / f"{kind}.py"
    return Found(kind, path, catalog.digest(path), module=f"rlvr.{family.folder}.{kind}")


def method_class(family: Family, kind: str, *, project: Path) -> type[Any]:
    """The class that `kind` names. Raises ConfigError where there is none, or it derives from something else."""
    found = find(family, kind, project=project)
    loaded = catalog.load(found)
    if found.attr is not None:
        if not (isinstance(loaded, type) and issubclass(loaded, family.base)):
            base = f"{family.base.__module__}.{family.base.__name__}"
            raise ConfigError(f"{found.path}: {found.attr!r} is not a subclass of {base}")
        return loaded
    for value in vars(loaded).values():
        if isinstance(value, type) and issubclass(value, family.base) and vars(value).get("kind") == kind:
            return value
    raise ConfigError(f"{found.path}: holds no {family.base.__name__} with kind = {kind!r}")


def read_one(key: str, family: Family, spec: Method, *, project: Path) -> tuple[Read | None, list[Complaint]]:
    """Class and validated Config of what stands at `key`, or a complaint for each thing that is wrong."""
    try:
        cls = method_class(family, spec.kind, project=project)
    except ConfigError as error:
        return None, [Complaint(f"{key}.kind", text) for text in error.problems]
    config, wrong = validate(cls.Config, spec.options)
    return (Read(key, cls, config) if config is not None else None), [c.below(key) for c in wrong]


def read_methods(recipe: Recipe, *, project: Path) -> tuple[list[Read], list[Complaint]]:
    """Every method of a recipe that is right, and all complaints about the others."""
    both = [read_one(key, family, spec, project=project) for key, family, spec in places(recipe)]
    return [one for one, _ in both if one is not None], [c for _, wrong in both for c in wrong]


def defaults(recipe: Recipe, *, project: Path) -> dict[str, Any]:
    """The options of a recipe's methods that are not written in it, by dotted key."""
    written = {key: spec.options for key, _, spec in places(recipe)}
    return {
        f"{one.key}.{name}": value
        for one in read_methods(recipe, project=project)[0]
        for name, value in one.config.model_dump(mode="json").items()
        if name not in written[one.key]
    }


def build_methods(recipe: Recipe, *, project: Path) -> Methods:
    """All methods of a run. Raises ConfigError with every unknown kind and every bad option."""
    _, complaints = read_methods(recipe, project=project)
    _refuse(complaints)
    surrogate, correction = build_objective(recipe.objective, seed=recipe.seed, project=project)
    return Methods(
        estimator=build_estimator(recipe.advantage, seed=recipe.seed, project=project),
        surrogate=surrogate,
        correction=correction,
        addons=build_addons(recipe.explore, seed=recipe.seed, project=project),
    )


def build_estimator(spec: Advantage, *, seed: int, project: Path) -> Estimator:
    """The estimator, under the name "advantage". Raises ConfigError as `build_methods`."""
    one = _one("advantage", ADVANTAGE, spec, project=project)
    return one.cls(one.config, name=ADVANTAGE.name, seed=seed)


def build_objective(spec: Objective, *, seed: int, project: Path) -> tuple[Surrogate, Correction]:
    """The surrogate, under the name "objective", and the correction. Raises ConfigError as `build_methods`."""
    one = _one("objective", OBJECTIVE, spec, project=project)
    surrogate = one.cls(one.config, name=OBJECTIVE.name, seed=seed)
    return surrogate, build_correction(spec.correction, project=project)


def build_correction(spec: CorrectionSpec, *, project: Path) -> Correction:
    """The correction. Raises ConfigError as `build_methods`."""
    return _one("objective.correction", CORRECTION, spec, project=project).build()


def build_addons(specs: Sequence[AddOnSpec], *, seed: int, project: Path) -> list[AddOn]:
    """One instance per spec, in order, with unique names ("kind", "kind#2", ...). Raises as `build_methods`."""
    both = [read_one(f"explore.{i}", EXPLORE, spec, project=project) for i, spec in enumerate(specs)]
    _refuse([c for _, wrong in both for c in wrong])
    built: list[AddOn] = []
    for one in (one for one, _ in both if one is not None):
        label = one.cls.kind or one.cls.__name__
        number = 1 + sum(name == label for name in (*TAKEN, *(b.name.partition("#")[0] for b in built)))
        built.append(one.cls(one.config, name=label if number == 1 else f"{label}#{number}", seed=seed))
    return built


def _one(key: str, family: Family, spec: Method, *, project: Path) -> Read:
    one, complaints = read_one(key, family, spec, project=project)
    _refuse(complaints)
    assert one is not None
    return one


def _refuse(complaints: Sequence[Complaint]) -> None:
    if complaints:
        raise ConfigError([f"{c.key}: {c.text}" for c in complaints])


def plugin_files(recipe: Recipe | SftRecipe, *, project: Path) -> dict[str, Found]:
    """Every plug-in file of a recipe by its dotted key ("verifier", "data.train.0", "explore.1").

    Raises ConfigError for the first name that does not exist (`check.problems` lists all).
    """
    data = recipe.data
    found = {f"data.train.{i}": catalog.find("data", s.name, project=project) for i, s in enumerate(data.train)}
    found |= {f"data.eval.{i}": catalog.find("data", s.name, project=project) for i, s in enumerate(data.eval)}
    if isinstance(recipe, Recipe):
        found["verifier"] = catalog.find("rewards", recipe.verifier.name, project=project)
        for key, family, spec in places(recipe):
            found[key] = find(family, spec.kind, project=project)
    return found
