"""Training rows that stand in an evaluation set are found, whatever their layout, and templates are no overlap."""

from __future__ import annotations

import pytest

from rlvr.errors import DataError
from rlvr.overlap import EXACT, GRAM, without_overlap
from rlvr.rows import Dataset
from rlvr.types import Task

LONG = "a bag holds three red and five blue balls and two are drawn at random without looking inside"  # 18 words


def made(*prompts: str, source: str = "mine") -> Dataset:
    return Dataset(Task(str(i), prompt, "1", source=source) for i, prompt in enumerate(prompts))


def test_the_same_prompt_in_another_layout_is_dropped_and_shown() -> None:
    train = made("What is $1 + 1$?", "what is 1+1?  ", "What is 1-1?")
    [clean] = without_overlap([train], {"bench": made("What is $1+1$?")})
    assert [t.id for t in clean] == ["2"] and clean.dropped == {EXACT: 2}
    [note] = clean.notes
    assert "2 of 3 training rows" in note and "row '0' is bench/0" in note and "2 whole prompts" in note


@pytest.mark.parametrize(("words", "dropped"), [(13, 1), (12, 0)])
def test_thirteen_words_in_a_row(words: int, dropped: int) -> None:
    shared = " ".join(LONG.split()[:words])
    [clean] = without_overlap([made(f"First {shared}, but then?", "other")], {"bench": made(f"So: {shared.upper()}!!")})
    assert clean.dropped[GRAM] == dropped and len(clean) == 2 - dropped


def test_a_template_of_the_evaluation_set_is_no_overlap() -> None:
    held_out = made(f"{LONG}. What about 7?", f"{LONG}. What about 8?")
    [clean] = without_overlap([made(f"{LONG}. What about 9?")], {"bench": held_out})
    assert len(clean) == 1
    [clean] = without_overlap([made(f"{LONG}. What about 9?", "x")], {"bench": held_out[:1]})
    assert len(clean) == 1 and clean[0].prompt == "x"
    [clean] = without_overlap([made(f"{LONG}?", "x")], {"a": made(LONG), "b": made(LONG)})  # one prompt in two sets
    assert len(clean) == 1


@pytest.mark.parametrize(("times", "left"), [(10, 1), (11, 12)])
def test_an_idiom_of_the_training_prompts_is_no_overlap(times: int, left: int) -> None:
    train = made(*(f"{LONG}. Find {i}." for i in range(times)), "other")
    [clean] = without_overlap([train], {"bench": made(f"{LONG}!")})
    assert len(clean) == left


def test_signs_and_numbers_are_not_the_same_prompt() -> None:
    [clean] = without_overlap([made("3+4*2=?", "3-4*2=?")], {"bench": made("3+4*2=?")})
    assert [t.prompt for t in clean] == ["3-4*2=?"]


def test_chats_and_what_was_counted_before() -> None:
    chat = Task("c", ({"role": "system", "content": "s"}, {"role": "user", "content": "u"}), "1", source="mine")
    train = Dataset([chat, *made("v")], {"repeats": 4}, ["a note"])
    [clean] = without_overlap([train], {"bench": made("S u")})
    assert [t.id for t in clean] == ["0"] and clean.dropped == {"repeats": 4, EXACT: 1} and len(clean.notes) == 2
    assert without_overlap([train], {}) == [train] and without_overlap([train], {"bench": Dataset()}) == [train]


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(DataError, match=r"2 of 2 training rows.*No row is left"):
        without_overlap([made("a", "b")], {"bench": made("b", "a")})
