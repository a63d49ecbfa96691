"""Exact match of what follows the last `=`, `####` or `answer:` after the thinking (or of all of it). Fast.

An integer answer needs an integer there and nothing else; other answers match as text, whatever the
capitals and the white space. A gold answer that is a JSON list (`["Paris", "Paris, France"]`) is several of them.
"""

from __future__ import annotations

import json
import re

VERSION = "exact-2"
MARK = re.compile(r"=|####|answer\s*(?:is|:)", re.IGNORECASE)
INTEGER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d{1,400})", re.ASCII)


def verify(response: str, answer: str) -> dict[str, object]:
    """Score 1 or 0; `parsed` says whether an answer of the right kind was there."""
    golds, given = [_key(gold) for gold in _golds(answer)], _key(_final(response))
    integers = all(INTEGER.fullmatch(gold) for gold in golds)
    parsed = INTEGER.fullmatch(given) is not None if integers else given != ""
    right = parsed and given in golds
    return {"score": float(right), "parsed": parsed, "answer_key": (golds[0] if right else given) if parsed else None}


def explain(response: str, answer: str) -> list[str]:
    """What is compared."""
    return [f"answer: {_key(_final(response))[:200]!r}", f"gold: {[_key(gold) for gold in _golds(answer)]}"]


def check_answer(answer: str, config: None) -> str | None:
    """An answer that is empty, or that `verify` would cut at a mark, can never be matched."""
    for gold in _golds(answer):
        if not gold.strip():
            return "it is empty"
        if MARK.search(gold):
            return "it contains a mark (`=`, `####`, `answer:`)"
    return None


def _golds(answer: str) -> list[str]:
    if answer.lstrip().startswith("["):
        try:
            several = json.loads(answer)
        except json.JSONDecodeError:
            return [answer]
        if several and all(isinstance(one, str) for one in several):
            return several
    return [answer]


def _final(response: str) -> str:
    head, closed, rest = response.rpartition("</think>")
    text = rest if closed else head + rest.partition("<think>")[0]
    return MARK.split(text)[-1]


def _key(text: str) -> str:
    """One spelling per answer: `+1,024.` and `1024` are the same integer."""
    text = " ".join(text.split()).removesuffix(".").casefold()
    return str(int(text.replace(",", ""))) if INTEGER.fullmatch(text) else text
