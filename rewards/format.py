r"""The shape of a response: tags once each and in order, a filled box after them. Says nothing about the answer.

`verifier: {name: format, tags: [think, answer], box: false}`. Meant as a part of a composition: alone it pays for form.
All or nothing: partial credit per tag is farmed by writing tags.
"""

from __future__ import annotations

import re

from pydantic import BaseModel

VERSION = "format-1"
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{\s*([^\s}])?")


class Config(BaseModel, extra="forbid", frozen=True):
    tags: tuple[str, ...] = ("think",)  # each opened and closed exactly once, in this order, none inside another
    opened: bool = False  # the prompt ends with the first tag's opening
    only: bool = False  # nothing but white space between and after the tags
    box: bool = True  # exactly one box, not empty, after the tag `think` where that is one of `tags`


def verify(response: str, answer: str, config: Config) -> dict[str, object]:
    """Score 1 or 0; `detail` says what is missing. No answer key: it judges no answer."""
    text = f"<{config.tags[0]}>{response}" if config.opened and config.tags else response
    why = _why(text, config)
    return {"score": float(not why), "detail": why}


def explain(response: str, answer: str, config: Config) -> list[str]:
    """The rule and what breaks it."""
    rule = f"tags {', '.join(config.tags) or 'none'}{', a box' if config.box else ''}"
    return [f"rule: {rule}", str(verify(response, answer, config)["detail"] or "kept")]


def _why(text: str, config: Config) -> str:
    at, rest = 0, ""
    for tag in config.tags:
        opening, closing = f"<{tag}>", f"</{tag}>"
        if (text.count(opening), text.count(closing)) != (1, 1):
            return f"{opening} {text.count(opening)} times, {closing} {text.count(closing)} times; expected one each"
        begin, end = text.index(opening), text.index(closing)
        if not at <= begin < end:
            return f"{opening} is out of order"
        if not text[begin + len(opening) : end].strip():
            return f"{opening} is empty"
        rest += text[at:begin]
        at = end + len(closing)
    if config.only and (rest + text[at:]).strip():
        return "text outside the tags"
    boxes = BOX.findall(text.rpartition("</think>")[2] if "think" in config.tags else text)
    if config.box and len(boxes) != 1:
        return f"{len(boxes)} boxes after the thinking, expected 1"
    return "the box is empty" if config.box and not boxes[0] else ""
