"""Puts the catalogue folders into the wheel, below the package; an editable install reads them in the checkout."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CATALOGUE = ("recipes", "rewards", "data", "launch")


class CatalogueHook(BuildHookInterface):
    """`data/math.py` becomes `rlvr/_catalogue/data/math.py`: never an importable top-level `data`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a build; `version` is "standard" or "editable"."""
        if version == "standard":
            build_data["force_include"].update({folder: f"rlvr/_catalogue/{folder}" for folder in CATALOGUE})
