"""Countdown: an expression over given numbers, each used once, that has the target's value.

The gold is `3,5,7,50=36`. What counts is the last box, or the last line with a digit, after the thinking; `= 36` behind
the expression is left out. Whole numbers, `+ - * /` and brackets, worked out in fractions, never by `eval`.
"""

from __future__ import annotations

import ast
import operator
import re
from fractions import Fraction

VERSION = "countdown-1"
GOLD = re.compile(r"(\d{1,9}(?:,\d{1,9})*)=(-?\d{1,9})", re.ASCII)
BOX = re.compile(r"\\boxed\{([^{}]*)\}")
LABEL = re.compile(r"^.*?:(?=[^:]*$)")  # "The answer is:"
LONGEST = 200  # characters of an expression
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def verify(response: str, answer: str) -> dict[str, object]:
    """Score 1 or 0; the answer's key is the expression without white space."""
    numbers, target = _gold(answer)
    text = _given(response.rpartition("</think>")[2])
    used: list[int] = []
    try:
        value = _value(ast.parse(text, mode="eval").body, used)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return {"score": 0.0, "parsed": False}
    why = "" if sorted(used) == numbers else f"uses {sorted(used)}, not {numbers}"
    why = why or ("" if value == target else f"is {value}, not {target}")
    return {"score": float(not why), "answer_key": text, "detail": why}


def check_answer(answer: str, config: None) -> str | None:
    """A gold that does not name numbers and target."""
    return None if GOLD.fullmatch(answer) else "expected numbers and target such as `3,5,7,50=36`"


def _gold(answer: str) -> tuple[list[int], int]:
    match = GOLD.fullmatch(answer)
    if match is None:
        raise ValueError(f"gold answer {answer!r} cannot be read")
    return sorted(map(int, match[1].split(","))), int(match[2])


def _given(response: str) -> str:
    boxes = BOX.findall(response)
    lines = [line for line in response.splitlines() if any(c.isdigit() for c in line)]
    text = boxes[-1] if boxes else LABEL.sub("", lines[-1]) if lines else ""
    text = text.replace("\\times", "*").replace("\\cdot", "*").replace("\u00d7", "*").replace("\u00f7", "/")
    text = re.sub(r"[\s`$]+", "", text.partition("=")[0]).removesuffix(".")
    return text if len(text) <= LONGEST else ""


def _value(node: ast.AST, used: list[int]) -> Fraction:
    """The value of an expression; its numbers are added to `used`. Raises ValueError for anything else in it."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left, used), _value(node.right, used))
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    raise ValueError("not an expression of whole numbers")
