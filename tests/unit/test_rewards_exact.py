"""The exact and template verifiers."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlvr.catalog import find, load


@pytest.mark.parametrize(
    ("response", "answer", "score", "parsed"),
    [
        ("3+8=11", "11", 1, True),
        ("3+8=11=12", "11", 0, True),
        ("3+8=12=11", "11", 1, True),
        ("11", "11", 1, True),
        ("=  +1,024. ", "1024", 1, True),
        ("=-5", "-5", 1, True),
        ("=5", "-5", 0, True),
        ("=011", "11", 1, True),
        ("=11 or 12", "11", 0, False),
        ("=11=", "11", 0, False),
        ("=\u0661\u0661", "11", 0, False),  # digits of another script
        ("", "11", 0, False),
        ("Answer: Paris.", "paris", 1, True),
        ("the answer is  New  York", "New York", 1, True),
        ("#### 7", "7", 1, True),
    ],
)
def test_exact(root: Path, response: str, answer: str, score: float, parsed: bool) -> None:
    exact = load(find("rewards", "exact", project=root))
    verdict = exact.verify(response, answer)
    assert (verdict["score"], verdict["parsed"]) == (score, parsed)
    assert (verdict["answer_key"] is not None) == parsed


def test_exact_gold(root: Path) -> None:
    exact = load(find("rewards", "exact", project=root))
    assert exact.check_answer("11", None) is None
    assert exact.check_answer(" ", None) and exact.check_answer("x=1", None)


def test_template_is_short_and_works(root: Path) -> None:
    found = find("rewards", "template", project=root)
    assert len(found.path.read_text().splitlines()) < 15
    template = load(found)
    assert template.verify("it is 7", "7", template.Config())
    assert not template.verify("", "7", template.Config())
    assert not template.verify("YES", "yes", template.Config())
    assert template.verify("YES", "yes", template.Config(lower=True))
