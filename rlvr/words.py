"""Validation in words for people: what was got, what was expected, and what was probably meant."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text (put it in quotes)",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "finite_number": "a finite number",
    "greater_than": "a number > {gt:g}",
    "greater_than_equal": "a number >= {ge:g}",
    "less_than": "a number < {lt:g}",
    "less_than_equal": "a number <= {le:g}",
    "literal_error": "{expected}",
    "too_long": "a list of at most {max_length} values",
    "too_short": "a list of at least {min_length} values",
}


@dataclass(frozen=True)
class Complaint:
    """One thing wrong with one key. `key` is dotted."""

    key: str
    text: str

    def below(self, key: str) -> Complaint:
        """The same complaint with its key seen from above `key`."""
        return Complaint(f"{key}.{self.key}" if self.key else key, self.text)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`", did you mean 'x'?"` for the closest of `names`, or nothing where none is close."""
    close = get_close_matches(name.lower(), {n.lower(): n for n in names}, n=1, cutoff=0.6)
    original = {n.lower(): n for n in names}
    return f", did you mean '{original[close[0]]}'?" if close else ""


def shorten(value: object, *, limit: int = 60) -> str:
    """A value as YAML would show it, cut to `limit` characters."""
    text = json.dumps(value, ensure_ascii=False, default=str) if not isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def validate(tree: type[M], data: Mapping[str, Any]) -> tuple[M | None, list[Complaint]]:
    """Read plain values as `tree`, strictly (no text for numbers), and collect every complaint."""
    try:
        return tree.model_validate_json(json.dumps(data), strict=True), []
    except ValidationError as error:
        return None, [_complaint(tree, e) for e in error.errors(include_url=False)]


def _complaint(tree: type[BaseModel], error: Mapping[str, Any]) -> Complaint:
    loc: Sequence[int | str] = error["loc"]
    key = ".".join(map(str, loc))
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        names = fields_at(tree, loc[:-1])
        elsewhere = [k for k in dotted_keys(tree) if k.rpartition(".")[2] == loc[-1]]
        hint = did_you_mean(str(loc[-1]), names) or (f", did you mean '{elsewhere[0]}'?" if elsewhere else "")
        hint = hint or f"; the keys here are {', '.join(names)}"
        return Complaint(key, f"unknown key{hint}")
    if kind == "missing":
        return Complaint(key, "missing, and it has no default")
    if kind in ("value_error", "assertion_error"):
        return Complaint(key, error["msg"].partition(", ")[2])
    template = _EXPECTED.get(kind)
    if kind == "model_type" and isinstance(error["input"], list):
        return Complaint(key, f"got {shorten(error['input'])}, expected one mapping (key: value) and not a list")
    expected = template.format(**context) if template else error["msg"].removeprefix("Input should be ")
    hint = did_you_mean(str(error["input"]), _choices(expected)) if kind == "literal_error" else ""
    return Complaint(key, f"got {shorten(error['input'])}, expected {expected}{hint}")


def _choices(expected: str) -> list[str]:
    return [part for i, part in enumerate(expected.split("'")) if i % 2]


def fields_at(tree: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """The valid keys of the node at `loc` in a tree of models."""
    node: type[BaseModel] | None = tree
    for part in loc:
        if node is not None and isinstance(part, str) and part in node.model_fields:
            node = _model_in(node.model_fields[part].annotation)
    return list(node.model_fields) if node is not None else []


def dotted_keys(tree: type[BaseModel]) -> list[str]:
    """Every key of a tree of models, dotted, outer nodes first; entries of lists are left out."""
    keys: list[str] = []
    for name, field in tree.model_fields.items():
        child = _model_in(field.annotation)
        keys += [name, *(f"{name}.{k}" for k in (dotted_keys(child) if child else ()))]
    return keys


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for a in get_args(annotation) if (m := _model_in(a)) is not None), None)
