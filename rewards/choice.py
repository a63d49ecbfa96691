r"""Multiple choice: the letter in the last box after the thinking; without a box, the one after the last `answer is`.

`Answer: (B)`, `the answer is B. Paris`, `\boxed{\text{(b)}}`. Several letters (`A, C`) are a set and must all be right,
so a list of every letter is wrong. A letter that begins a word or a sentence (`A cat sat`) is none.
"""

from __future__ import annotations

import re

from pydantic import BaseModel

VERSION = "choice-1"
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
ANCHOR = re.compile(r"(?:####|\banswer\s*(?:is|:|=)[ :]*|^(?:A|Answer):)[ \t]*", re.IGNORECASE | re.MULTILINE)
DRESS = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*|[*$`{}]")
LETTER = r"(?:\(\s*[A-Za-z]\s*\)|[A-Za-z](?![\w']))"
LETTERS = re.compile(rf"\s*(?:(?:option|choice)s?\s+)?({LETTER}(?:\s*(?:,|and|&)\s*{LETTER})*)(.*)", re.I | re.DOTALL)


class Config(BaseModel, extra="forbid", frozen=True):
    letters: str = "ABCDEFGHIJ"  # the choices that there are


def verify(response: str, answer: str, config: Config) -> dict[str, object]:
    """Score 1 where the set of letters is the gold one's; the key is the letters in order."""
    place, text = _final(response)
    given, gold = _letters(text, config), _letters(answer, config)
    if not gold:
        raise ValueError(f"gold answer {answer!r} is no letter of {config.letters}")
    return {"score": float(given == gold), "parsed": bool(given), "answer_key": given or None, "detail": place}


def explain(response: str, answer: str, config: Config) -> list[str]:
    """Where the letter was looked for, and what was read there."""
    place, text = _final(response)
    return [f"{place}: {text.strip()[:80]!r}", f"read as {_letters(text, config) or 'nothing'}, gold {answer!r}"]


def check_answer(answer: str, config: Config) -> str | None:
    """A gold answer must be letters of the choices."""
    return None if _letters(answer, config) else f"it is no letter of {config.letters}"


def _final(response: str) -> tuple[str, str]:
    head, closed, rest = response.rpartition("</think>")
    text = rest if closed else head + rest.partition("<think>")[0]
    if boxes := BOX.findall(text):
        return f"box {len(boxes)} of {len(boxes)}", boxes[-1]
    if marks := list(ANCHOR.finditer(text)):
        return "after the last `answer is`", text[marks[-1].end() :].partition("\n")[0]
    return "the whole answer", text if len(text.strip()) <= 4 else ""


def _letters(text: str, config: Config) -> str:
    match = LETTERS.fullmatch(DRESS.sub("", text))
    if match is None:
        return ""
    found, rest = match[1], match[2]
    bare = found.isalpha()
    if bare and (found.islower() or (found in "AI" and re.match(r"\s+[a-z]", rest))) and rest.strip(" .,;:)\n"):
        return ""  # `A cat sat`, `a train`
    letters = sorted(set(re.sub(r"\band\b|[^A-Za-z]", "", found).upper()))
    return "".join(letters) if set(letters) <= set(config.letters.upper()) else ""
