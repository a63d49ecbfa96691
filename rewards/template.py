"""Copy me: right when the last word is the answer. In a recipe: `verifier: {name: template, lower: true}`."""

from pydantic import BaseModel


class Config(BaseModel, extra="forbid"):
    lower: bool = False  # capitals do not matter


def verify(response: str, answer: str, config: Config) -> bool:
    """True, a score such as 0.5, or {"score": 0.5, "answer_key": "7", "parsed": True, "detail": "..."}."""
    last = (response.split() or [""])[-1]
    return last.lower() == answer.lower() if config.lower else last == answer
