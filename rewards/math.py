r"""Mathematical answers on math-verify 0.9, with the holes closed through which a policy is paid for nothing.

What counts is the last `\boxed{...}` after the thinking block; without a box, what follows the last
`####` or `answer is`. It must be of the gold's kind: an integer needs an integer literal (no sum left to do),
a stated unit or base must agree, and a formula copied from the problem is no answer. The percent sign is a
unit: `10\%` is 10 and not 0.1. What is left is compared by math-verify, its own SIGALRM limits off (they
fail outside the main thread): the limits of the verifier's process hold.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse
from math_verify import verify as compare

VERSION = f"math-3 math-verify-{version('math-verify')}"
logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off

LATEX = LatexExtractionConfig(
    normalization_config=NormalizationConfig(
        basic_latex=True, units=True, malformed_operators=True, nits=False, boxed="all", equations=False
    ),
    boxed_match_priority=0,
)
BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:(?P<brace>\{)|(?P<bare>[^\s{}$]+))")
ANCHOR = re.compile(r"(?:####|\banswer\s*(?:is|:|=)[ :]*|^A:)[ \t]*(?=(?P<rest>[^\n]*))", re.IGNORECASE | re.MULTILINE)
INLINE = re.compile(r"\s*(?:\$\$?(.+?)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\])")

SPACING = re.compile(r"\\[,;:! ]|\\q?quad\b|~|\\left(?![a-z])|\\right(?![a-z])|\\displaystyle\b|\*\*|\$|\\[()\[\]]")
RENAMED = ((r"\dfrac", r"\frac"), (r"\tfrac", r"\frac"), (r"\cfrac", r"\frac"), ("\u2212", "-"), ("{,}", ","))
DEGREE = re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|°")
WRAPPER = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*"
WRAPPED = re.compile(WRAPPER + r"\{([^{}]*)\}")
POWER = r"(?P<power>\s*\^\{?\d\}?)?"
UNIT = re.compile(rf"^(?P<body>.*[\d)}}])\s*{WRAPPER}\{{(?P<unit>[^{{}}]*[a-zA-Z][^{{}}]*)\}}{POWER}$")
PLAIN_UNIT = re.compile(rf"^(?P<body>[-+]?[\d,.]*\d(?:/\d+)?)\s+(?!pi\b)(?P<unit>[a-zA-Z][a-zA-Z ./]+){POWER}$")
ASSIGNED = re.compile(r"^(?P<name>\\?[a-zA-Z]+(?:_\{?\\?\w+\s*\}?)?)\s*=\s*(?P<body>[^=,<>]+)$")
THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
LONGEST = 2000  # characters of an answer; Python converts no integer of more than 4300 digits
DECIMAL = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)", re.ASCII)
SCIENTIFIC = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+))(?:\\times|\\cdot|\*)10\^\{?([-+]?\d{1,4})\}?", re.ASCII)
FRACTION = re.compile(r"([-+]?)(\d*)\\frac(?:\{(-?\d+)\}\{(\d+)\}|(\d)(\d))", re.ASCII)
SLASHED = re.compile(r"([-+]?\d+)/(\d+)", re.ASCII)
BASED = re.compile(r"([0-9A-Fa-f]+)_\{?(\d+)\}?", re.ASCII)
PARENTHESISED = re.compile(r"^\(\s*([-+]?\d+(?:\.\d+)?)\s*\)$")
CHOICE = re.compile(r"\(?([A-Z])\)?")
WORDS = re.compile(r"[^\W\d_]{3,}(?:[ ,.'-]+[^\W\d_]+)*")
NAMES = (  # subscripts that math-verify does not read, and E, which it takes for the number e
    (re.compile(r"_\s*\{\s*\\(odot|max|min)\s*\}|_\s*\\(odot|max|min)(?![a-zA-Z])"), r"_{\1\2}"),
    (re.compile(r"(?<![a-zA-Z\\])E(?=\s*_)"), r"\\Xi"),
)
DEEPEST = {"([": 8, "{": 12}  # nesting; real answers have 2 and 3, and the parser's time doubles with a few more
HUGE = re.compile(r"\^\s*\{?\s*\d+\s*\^\s*\{?\s*\d|\^\s*\{?\s*\d{7}|[)\]}]\s*\^\s*\{?\s*\d{3}|!\s*!|\d{6}\s*!")
UNDONE = re.compile(r"\\(?:i*int|oint|sum|prod|lim|limsup|liminf|binom|dbinom|frac\s*\{d\})(?![a-zA-Z])")


@dataclass(frozen=True)
class Answer:
    """One answer, read. `kind` is "number" (a literal), "based", "text" or "formula"."""

    kind: str
    body: str  # cleaned, without unit and left-hand side
    value: Fraction | None = None  # of a literal
    decimal: bool = False  # a literal written with a point
    unit: str = ""
    name: str = ""  # x of `x = 5`

    @property
    def integer(self) -> bool:
        """Whether a prediction must be an integer literal to match this gold answer."""
        return self.value is not None and self.value.denominator == 1


def verify(response: str, answer: str, task: Mapping[str, Any]) -> dict[str, Any]:
    """Score 1 or 0 with the canonical answer: one key for all that is right, never that key for what is wrong."""
    found, boxes = final_answer(response)
    detail = f"{boxes} boxes, the last one counts" if boxes > 1 else ""
    long = found is not None and len(found) > LONGEST
    given = read(found) if found is not None and not long else None
    if given is None or found is None:
        detail = f"an answer of {len(found)} characters" if found is not None and long else detail
        return {"score": 0.0, "parsed": False, "detail": detail}
    gold = read(answer)
    if gold is None:
        raise ValueError(f"gold answer {answer!r} cannot be read")
    why = differs(gold, given, problem=_text_of(task["prompt"]))
    readable = given.kind != "formula" or bool(formula(given.body))
    key = answer_key(gold)
    if why:
        key = found if not readable or answer_key(given) == key else answer_key(given)
    detail = "; ".join(filter(None, (why, detail)))
    return {"score": float(not why), "parsed": readable, "answer_key": key if readable else None, "detail": detail}


def explain(response: str, answer: str, task: Mapping[str, Any]) -> list[str]:
    """What was extracted from where, how both answers were read, and the comparison."""
    found, boxes = final_answer(response)
    text, place = (
        _after_thinking(response),
        f"box {boxes} of {boxes}" if boxes else "after the last `####` or `answer is`",
    )
    lines = [f"thinking: {len(response) - len(text)} of {len(response)} characters are left out"]
    lines.append(
        f"extracted from {place}: {found[:200]!r}" if found else "extracted: nothing: no filled box, no anchor"
    )
    given = read(found) if found is not None and len(found) <= LONGEST else None
    gold = read(answer)
    for whose, one in (("answer", given), ("gold", gold)):
        if one is not None:
            lines.append(f"{whose} read as {one}")
            lines += [f"{whose} parsed as {sympy.srepr(formula(one.body)[:1])[:500]}"] * (one.kind == "formula")
    verdict = verify(response, answer, task)
    why = verdict["detail"] if not verdict["score"] else "the same"
    return [*lines, f"compared: {why or 'no answer to compare'}", f"answer key {verdict.get('answer_key')!r}"]


def check_answer(answer: str, config: None) -> str | None:
    """A gold answer must be readable and equal to itself."""
    gold = read(answer)
    if gold is None:
        return "it is empty"
    if gold.kind != "formula":
        return None
    if not formula(gold.body):
        return "math-verify finds no mathematical expression in it"
    return differs(gold, gold, problem="") or None


def final_answer(response: str) -> tuple[str | None, int]:
    """The answer's text and the number of boxes. None: no answer after the thinking block, or an empty last box."""
    text = _after_thinking(response)
    boxes = list(BOX.finditer(text))
    if boxes:
        last = boxes[-1]
        content = last["bare"] if last["bare"] else _braced(text, last.end())
        return (content.strip() or None if content else None), len(boxes)
    anchors = list(ANCHOR.finditer(text))
    if not anchors:
        return None, 0
    rest = anchors[-1]["rest"].strip()
    inline = INLINE.match(rest)
    return (next(g for g in inline.groups() if g) if inline else rest) or None, 0


def _after_thinking(response: str) -> str:
    """What follows the last `</think>`; of thinking that never came to an end, what stands before it."""
    head, closed, rest = response.rpartition("</think>")
    return rest if closed else head + rest.partition("<think>")[0]


def _braced(text: str, start: int) -> str | None:
    depth = 1
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start:i]
    return None


@lru_cache(maxsize=4096)
def read(text: str) -> Answer | None:
    """Take an answer apart. None where nothing is left of it."""
    text = _clean(text)
    if not text:
        return None
    inner = WRAPPED.fullmatch(text)
    plain = PARENTHESISED.sub(r"\1", (inner[1] if inner else text).strip())
    if choice := CHOICE.fullmatch(plain):
        return Answer("text", choice[1].casefold())
    if WORDS.fullmatch(plain) or (inner and not DECIMAL.fullmatch(plain)):
        return Answer("text", " ".join(plain.casefold().replace(",", " ").split()))
    body, unit = _split_unit(plain)
    assigned = ASSIGNED.match(body)
    name, body = (assigned["name"], assigned["body"].strip()) if assigned else ("", body)
    if THOUSANDS.fullmatch(body):
        body = body.replace(",", "")
    packed = body.replace(" ", "")
    if based := BASED.fullmatch(packed):
        return Answer("based", f"{based[1].lower()}_{based[2]}", name=name)
    value = _literal(packed)
    kind = "formula" if value is None else "number"
    decimal = value is not None and ("." in packed or SCIENTIFIC.fullmatch(packed) is not None)
    return Answer(kind, body, value, decimal, unit, name)


def _clean(text: str) -> str:
    for old, new in RENAMED:
        text = text.replace(old, new)
    text = re.sub(r"\\?%|\\\$", "", text)
    text = DEGREE.sub(r"\\text{degree}", SPACING.sub(" ", text).replace(r"\{", "\0{").replace(r"\}", "\0}"))
    text = " ".join(text.replace("\0{", r"\{").replace("\0}", r"\}").split())
    return text.rstrip(".,; ") if not text.endswith("...") else text


def _split_unit(text: str) -> tuple[str, str]:
    match = UNIT.match(text) or PLAIN_UNIT.match(text)
    if match is None:
        return text, ""
    unit = re.sub(r"[\s.{}]", "", match["unit"] + (match["power"] or "")).casefold()
    return match["body"].strip(), unit.removesuffix("s")


def _literal(text: str) -> Fraction | None:
    if DECIMAL.fullmatch(text):
        return Fraction(text)
    if match := SCIENTIFIC.fullmatch(text):
        return Fraction(match[1]) * Fraction(10) ** int(match[2])
    if match := SLASHED.fullmatch(text):
        return Fraction(int(match[1]), int(match[2])) if int(match[2]) else None
    if match := FRACTION.fullmatch(text):
        top, bottom = int(match[3] or match[5]), int(match[4] or match[6])
        part = Fraction(top, bottom) if bottom else None
        return None if part is None else (-1 if match[1] == "-" else 1) * (int(match[2] or 0) + part)
    return None


def differs(gold: Answer, given: Answer, *, problem: str) -> str:
    """Why a prediction is not the gold answer; empty where it is."""
    if "text" in (gold.kind, given.kind):
        return "" if (gold.kind, gold.body) == (given.kind, given.body) else "another text"
    if "based" in (gold.kind, given.kind):
        return "" if (gold.kind, gold.body) == (given.kind, given.body) else "another number or base"
    if gold.unit and given.unit and gold.unit != given.unit:
        return f"the unit is {given.unit}, not {gold.unit}"
    if gold.name and given.name and gold.name != given.name:
        return f"{given.name}, not {gold.name}"
    if gold.integer and (given.value is None or not (given.decimal or re.fullmatch(r"[-+]?\d+", given.body))):
        return "not an integer literal"
    if gold.value is not None and given.value is not None:
        if not _close(gold, given):
            return "another number"
    elif (":" in gold.body) != (":" in given.body):
        return "a ratio or a time of day"  # math-verify divides
    elif UNDONE.search(given.body) and not UNDONE.search(gold.body):
        return "not evaluated"
    elif too_hard(given.body):
        return "nested too deep, or too large to be worked out"
    elif not compare(formula(gold.body), formula(given.body), timeout_seconds=None, raise_on_error=True):
        return "not equal"
    return "copied from the problem" if _copied(gold, given, problem) else ""


def _close(gold: Answer, given: Answer) -> bool:
    """Exact, but a decimal for a fraction may be rounded at the sixth place, as in math-verify.

    Of a number so small that six places keep little of it, three digits must agree: 2.5e-10 is not 1.2e-8.
    """
    if gold.integer or not (gold.decimal or given.decimal):
        return gold.value == given.value
    a, b = gold.value or Fraction(0), given.value or Fraction(0)
    return round(a, 6) == round(b, 6) and abs(a - b) <= abs(a) / 1000


def _copied(gold: Answer, given: Answer, problem: str) -> bool:
    """Whether something that is still to be worked out stands word for word in the problem."""
    squeezed, wanted = (re.sub(r"\s", "", a.body) for a in (given, gold))
    plain = DECIMAL.fullmatch(squeezed) is not None
    return not plain and len(squeezed) > 2 and squeezed != wanted and squeezed in re.sub(r"\s", "", _clean(problem))


@lru_cache(maxsize=4096)
def formula(body: str) -> list[Any]:
    """What math-verify reads in it; empty where it can read nothing, or would not come to an end."""
    if too_hard(body):
        return []
    for pattern, instead in NAMES:
        body = pattern.sub(instead, body)
    return parse(f"${body}$", [LATEX], "no_fallback", "first_match", parsing_timeout=None)  # type: ignore[arg-type]


def too_hard(body: str) -> bool:
    """Whether working it out would cost minutes: towers of powers, (...)^{1000}, or brackets upon brackets."""
    if HUGE.search(body):
        return True
    for (opening, most), closing in zip(DEEPEST.items(), (")]", "}"), strict=True):
        depth = 0
        for char in body:
            depth += (char in opening) - (char in closing)
            if depth > most:
                return True
    return False


def answer_key(answer: Answer) -> str:
    """A canonical spelling: a fraction in lowest terms, the text, or the expression as sympy writes it."""
    if answer.value is not None:
        return str(answer.value)
    if answer.kind != "formula":
        return answer.body
    parsed = formula(answer.body)[0]
    return str(int(parsed)) if isinstance(parsed, sympy.Integer) else str(parsed)


def _text_of(prompt: str | tuple[Mapping[str, str], ...]) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(m["content"] for m in prompt)


compare(formula("x^2+2x+1"), formula("(x+1)^2"), timeout_seconds=None)  # what sympy and the parser load late, once
compare(formula(r"(1,\frac{4}{2})"), formula(r"(1,2\sqrt{2})"), timeout_seconds=None)
