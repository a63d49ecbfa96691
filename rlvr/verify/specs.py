"""From `verifier:` in a recipe to files: one verifier, or a composition of several (`of:`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict

from rlvr.catalog import Found, find
from rlvr.errors import ConfigError
from rlvr.plugins import load_plugin, machine_problem
from rlvr.recipe import Plugin, Verifier
from rlvr.types import Task
from rlvr.words import validate


class Entry(Plugin):
    """One entry of `of:`. A name alone is short for `{name: NAME}`; the other keys are the verifier's own options."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    name: str
    weight: float | None = None  # of its score; null: 1, or 0 for a gate
    gate: bool = False  # must be right, or the whole scores 0


@dataclass(frozen=True)
class VerifierSpec:
    """A verifier file with the options that its own `Config` checks. A composition has parts."""

    found: Found
    options: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    gate: bool = False
    parts: tuple[VerifierSpec, ...] = ()

    def refuse_wrong_parts(self, verify: Callable[..., Any]) -> None:
        """Raises ConfigError unless there are parts exactly where `verify` takes `parts`."""
        composes = "parts" in inspect.signature(verify).parameters
        if composes and not self.parts:
            raise ConfigError(f"{self.found.name}.of: missing: what it is made of, as in of: [math, format]")
        if self.parts and not composes:
            raise ConfigError(f"{self.found.name}.of: {self.found.path} is no composition: its verify takes no `parts`")

    def walk(self, key: str) -> Iterator[tuple[str, VerifierSpec]]:
        """Itself and every part below it, each with its dotted key."""
        yield key, self
        for i, part in enumerate(self.parts):
            yield from part.walk(f"{key}.of.{i}")


def verifier_specs(verifier: Verifier, tasks: Iterable[Task] = (), *, project: Path) -> dict[str, VerifierSpec]:
    """The recipe's verifier (first) and every other one that a task names.

    Raises ConfigError for a name that no file in `rewards/` has, and for a wrong entry of `of:`.
    """
    specs = {verifier.name: read_spec(verifier.name, verifier.options, project=project)}
    for name in sorted({t.verifier for t in tasks if t.verifier} - {verifier.name}):
        specs[name] = read_spec(name, {}, project=project)
    return specs


def read_spec(name: str, options: Mapping[str, Any], *, project: Path) -> VerifierSpec:
    """Find a verifier's file, and its parts'. Raises ConfigError, with the key inside `of:` in front."""
    options = dict(options)
    of = options.pop("of", ())
    if not isinstance(of, list | tuple):
        raise ConfigError(f"of: got {of!r}, expected a list of verifiers")
    parts, problems = [], []
    for i, entry in enumerate(of):
        try:
            parts.append(_part(entry, project=project))
        except ConfigError as error:
            problems += [f"of.{i}.{text}" for text in error.problems]
    if problems:
        raise ConfigError(problems)
    return VerifierSpec(find("rewards", name, project=project), options, parts=tuple(parts))


def _part(given: object, *, project: Path) -> VerifierSpec:
    if not isinstance(given, str | Mapping):
        raise ConfigError(f"name: got {given!r}, expected a name or a mapping (name: ..., weight: ..., gate: ...)")
    entry, complaints = validate(Entry, {"name": given} if isinstance(given, str) else given)
    if entry is None:
        raise ConfigError([f"{c.key}: {c.text}" for c in complaints])
    weight = entry.weight if entry.weight is not None else float(not entry.gate)
    try:
        spec = read_spec(entry.name, entry.options, project=project)
    except ConfigError as error:
        own = (text if text.startswith("of.") else f"name: {text}" for text in error.problems)
        raise ConfigError(list(own)) from None
    return replace(spec, weight=weight, gate=entry.gate)


def spec_problems(verifier: Verifier, *, project: Path) -> Iterator[tuple[Literal["error", "warning"], str, str]]:
    """(level, dotted key, what is wrong) of a recipe's verifier and of every part of it."""
    try:
        whole = read_spec(verifier.name, verifier.options, project=project)
    except ConfigError as wrong:
        yield from (("error", *one) for one in told("verifier", verifier.name, wrong))
        return
    for key, spec in whole.walk("verifier"):
        try:
            plugin = load_plugin(spec.found, spec.options, function="verify")
            spec.refuse_wrong_parts(plugin.function)
        except ConfigError as wrong:
            yield from (("error", *one) for one in told(key, spec.found.name, wrong))
            continue
        if problem := machine_problem(plugin):
            yield "warning", key, f"will be refused on this machine: {problem}"


def told(key: str, name: str, wrong: ConfigError) -> Iterator[tuple[str, str]]:
    """The problems of a plug-in, each with its key: `NAME.option: ...` and `of.0.name: ...` are about keys below."""
    for text in wrong.problems:
        inner, colon, rest = text.removeprefix(f"{name}.").partition(": ")
        below = colon and text.startswith((f"{name}.", "of."))
        yield (f"{key}.{inner}", rest) if below else (key, text)
