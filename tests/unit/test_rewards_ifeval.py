"""Each kind of instruction, on texts counted by hand; strict and loose; what is wrong with a gold answer."""

# ruff: noqa: RUF001  (letters of other scripts)

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rlvr.catalog import find, load

AT_LEAST, LESS = "at least", "less than"
WORDS = "length_constraints:number_words"

# kind, arguments, texts that follow it, texts that do not
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["Red", "blue sky"]}, ["a red Blue Sky"], ["red", "blue skies above"]),
    (
        "keywords:frequency",
        {"keyword": "one", "frequency": 2, "relation": AT_LEAST},
        ["One and one", "one one one"],
        ["one", "on e one"],
    ),
    ("keywords:frequency", {"keyword": "a.c", "frequency": 1, "relation": LESS}, ["abc"], ["a.c"]),
    ("keywords:forbidden_words", {"forbidden_words": ["cat", "C++"]}, ["concatenate", "C"], ["A Cat.", "in C++!"]),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 3, "let_relation": AT_LEAST},
        ["Eee", "tree e"],
        ["tree"],
    ),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": LESS}, ["# a"], ["# a #"]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": LESS},
        ["One. Two!", "Dr. No met Mr. X. Then he left.", "At 3.5 percent. Well"],
        ["One. Two! Three?", "One? Yes. (No.)"],
    ),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": AT_LEAST}, ["A b. C d."], ["A b"]),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "***\na\n***\nb\n***"],
        ["a", "a\n***\n***\nb", "a\n***\nb\n***\nc"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 4, "relation": AT_LEAST},
        ["one two, three-four", "a b c d e"],
        ["one two three"],
    ),
    ("length_constraints:number_words", {"num_words": 4, "relation": LESS}, ["one two three"], ["one two three four"]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weekend"},
        ["A b.\n\nWeekend, at last.", 'x\n\n"weekend" y'],
        ["Weekend\n\nb", "a\n\nweekends", "a\n\nweekend\n\nc", "weekend"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name] at [street 1]"],
        ["[name]", "[] []", "[a"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. more", "Bye\n\n**P. S.** more", "x\np.s. y"],
        ["Bye", "the PSA said", "see ps. 3 there"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["x\nP.P.S. y", "x\nP. P. S y"],
        ["x\nP.S. y"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "x\n- a\n  - b"],
        ["* a", "* a\n* b\n- c", "**a**\n**b**"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "Well. My answer is maybe. So"],
        ["my answer is yes", "My answer is perhaps."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b c*", "**a** *b*"],
        ["*a*", "* a\n* b", "** ** *x*"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb"],
        ["SECTION 1\na", "Section 1 Section 2", "SECTION\nSECTION"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', "```json\n[1]\n```", " 3 "],
        ["{a: 1}", 'x {"a": 1}', "[" * 5000],
    ),
    ("detectable_format:title", {}, ["<<Joy>>\nx", "x <<a b>>"], ["<Joy>", "<<>>", "<< >>", "<<a\nb>>"]),
    (
        "combination:two_responses",
        {},
        ["a\n******\nb", "******a******b******"],
        ["a", "a******a", "a******b******c", "a************b"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write a poem."},
        ["write a poem.\nRoses", " Write a poem. x"],
        ["Sure. Write a poem."],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "Is there more?"},
        ["Yes. is there more?", '"Is there more?" '],
        ["Is there more? No."],
    ),
    ("startend:quotation", {}, ['"a b"', ' "x"\n'], ['"a', 'a"', '"', "'a'"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": AT_LEAST},
        ["I am HERE", "A B c"],
        ["I am here", "1 2 3 X"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": LESS},
        ["NASA flew"],
        ["NASA AND"],
    ),
    ("change_case:english_capital", {}, ["ALL 3 OF US!"], ["All", "123"]),
    ("change_case:english_lowercase", {}, ["all 3 of us!"], ["All", "123"]),
    ("punctuation:no_comma", {}, ["a; b."], ["a, b"]),
    (
        "language:response_language",
        {"language": "de"},
        ["Das ist nicht der Weg, und es wird auch nicht besser."],
        ["This is not the way.", "Ce n'est pas la route.", "Это не так", "12 34"],
    ),
]  # fmt: skip
LANGUAGES = {
    "en": "This is the house that we have in the city.",
    "es": "La casa es grande y está en el centro de la ciudad.",
    "pt": "A casa é grande e não está no centro da cidade.",
    "fr": "La maison est dans le centre et elle ne se vend pas.",
    "it": "La casa è grande e non si trova nel centro della città.",
    "pl": "Ten dom nie jest w centrum i to się nie zmieni.",
    "vi": "Đây là một ngôi nhà của người dân và không có các phòng lớn.",
    "sw": "Nyumba hii ni ya watu wa mji na si kubwa sana.",
    "fi": "Tämä talo on suuri ja se ei ole keskustassa.",
    "ru": "Это большой дом, но он не в центре и не на реке.",
    "uk": "Це великий дім, але він не у центрі та не на річці.",
    "bg": "Това е голяма къща, но не е в центъра и няма да се продава.",
    "ar": "هذا هو البيت الذي كان في المدينة",
    "fa": "این خانه در شهر است و برای آن که",
    "ur": "یہ گھر شہر میں ہے اور اس کا نام",
    "hi": "यह घर शहर में है और इस का नाम",
    "ne": "यो घर ठूलो छ र सहर मा छ",
    "mr": "हे घर मोठे आहे आणि ते शहरात आहे",
    "bn": "এই বাড়ি বড়",
    "th": "บ้านหลังนี้ใหญ่",
    "ko": "이 집은 크다",
    "ja": "この家は大きいです",
    "he": "הבית הזה גדול",
    "ta": "இந்த வீடு பெரியது",
}


@pytest.fixture
def ifeval(root: Path) -> ModuleType:
    return load(find("rewards", "ifeval", project=root))


def gold(*kinds: tuple[str, dict[str, Any]]) -> str:
    return json.dumps({"instruction_id_list": [k for k, _ in kinds], "kwargs": [o for _, o in kinds]})


@pytest.mark.parametrize(("kind", "options", "good", "bad"), CASES, ids=[c[0] for c in CASES])
def test_each_kind(ifeval: ModuleType, kind: str, options: dict[str, Any], good: list[str], bad: list[str]) -> None:
    answer, config = gold((kind, options)), ifeval.Config()
    assert ifeval.check_answer(answer, config) is None
    assert [t for t in good if ifeval.verify(t, answer, config)["score"] != 1] == []
    assert [t for t in (*bad, "", " \n") if ifeval.verify(t, answer, config)["score"] != 0] == []


def test_all_25_kinds_have_a_case(ifeval: ModuleType) -> None:
    assert {c[0] for c in CASES} == set(ifeval.CHECKS) and len(ifeval.CHECKS) == 25


@pytest.mark.parametrize("language", LANGUAGES)
def test_languages_are_told_apart(ifeval: ModuleType, language: str) -> None:
    assert [name for name in LANGUAGES if ifeval.response_language(LANGUAGES[language], name)] == [language]


def test_strict_and_loose(ifeval: ModuleType) -> None:
    answer = gold(("punctuation:no_comma", {}), ("startend:quotation", {}))
    text = 'Sure, here it is:\n"**A poem**"\nHope it helps, bye'
    strict = ifeval.verify(text, answer, ifeval.Config())
    assert (strict["score"], strict["correct"]) == (0, False)
    assert strict["detail"] == "not followed: punctuation:no_comma, startend:quotation"
    assert ifeval.verify(text, answer, ifeval.Config(mode="loose"))["score"] == 1
    assert len(ifeval.loosened(text)) == 8
    stars = gold(("detectable_format:number_bullet_lists", {"num_bullets": 0}))
    assert ifeval.verify("* a", stars, ifeval.Config())["score"] == 0
    assert ifeval.verify("* a", stars, ifeval.Config(mode="loose"))["score"] == 1


def test_fraction_or_all(ifeval: ModuleType) -> None:
    answer = gold(("punctuation:no_comma", {}), ("startend:quotation", {}), ("detectable_format:title", {}))
    verdict = ifeval.verify("<think>, </think>a <<b>>", answer, ifeval.Config())
    assert verdict["score"] == pytest.approx(2 / 3) and not verdict["correct"]
    assert ifeval.verify("a <<b>>", answer, ifeval.Config(partial=False))["score"] == 0
    assert ifeval.verify('"a <<b>>"', answer, ifeval.Config(partial=False))["score"] == 1


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("x", "expected JSON"),
        ('{"instruction_id_list": [], "kwargs": []}', "not empty"),
        ('{"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}', "same length"),
        (gold(("punctuation:no_coma", {})), "did you mean 'punctuation:no_comma'"),
        (
            gold(("length_constraints:number_words", {"num_words": 3})),
            "takes ['num_words', 'relation'], got ['num_words']",
        ),
        (gold(("punctuation:no_comma", {"n": 3})), "takes no arguments"),
        (gold((WORDS, {"num_words": 3, "relation": "exactly"})), "expected less than or at least"),
        (gold(("length_constraints:number_words", {"num_words": "3", "relation": LESS})), "expected int"),
        (gold(("keywords:existence", {"keywords": "a"})), "expected list[str]"),
        (gold(("language:response_language", {"language": "tlh"})), "known are"),
    ],
)
def test_golds_are_checked(ifeval: ModuleType, answer: str, problem: str) -> None:
    assert problem in ifeval.check_answer(answer, ifeval.Config())


def test_nulls_and_floats_of_a_table(ifeval: ModuleType) -> None:
    answer = gold(("length_constraints:number_words", {"num_words": 2.0, "relation": LESS, "letter": None}))
    assert ifeval.check_answer(answer, ifeval.Config()) is None
    assert ifeval.verify("one", answer, ifeval.Config())["score"] == 1
