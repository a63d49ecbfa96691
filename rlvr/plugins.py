"""A found catalogue file with its options checked by the file's own `Config`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from rlvr.catalog import Found, load
from rlvr.errors import ConfigError
from rlvr.words import validate


@dataclass(frozen=True)
class Loaded:
    """One plug-in, ready to be called. `config` is None where the file has no `Config`."""

    found: Found
    module: ModuleType
    function: Callable[..., Any]
    config: BaseModel | None


def load_plugin(found: Found, options: Mapping[str, Any], *, function: str) -> Loaded:
    """Load a verifier (`function="verify"`) or a dataset card (`"load"`) and read its options.

    `path/file.py:name` takes `name` instead of `function`. Raises ConfigError with every problem: the file
    cannot be executed, has no such function, or an option is unknown or wrong.
    """
    module = load(replace(found, attr=None))
    wanted = found.attr or function
    value = vars(module).get(wanted)
    if not callable(value):
        raise ConfigError(f"{found.path}: defines no function {wanted}(...), which {found.name!r} needs")
    return Loaded(found, module, value, _config(found, module, options))


def machine_problem(plugin: Loaded) -> str | None:
    """Why this machine cannot run a plug-in, where its file has a `check_machine(config)` that says so."""
    check = vars(plugin.module).get("check_machine")
    return None if check is None else check(plugin.config)


def _config(found: Found, module: ModuleType, options: Mapping[str, Any]) -> BaseModel | None:
    kind = vars(module).get("Config")
    if kind is None:
        if options:
            keys = ", ".join(sorted(options))
            raise ConfigError(f"{found.path}: takes no options (it has no class Config), got {keys}")
        return None
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        raise ConfigError(f"{found.path}: Config must be a pydantic.BaseModel, got {kind!r}")
    config, complaints = validate(kind, options)
    if config is None:
        raise ConfigError([f"{found.name}.{c.key}: {c.text}" for c in complaints])
    return config
