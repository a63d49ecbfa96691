r"""A number within a tolerance, with its unit: answers of science and engineering.

The answer is the last filled box after the thinking, else what follows the last `####` or `answer is`: one number
(`-1,024.5`, `3e8`, `3 \times 10^{8}`, `\frac{1}{3}`, `2/3`) and perhaps a unit after it. Units are converted: `10 cm`
is `0.1 m`, `km/h` and `m s^{-1}` are comparable. One that is not known here must be written as in the gold answer, and
a unit of another kind is wrong. `units: given` lets the response leave the unit out (it is then the gold one's),
`required` does not, `ignored` looks at numbers alone. A sum that is left to do is no number.
Right is |x - gold| <= max(abs, rel * |gold|), in the gold answer's unit.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, NonNegativeFloat

VERSION = "numeric-1"
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
ANCHOR = re.compile(r"(?:####|\banswer\s*(?:is|:|=)[ :]*|^A:)[ \t]*", re.IGNORECASE | re.MULTILINE)
DRESS = re.compile(r"\\(?:text|textrm|mathrm|mathbf|mbox|operatorname)\s*|\\[,;:! ]|\\q?quad|[$~]|\\left|\\right|\*\*")
PLAIN = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
POWER = r"(?:\s*(?:\\times|\\cdot|\*|x|\u00d7)\s*10\s*(?:\^|\*\*)\s*\{?\s*([-+]?\d{1,3})\s*\}?|[eE]([-+]?\d{1,3}))?"
NUMBER = re.compile(
    rf"\s*(?:[A-Za-z]\w*\s*)?(?:=|\\approx|≈)?\s*([-+]?)\s*({PLAIN}){POWER}(?:\s*/\s*(\d+(?:\.\d+)?)(?![\w.]))?"
)
FRACTION = re.compile(r"\s*([-+]?)\s*\\[dt]?frac\s*\{\s*([-+]?\d+(?:\.\d+)?)\s*\}\s*\{\s*(\d+(?:\.\d+)?)\s*\}")
ATOM = re.compile(r"([/*·]|\\cdot|\\times)?\s*(\\?[A-Za-zΩµμ°%Å]+)\s*(?:\^\s*\{?\s*([-+]?\d{1,2})\s*\}?|([-+]?\d))?\s*")

PREFIX = {"n": 1e-9, "µ": 1e-6, "u": 1e-6, "m": 1e-3, "c": 1e-2, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
PREFIXED = [
    "m",
    "g",
    "s",
    "L",
    "eV",
    "J",
    "W",
    "N",
    "Pa",
    "Hz",
    "V",
    "A",
    "K",
    "mol",
    "C",
    "F",
    "H",
    "T",
    "Ω",
    "rad",
    "bar",
    "cal",
]
SI = {  # unit -> (factor, powers of m, kg, s, A, K, mol)
    "m": (1, "m"), "g": (1e-3, "kg"), "s": (1, "s"), "A": (1, "A"), "K": (1, "K"), "mol": (1, "mol"), "rad": (1, ""),
    "L": (1e-3, "m3"), "eV": (1.602176634e-19, "kg m2 s-2"), "J": (1, "kg m2 s-2"), "W": (1, "kg m2 s-3"),
    "N": (1, "kg m s-2"), "Pa": (1, "kg m-1 s-2"), "Hz": (1, "s-1"), "V": (1, "kg m2 s-3 A-1"), "C": (1, "A s"),
    "F": (1, "kg-1 m-2 s4 A2"), "H": (1, "kg m2 s-2 A-2"), "T": (1, "kg s-2 A-1"), "Ω": (1, "kg m2 s-3 A-2"),
    "bar": (1e5, "kg m-1 s-2"), "cal": (4.184, "kg m2 s-2"), "min": (60, "s"), "h": (3600, "s"), "day": (86400, "s"),
    "erg": (1e-7, "kg m2 s-2"), "dyne": (1e-5, "kg m s-2"), "Å": (1e-10, "m"), "in": (0.0254, "m"), "ft": (0.3048, "m"),
    "mi": (1609.344, "m"), "lb": (0.45359237, "kg"), "year": (31557600, "s"), "%": (0.01, ""), "°": (math.pi / 180, ""),
    "atm": (101325, "kg m-1 s-2"), "tonne": (1000, "kg"), "arcsec": (math.pi / 648000, ""),
}  # fmt: skip
NAMES = {
    "meter": "m", "metre": "m", "gram": "g", "second": "s", "sec": "s", "hour": "h", "hr": "h", "minute": "min",
    "liter": "L", "litre": "L", "l": "L", "joule": "J", "watt": "W", "newton": "N", "pascal": "Pa", "volt": "V",
    "ampere": "A", "amp": "A", "kelvin": "K", "mole": "mol", "ohm": "Ω", "\\Omega": "Ω", "hertz": "Hz", "tesla": "T",
    "coulomb": "C", "inch": "in", "inches": "in", "feet": "ft", "foot": "ft", "mile": "mi", "pound": "lb", "yr": "year",
    "degree": "°", "deg": "°", "\\circ": "°", "percent": "%", "angstrom": "Å", "\\AA": "Å", "radian": "rad",
    "kilogram": "kg", "kilometer": "km", "kilometre": "km", "centimeter": "cm", "millimeter": "mm", "d": "day",
    "kilojoule": "kJ", "micrometer": "µm", "nanometer": "nm", "arcsecond": "arcsec",
}  # fmt: skip


class Config(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    rel: NonNegativeFloat = 0.01  # tolerance as a share of the gold number
    abs: NonNegativeFloat = 0.0  # tolerance in the gold answer's unit
    units: Literal["given", "required", "ignored"] = "given"


@dataclass(frozen=True)
class Quantity:
    """A number with its unit: `value * factor` is in base units, `dims` are their powers, sorted."""

    value: float
    unit: str  # as written
    factor: float = 1.0
    dims: tuple[tuple[str, int], ...] = ()


def verify(response: str, answer: str, config: Config) -> dict[str, object]:
    """Score 1 within the tolerance. The key of all that is right is the gold answer's."""
    gold = read(answer)
    if gold is None:
        raise ValueError(f"gold answer {answer!r} is no number with a unit")
    given = read(final(response))
    if given is None:
        return {"score": 0.0, "parsed": False, "detail": "no number with a unit in the answer"}
    why = differs(gold, given, config)
    if not given.unit:  # it was left out: the gold one's
        given = Quantity(given.value, "", gold.factor, gold.dims)
    key = _key(gold) if not why else _key(given) if _key(given) != _key(gold) else f"{given.value!r} {given.unit}"
    return {"score": float(not why), "parsed": True, "answer_key": key.strip(), "detail": why}


def explain(response: str, answer: str, config: Config) -> list[str]:
    """What was read, in base units, and the tolerance."""
    gold, given = read(answer), read(final(response))
    lines = [f"answer: {final(response).strip()[:200]!r}", f"read as {given}", f"gold read as {gold}"]
    if gold is None or given is None:
        return lines
    return [*lines, f"tolerance rel {config.rel:g}, abs {config.abs:g}: {differs(gold, given, config) or 'within'}"]


def check_answer(answer: str, config: Config) -> str | None:
    """A gold answer must be a number, with a unit where units are required."""
    gold = read(answer)
    if gold is None:
        return "it is no number with a unit"
    return "it has no unit, and units are required" if config.units == "required" and not gold.unit else None


def differs(gold: Quantity, given: Quantity, config: Config) -> str:
    """Why a quantity is not the gold one; empty where it is."""
    ratio = 1.0
    if config.units != "ignored" and (given.unit or config.units == "required"):
        if given.dims != gold.dims:
            return f"the unit is {given.unit or 'missing'}, not {gold.unit or 'none'}"
        ratio = given.factor / gold.factor
    off, limit = abs(given.value * ratio - gold.value), max(config.abs, config.rel * abs(gold.value))
    return "" if off <= limit * (1 + 1e-9) else f"off by {off:.4g}, allowed is {limit:.4g}"


def final(response: str) -> str:
    """What the response gives as its answer; empty where it gives none."""
    head, closed, rest = response.rpartition("</think>")
    text = rest if closed else head + rest.partition("<think>")[0]
    if boxes := list(BOX.finditer(text)):  # a unit may stand behind the box
        behind = re.match(r"\s*\\?(?:text|mathrm)?\s*\{[^{}]*\}|", text[boxes[-1].end() :])
        return boxes[-1][1] + (behind[0] if behind else "") if boxes[-1][1].strip() else ""
    marks = list(ANCHOR.finditer(text))
    return text[marks[-1].end() :].partition("\n")[0][:500] if marks else ""


def read(text: str) -> Quantity | None:
    """A number and what stands behind it as a unit; None where that is not the whole text."""
    text = (
        DRESS.sub(" ", text[:500].replace("\u2212", "-").replace("{,}", ",").replace("\\%", "%")).strip().rstrip(".;,")
    )
    if match := FRACTION.match(text):
        value = float(match[2]) / float(match[3]) if float(match[3]) else math.nan
    elif match := NUMBER.match(text):
        below = float(match[5] or 1)
        number = float(f"{match[2].replace(',', '')}e{match[3] or match[4] or 0}")
        value = number / below if below else math.nan
    else:
        return None
    unit = _unit(text[match.end() :])
    if unit is None or not math.isfinite(value):
        return None
    return Quantity(-value if match[1] == "-" else value, *unit)


def _unit(text: str) -> tuple[str, float, tuple[tuple[str, int], ...]] | None:
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?", "°", text).replace("per ", "/")
    text = re.sub(r"[{}]", " ", text.replace(" squared", "^2").replace(" cubed", "^3"))
    text = " ".join(text.split())
    factor, dims, at = 1.0, dict[str, int](), 0
    while at < len(text):
        atom = ATOM.match(text, at)
        if atom is None:
            return None
        power = int(atom[3] or atom[4] or 1) * (-1 if atom[1] == "/" else 1)
        scale, parts = _atom(atom[2])
        factor *= scale**power
        for name, its in parts.items():
            dims[name] = dims.get(name, 0) + its * power
        at = atom.end()
    return text, factor, tuple(sorted((name, power) for name, power in dims.items() if power))


def _atom(word: str) -> tuple[float, dict[str, int]]:
    """Factor and base units of one unit; of a word that is not known, itself."""
    for name in (word, word.removesuffix("s"), word.lower(), word.lower().removesuffix("s")):
        known = NAMES.get(name, name)
        if known in SI:
            return SI[known][0], _powers(SI[known][1])
        if known[1:] in PREFIXED and known[0] in PREFIX:
            return PREFIX[known[0]] * SI[known[1:]][0], _powers(SI[known[1:]][1])
    return 1.0, {word.lower().removesuffix("s"): 1}


def _powers(text: str) -> dict[str, int]:
    found = re.findall(r"([A-Za-z]+)(-?\d*)", text)
    return {name: int(power or 1) for name, power in found}


def _key(quantity: Quantity) -> str:
    units = " ".join(name if power == 1 else f"{name}^{power}" for name, power in quantity.dims)
    return f"{quantity.value * quantity.factor:.6g} {units}".strip()
