"""The math verifier on measured pairs, on known exploits, and on real solutions."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

from rlvr.catalog import find, load


@pytest.fixture(scope="module")
def math(root: Path) -> ModuleType:
    return load(find("rewards", "math", project=root))


RIGHT = [  # (gold, prediction)
    (r"\frac13", "0.333333"), (r"10\%", "10"), (r"\{1,2\}", "(1,2)"), ("(1,2)", r"\{1,2\}"), ("1<x<2", "(1,2)"),
    ("33", "033"), (r"2\sqrt2", r"\sqrt8"), (r"2\sqrt2", "2.828427"), (r"\text{(C)}", "C"), (r"\pi", "3.14159265"),
    ("1", "1"), ("50", r"50\%"), ("x=5", "5"), ("5", "x=5"), ("x^2+2x+1", "(x+1)^2"), (r"90^\circ", "90"),
    (r"x \in [1,2)", "[1,2)"), ("y=2x+3", "2x+3"), ("x=1,y=2", "(1,2)"), ("6", "6.0"), ("3", r"3\text{ apples}"),
    ("1000", "1,000"), ("1000", "1{,}000"), (r"\frac{1}{2}", r"\dfrac12"), ("5", "5 cm"), ("5 cm", "5"), ("1,2", "2,1"),
    (r"\text{even}", "even"), ("Evelyn", r"\text{Evelyn}"), (r"1\frac12", "3/2"), ("3", r"\textbf{(3)}"),
    (r"3\pm\sqrt2", r"3-\sqrt2,3+\sqrt2"), ("113", "113."), ("5", r"\$5"), ("(1,2)", r"\left( 1, 2 \right)"),
    (r"4.5\times10^{33}", r"4.5 \times 10^{33}"), ("12_8", "12_{8}"), (r"-\frac{1}{2}", "-0.5"), ("-3", "\u22123"),
    (r"101", r"x=101"), (r"10\text{ cm}", r"10\mathrm{cm}"), ("72", r"72\,\text{dollars}"),
    (r"\frac{1}{3} E_{1}+\frac{2}{3} E_{2}", r"\frac{E_1+2E_2}{3}"), (r"E_{1},E_{2}", "E_1, E_2"),
    (r"2 L_{\odot}", r"L_\odot + L_{\odot}"), (r"m_{\max }=n^{2}-1", "(n-1)(n+1)"), (r"e^{2} E_0", r"E_{0}e^2"),
    (r"1.24 \times 10^{-8}", "0.0000000124"), ("0.0123456789", "0.012346"),
]  # fmt: skip
WRONG = [
    (r"\frac13", "0.3333"), ("(1,2)", "[1,2]"), ("(1,2)", "(2,1)"), ("(1,2)", "1<x<2"), (r"\pi", "3.14"),
    ("6", "6.0000001"), ("5", ""), (r"2\sqrt2", "2.83"), (".333", "1/3"), ("C", "B"), ("even", "odd"), ("x=5", "y=5"),
    ("7", "8"), ("A", "a b"), (r"E_{1}", r"E_{2}"), (r"e^{2} E_0", r"E_{0}^3"), (r"L_{\odot}", "L"),
    (r"1.24 \times 10^{-8}", r"2.55 \times 10^{-10}"), (r"2 \times 10^{-9}", "0"), ("7", "9" * 5000),
]  # fmt: skip
EXPLOITS = [  # math-verify 0.9 takes each of these for right
    (r"\frac12", r"\int_0^1 x dx"), ("5050", r"\sum_{i=1}^{100} i"), (r"10\text{ cm}", r"10\text{ m}"), ("12_8", "12"),
    ("12", "12_8"), (r"10\%", "0.1"), ("7", "3 4"), (r"\frac{11}{30}", "11:30"), ("1024", "2^{10}"),
    ("4", r"\sqrt{16}"),
    ("10", r"\binom{5}{2}"),
    (r"\frac34", r"\lim_{x\to 0} \frac{3}{4}"),
]  # fmt: skip


def boxed(math: ModuleType, gold: str, prediction: str, *, problem: str = "") -> dict:
    return math.verify(f"So it is $\\boxed{{{prediction}}}$.", gold, {"prompt": problem})


@pytest.mark.parametrize(("gold", "prediction"), RIGHT)
def test_right(math: ModuleType, gold: str, prediction: str) -> None:
    verdict = boxed(math, gold, prediction)
    assert verdict["score"] == 1 and verdict["parsed"]
    assert verdict["answer_key"] == boxed(math, gold, gold)["answer_key"]  # one key for all that is right
    assert math.check_answer(gold, None) is None


@pytest.mark.parametrize(("gold", "prediction"), WRONG + EXPLOITS)
def test_wrong(math: ModuleType, gold: str, prediction: str) -> None:
    verdict = boxed(math, gold, prediction)
    assert verdict["score"] == 0
    assert verdict.get("answer_key") != boxed(math, gold, gold)["answer_key"]  # it must not vote with the right ones


def test_the_problem_copied_is_no_answer(math: ModuleType) -> None:
    problem = r"Simplify $\dfrac{x^2-1}{x-1}$ for $x \ne 1$."
    assert boxed(math, "x+1", r"\frac{x^2 - 1}{x-1}", problem=problem)["detail"] == "copied from the problem"
    assert boxed(math, "x+1", "x + 1", problem=problem)["score"] == 1
    assert boxed(math, "x+1", "1+x", problem="What is $1+x$?")["score"] == 0
    assert boxed(math, r"\frac12", "2/4", problem="Reduce 2/4.")["score"] == 0
    assert boxed(math, "0.5", "0.50", problem="Is it 0.50 or 0.6?")["score"] == 1  # a number may stand in the problem


@pytest.mark.parametrize(
    ("response", "gold", "score", "parsed"),
    [
        (r"<think>\boxed{6}</think> I don't know", "6", 0, False),
        (r"<think>\boxed{6}", "6", 0, False),  # never came to an end
        (r"<think>\boxed{5}</think> \boxed{6}", "6", 1, True),
        (r"\boxed{6} and \boxed{7}", "7", 1, True),
        (r"\boxed{6} and \boxed{7}", "6", 0, True),
        (r"\boxed{6} or \boxed{}", "6", 0, False),
        (r"\boxed{6", "6", 0, False),
        (r"\boxed 6", "6", 1, True),
        (r"\fbox{\frac{1}{2}}", "1/2", 1, True),
        ("The final answer is $5$. I hope it is right.", "5", 1, True),
        ("Answer: 42", "42", 1, True),
        ("answer is 41. No: the answer is **42**.", "42", 1, True),
        ("so\n#### 1,024", "1024", 1, True),
        ("so\nA: 18", "18", 1, True),
        ("It is 42", "42", 0, False),  # no fallback to any number that stands somewhere
        ("", "42", 0, False),
        ("\\boxed{\\frac{}", "42", 0, False),
    ],
)
def test_which_answer_counts(math: ModuleType, response: str, gold: str, score: float, parsed: bool) -> None:
    verdict = math.verify(response, gold, {"prompt": ""})
    assert (verdict["score"], verdict["parsed"]) == (score, parsed)


def test_several_boxes_are_told(math: ModuleType) -> None:
    assert "3 boxes" in math.verify(r"\boxed{1}\boxed{2}\boxed{3}", "3", {"prompt": ""})["detail"]


@pytest.mark.parametrize("gold", ["", "  ", "$$", r"\frac{", "?!"])
def test_unusable_gold(math: ModuleType, gold: str) -> None:
    assert math.check_answer(gold, None)


HARD = ["(" * 40 + "1+x" + ")" * 40, r"\sqrt{" * 40 + "2" + "}" * 40, "10^{10^{10}}", "9^{9^{9^9}}", "(x+1)^{99999}"]
HARD += ["(" * 1000, "x" * 3000, "9" * 1999, r"\frac{" * 300, "99999!!", r"\frac{1}{10^{10^8}}"]


@pytest.mark.parametrize("answer", HARD)
@pytest.mark.parametrize("gold", ["x+1", "7", "(1,2)", r"2\sqrt2"])
def test_what_would_never_come_to_an_end_is_wrong_at_once(math: ModuleType, gold: str, answer: str) -> None:
    started = time.process_time()
    verdict = boxed(math, gold, answer)
    assert verdict["score"] == 0 and time.process_time() - started < 1
    assert verdict.get("answer_key") != boxed(math, gold, gold)["answer_key"]


@pytest.mark.parametrize(
    "answer",
    [
        "2^{1009}",
        "x^{2^{k}}",
        "x^2+y^2+z^2",
        "e^{x^2+y^2}",
        "(((1+x)))",
        r"\sqrt{2+\sqrt{2+\sqrt{2+\sqrt{3}}}}",
        "(x+1)^{10}",
    ],
)
def test_what_looks_hard_and_is_not(math: ModuleType, answer: str) -> None:
    assert boxed(math, answer, answer)["score"] == 1 and math.check_answer(answer, None) is None


def test_works_off_the_main_thread(math: ModuleType) -> None:
    verdicts: list[dict] = []
    math.formula.cache_clear()
    thread = threading.Thread(target=lambda: verdicts.append(boxed(math, r"2\sqrt2", r"\sqrt8")))
    thread.start()
    thread.join(60)
    assert [v["score"] for v in verdicts] == [1]


def rows(file: Path) -> list[dict]:
    if not file.is_file():
        pytest.skip(f"no real rows: {file.name} is not in {file.parent}")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_agrees_with_the_authors_on_real_gsm8k_solutions(math: ModuleType, real_data: Path) -> None:
    judged = [
        (solution["solution"], row["ground_truth"].rpartition("A:")[2].strip(), solution["is_correct"])
        for row in rows(real_data / "gsm8k_model_solutions.jsonl")
        for solution in row.values()
        if isinstance(solution, dict)
    ]
    assert len(judged) == 4 * 1319
    assert [s for s, gold, right in judged if math.verify(s, gold, {"prompt": ""})["score"] != right] == []


def test_real_math_answers_and_solutions(math: ModuleType, real_data: Path) -> None:
    some = rows(real_data / "math500.jsonl")[::4]
    bad = [
        row["answer"]
        for row in some
        if math.check_answer(row["answer"], None)
        or boxed(math, row["answer"], row["answer"], problem=row["problem"])["score"] != 1
        or math.verify(row["solution"], row["answer"], {"prompt": row["problem"]})["score"] != 1
    ]
    assert bad == []


def test_answers_of_other_problems_are_wrong(math: ModuleType, real_data: Path) -> None:
    answers = [row["answer"] for row in rows(real_data / "math500.jsonl")[::5]]
    keys = [boxed(math, answer, answer)["answer_key"] for answer in answers]
    pairs = list(zip(answers, answers[1:], keys, keys[1:], strict=False))
    assert [(a, b) for a, b, k, m in pairs if k != m and boxed(math, a, b)["score"] != 0] == []
