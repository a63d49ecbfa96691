"""numeric, choice, exact, f1, format and the compositions: hand-worked cases and properties."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr.catalog import find, load
from rlvr.errors import ConfigError
from rlvr.recipe import Verifier
from rlvr.types import Verdict
from rlvr.verify.pool import VerifierPool
from rlvr.verify.specs import spec_problems
from tests.unit.verifiers import specs, task, write_verifier

ROOT = Path(__file__).resolve().parents[2]


def verifier(name: str) -> ModuleType:
    return load(find("rewards", name, project=ROOT))


@pytest.mark.parametrize(
    ("gold", "given", "score"),
    [
        ("10 cm", "0.1 m", 1), ("10 cm", "10", 1), ("10 cm", "0.1", 0), ("36 km/h", "10 m s^{-1}", 1),
        ("5 N", "5 kg m/s^2", 1),
        ("3e8", r"3 \times 10^{8}", 1), (r"4.5e33 \mathrm{ergs} \mathrm{s}^{-1}", r"4.5 \times 10^{26} \text{ W}", 1),
        (r"41.8^{\circ}", "41.8 degrees", 1), ("1/3", "0.333", 1), ("1/3", "0.32", 0), (r"50\%", "50", 1),
        (r"50\%", "0.5", 0),
        ("9.8 m/s^2", "9.81 meters per second squared", 1), ("100 parsecs", "100 parsec", 1),
        ("100 parsecs", "100 apples", 0),
        ("7", "7.07", 1), ("7", "7.08", 0), ("-3", "x = -3", 1), ("3", "-3", 0), ("1,024", "1024", 1),
        ("1", "1e999", 0),
        ("1", "1/0", 0), ("0", "0.0", 1), ("0", "0.001", 0), (r"\frac{2}{3}", "0.667", 1),
    ],
)  # fmt: skip
def test_numeric(gold: str, given: str, score: float) -> None:
    numeric = verifier("numeric")
    verdict = numeric.verify(f"So \\boxed{{{given}}}", gold, numeric.Config())
    keys = [numeric.verify(f"Answer: {one}", gold, numeric.Config()).get("answer_key") for one in (gold, given)]
    assert verdict["score"] == score
    assert (keys[0] == keys[1]) == bool(score)  # all that is right votes for one key, and nothing else does


@settings(max_examples=200, deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(0, 0.1), st.sampled_from(["cm", "m", "km", "mm"]))
def test_numeric_tolerance_holds_in_every_unit(value: float, off: float, unit: str) -> None:
    numeric = verifier("numeric")
    config = numeric.Config(rel=0.05)
    factor = {"cm": 100, "m": 1, "km": 1e-3, "mm": 1e3}[unit]
    verdict = numeric.verify(f"Answer: {value * (1 + off) * factor!r} {unit}", f"{value!r} m", config)
    assert verdict["score"] == (off <= 0.05) or abs(off - 0.05) < 1e-6


@pytest.mark.parametrize(
    ("response", "key"),
    [
        ("Answer: (B)", "B"), ("the answer is B. Paris", "B"), (r"\boxed{\text{(b)}}", "B"),
        ("Answer: **B**", "B"), ("(B)", "B"),
        ("Answer: B because", "B"), ("answer is option B", "B"), ("Answer: A and C", "AC"), ("Answer: banana", None),
        ("Answer: A cat", None), ("I think so", None), ("Answer: a", "A"), ("Answer: Z", None), ("Answer: C, A", "AC"),
        ("Answer: A\nAnswer: D", "D"), ("", None),
    ],
)  # fmt: skip
def test_choice(response: str, key: str | None) -> None:
    choice = verifier("choice")
    verdict = choice.verify(response, "B", choice.Config())
    assert (verdict["answer_key"], verdict["score"], verdict["parsed"]) == (key, key == "B", key is not None)
    assert choice.check_answer("B", choice.Config()) is None and choice.check_answer("banana", choice.Config())


@pytest.mark.parametrize(
    ("response", "gold", "score"),
    [
        ("Paris France", "Paris", 2 / 3), ("in the city of Paris", "Paris", 0.4), ("the Paris", "Paris", 1),
        ("", "Paris", 0),
        ("<answer>NYC</answer>", '["New York", "NYC"]', 1),
        ("<answer>new york city</answer>", '["New York", "NYC"]', 0.8),
        ("the answer is: U.S.A.!", "USA", 1), ("a a b", "a b b", 1), ("x x y", "x y y", 2 * 2 / 6),
        ("z", "[not a list", 0),
    ],
)  # fmt: skip
def test_f1(response: str, gold: str, score: float) -> None:
    """Articles go first: `in the city of Paris` keeps 4 words, so 2 * 1 / (4 + 1); `a a b` is `b`, `a b b` is `b b`."""
    f1 = verifier("f1")
    expected = score if response != "a a b" else 2 / 3  # b against b b
    verdict = f1.verify(response, gold, f1.Config())
    assert verdict["score"] == pytest.approx(expected)
    assert verdict.get("correct", False) == (expected == 1)


def test_exact_takes_several_golds() -> None:
    exact = verifier("exact")
    keys = {
        exact.verify(f"Answer: {a}", '["Paris", "Paris, France"]')["answer_key"] for a in ("paris.", "PARIS, France")
    }
    assert keys == {"paris"}
    assert exact.verify("Answer: France", '["Paris", "Paris, France"]')["score"] == 0
    assert exact.check_answer('["Paris", ""]', None)


def test_format_options() -> None:
    fmt = verifier("format")
    both = fmt.Config(tags=("think", "answer"), box=False, only=True)
    assert fmt.verify("<think>a</think>\n<answer>b</answer>", "", both)["score"] == 1
    assert fmt.verify("<think>a</think> so <answer>b</answer>", "", both)["score"] == 0
    assert fmt.verify("<answer>b</answer><think>a</think>", "", both)["score"] == 0
    assert fmt.verify(r"a</think> \boxed{1}", "", fmt.Config(opened=True))["score"] == 1
    assert fmt.verify(r"\boxed{1}", "", fmt.Config(tags=()))["score"] == 1


# --- composition -----------------------------------------------------------------------------------------------------

GOOD, BARE, BAD = r"<think>x</think> \boxed{5}", r"\boxed{5}", r"<think>x</think> \boxed{6}"


async def scored(
    name: str, of: list, responses: list[str], *, answer: str = "5", project: Path = ROOT
) -> list[Verdict]:
    with VerifierPool(specs(name, project=project, of=of), processes=1) as pool:
        return await pool.score(task(answer), responses)


async def test_all_adds_up_and_the_heaviest_part_decides() -> None:
    verdicts = await scored("all", ["math", {"name": "format", "weight": 0.1}], [GOOD, BARE, BAD])
    assert [v.score for v in verdicts] == pytest.approx([1.1, 1.0, 0.1])
    assert [v.correct for v in verdicts] == [True, True, False]
    assert [v.answer_key for v in verdicts] == ["5", "5", "6"]
    assert verdicts[0].version.startswith("all-1(1 math math-3") and "0.1 format format-1" in verdicts[0].version


async def test_a_gate_pays_nothing_and_keeps_the_answer() -> None:
    verdicts = await scored("all", [{"name": "format", "gate": True}, "math"], [GOOD, BARE, BAD])
    assert [(v.score, v.correct, v.answer_key) for v in verdicts] == [(1, True, "5"), (0, False, "5"), (0, False, "6")]


async def test_equal_weights_must_all_be_right() -> None:
    verdicts = await scored("all", [{"name": "math", "weight": 0.5}, {"name": "format", "weight": 0.5}], [GOOD, BARE])
    assert [(v.score, v.correct) for v in verdicts] == [(1.0, True), (0.5, False)]


async def test_first_takes_what_can_be_read() -> None:
    of = ["numeric", {"name": "exact"}]
    numbers = await scored("first", of, ["Answer: 0.1 m", "Answer: ten cm"], answer="10 cm")
    assert [(v.score, v.detail.split(":")[0]) for v in numbers] == [(1, "by numeric"), (0, "by exact")]
    [words] = await scored("first", of, ["Answer: Paris"], answer="paris")  # numeric cannot use this gold
    assert words.correct and words.detail == "by exact"


async def test_a_parts_error_is_the_wholes(tmp_path: Path) -> None:
    write_verifier(tmp_path)
    of = [{"name": "format", "weight": 0.1, "tags": [], "box": False}, "nasty"]
    verdicts = await scored("all", of, ["echo 1", "raise luck", "return None", "_exit"], answer="1", project=tmp_path)
    assert [v.error for v in verdicts] == [None, "crash", "bad_verdict", "crash"]
    assert "nasty.py:" in verdicts[1].detail and verdicts[2].detail.startswith("nasty: ")
    assert {v.version for v in verdicts} == {verdicts[0].version}
    [unusable] = await scored("all", of, ["echo 1"], answer="bad", project=tmp_path)
    assert (unusable.error, unusable.detail) == ("gold_unparsed", "nasty: it is bad")


async def test_compositions_nest() -> None:
    inner = {"name": "first", "of": ["numeric", "math"]}
    verdicts = await scored("all", [inner, {"name": "format", "weight": 0.1}], [GOOD, BAD])
    assert [(v.score, v.correct) for v in verdicts] == [(1.1, True), (0.1, False)]


def problems(name: str, of: list, project: Path) -> dict[str, str]:
    found = list(spec_problems(Verifier(name=name, of=of), project=project))
    assert {level for level, _, _ in found} == {"error"}
    return {key: text for _, key, text in found}


def test_what_is_wrong_with_a_composition_is_told_with_its_key(tmp_path: Path) -> None:
    of = ["maths", {"name": "format", "weight": "much"}, {"name": "format", "tagz": []}, 3]
    told = problems("all", of, tmp_path)
    assert "did you mean 'math'" in told["verifier.of.0.name"] and "a number" in told["verifier.of.1.weight"]
    assert "verifier.of.3.name" in told
    assert "tags" in problems("all", of[2:3], tmp_path)["verifier.of.0.tagz"]
    assert "of" in next(iter(problems("all", [], tmp_path)))
    assert "no composition" in problems("math", ["math"], tmp_path)["verifier.of"]
    with pytest.raises(ConfigError, match="expected a list"):
        specs("all", project=tmp_path, of="math")
