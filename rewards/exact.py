"""Exact match of what follows the last `=`, `####` or `answer:` (or of the whole response). Fast.

An integer answer needs an integer there and nothing else; other answers match as text, whatever the
capitals and the white space.
"""

from __future__ import annotations

import re

VERSION = "exact-1"
MARK = re.compile(r"=|####|answer\s*(?:is|:)", re.IGNORECASE)
INTEGER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)", re.ASCII)


def verify(response: str, answer: str) -> dict[str, object]:
    """Score 1 or 0; `parsed` says whether an answer of the right kind was there."""
    gold, given = _key(answer), _key(MARK.split(response)[-1])
    parsed = given != "" if INTEGER.fullmatch(gold) is None else INTEGER.fullmatch(given) is not None
    return {"score": float(parsed and given == gold), "parsed": parsed, "answer_key": given if parsed else None}


def check_answer(answer: str, config: None) -> str | None:
    """An answer that is empty, or that `verify` would cut at a mark, can never be matched."""
    if not answer.strip():
        return "it is empty"
    return "it contains a mark (`=`, `####`, `answer:`)" if MARK.search(answer) else None


def _key(text: str) -> str:
    """One spelling per answer: `+1,024.` and `1024` are the same integer."""
    text = " ".join(text.split()).removesuffix(".").casefold()
    return str(int(text.replace(",", ""))) if INTEGER.fullmatch(text) else text
