"""Question answering: token F1 with the closest of several gold answers, as in SQuAD (1606.05250).

The answer is what the last `<answer>` tag after the thinking holds, else what follows the last `answer is`, else the
whole text. Words are compared in lower case, without punctuation and without a, an, the. A gold answer that is a JSON
list (`["Paris", "City of Paris"]`) is several of them. `correct` is an exact match; the score is the F1, so that a
policy is paid in part for words: precision makes a long answer that holds the right one score little, and one of more
than `max_words` words scores 0.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter

from pydantic import BaseModel, PositiveInt

VERSION = "f1-1"
TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
MARK = re.compile(r"####|\banswer\s*(?:is\b|:)", re.IGNORECASE)
ARTICLE = re.compile(r"\b(?:a|an|the)\b")
STRIPPED = str.maketrans("", "", string.punctuation)


class Config(BaseModel, extra="forbid", frozen=True):
    max_words: PositiveInt = 20  # of an answer
    exact: bool = False  # score 1 or 0: exact match instead of F1


def verify(response: str, answer: str, config: Config) -> dict[str, object]:
    """The best F1 over the gold answers; `answer_key` is the answer's normal form."""
    given = normal(final(response))
    if not given or len(given.split()) > config.max_words:
        return {"score": 0.0, "parsed": False, "detail": "no answer" if not given else "too many words"}
    best = max((normal(gold) for gold in golds(answer)), key=lambda gold: f1(given, gold))
    score = float(given == best) if config.exact else f1(given, best)
    return {"score": score, "correct": given == best, "answer_key": given, "detail": f"closest to {best!r}"}


def explain(response: str, answer: str, config: Config) -> list[str]:
    """The answer, its normal form, and the F1 with every gold answer."""
    given = normal(final(response))
    found = [f"answer {final(response).strip()[:200]!r}, in normal form {given[:200]!r}"]
    return found + [f"F1 {f1(given, normal(gold)):.4f} with {normal(gold)!r}" for gold in golds(answer)]


def check_answer(answer: str, config: Config) -> str | None:
    """Every gold answer needs a word that is left after normalising."""
    empty = [gold for gold in golds(answer) if not normal(gold)]
    return f"nothing is left of {empty[0]!r} without punctuation and articles" if empty else None


def golds(answer: str) -> list[str]:
    """The gold answers: a JSON list of texts, or the text itself."""
    if answer.lstrip().startswith("["):
        try:
            several = json.loads(answer)
        except json.JSONDecodeError:
            return [answer]
        if several and all(isinstance(one, str) for one in several):
            return several
    return [answer]


def final(response: str) -> str:
    """What the response gives as its answer; empty while it is still thinking."""
    head, closed, rest = response.rpartition("</think>")
    text = rest if closed else head + rest.partition("<think>")[0]
    tags = TAG.findall(text)
    return tags[-1] if tags else MARK.split(text)[-1]


def normal(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    return " ".join(ARTICLE.sub(" ", text.lower().translate(STRIPPED)).split())


def f1(given: str, gold: str) -> float:
    """2 PR / (P + R) over the tokens both have, counted with their repeats; 0 where they share none."""
    a, b = given.split(), gold.split()
    same = sum((Counter(a) & Counter(b)).values())
    return 2 * same / (len(a) + len(b)) if same else 0.0
