"""The shipped dataset cards: splits apart, gold right under its verifier, bad files told in full."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr.catalog import find, load
from rlvr.errors import ConfigError, DataError
from rlvr.recipe import Source
from rlvr.tasks import load_tasks
from rlvr.types import Task
from rlvr.verify.pool import VerifierPool
from tests.unit.verifiers import specs

ROOT = Path(__file__).resolve().parents[2]
EXACT = load(find("rewards", "exact", project=ROOT))
MATH = load(find("rewards", "math", project=ROOT))
ARITHMETIC = load(find("data", "arithmetic", project=ROOT))


def arithmetic(split: str = "train", **options: Any) -> list[Task]:
    return load_tasks(Source(name="arithmetic", **options), split=split, project=ROOT)


def test_no_held_out_prompt_is_trained_on() -> None:
    levels = [2, 3], [3, 4]
    train = {t.prompt for seed in range(2) for n in levels for t in arithmetic(seed=seed, numbers=n, size=500)}
    held_out = {t.prompt for n in levels for t in arithmetic("eval", numbers=n, size=100, seed=9)}
    assert len(held_out) > 100 and not train & held_out


@pytest.mark.parametrize(("split", "options"), [("train", {}), ("eval", {}), ("eval", {"numbers": [3, 4, 4, 5]})])
def test_gold_is_right(split: str, options: dict[str, Any]) -> None:
    tasks = arithmetic(split, **options)
    assert all(t.answer == str(eval(str(t.prompt).removesuffix("=?"))) for t in tasks)  # Python's own arithmetic
    assert all(EXACT.check_answer(t.answer, None) is None for t in tasks)
    assert all(EXACT.verify(f"={t.answer}", t.answer)["score"] == 1 for t in tasks)
    assert all(EXACT.verify(f"={int(t.answer) + 1}", t.answer)["score"] == 0 for t in tasks)
    assert len({t.id for t in tasks}) == len(tasks) == {"train": 4500, "eval": 256}[split]


def test_demonstrations_are_worked_and_partly_wrong() -> None:
    clean = arithmetic(noise=0.0, size=400, demos=1)
    assert all(EXACT.verify(t.demos[0], t.answer)["score"] == 1 for t in clean)
    noisy = arithmetic(noise=0.4, size=400, demos=4, numbers=[2], highest=50)
    right = [EXACT.verify(demo, t.answer)["score"] for t in noisy for demo in t.demos]
    assert 0.55 < sum(right) / len(right) < 0.65  # one step each
    again = arithmetic(noise=0.4, size=400, demos=4, numbers=[2], highest=50)
    assert noisy == again


def test_worked_steps() -> None:
    steps = ARITHMETIC.worked("3+4*2-20+1", noise=0.0, rng=random.Random(0))
    assert steps == (["4*2=8", "3+8=11", "11-20=-9", "-9+1=-8"], -8)


@given(st.integers(0, 10**6), st.sampled_from([2, 3, 5]))
@settings(max_examples=50, deadline=None)
def test_a_wrong_step_goes_on_from_the_wrong_value(seed: int, numbers: int) -> None:
    rng = random.Random(seed)
    chain = ARITHMETIC._chain(ARITHMETIC.Config(), numbers, rng)
    steps, result = ARITHMETIC.worked(chain, noise=1.0, rng=rng)
    assert len(steps) == numbers - 1
    for step in steps:
        asked, _, said = step.rpartition("=")
        assert 1 <= abs(eval(asked) - int(said)) <= 20
        assert asked in chain
        chain = chain.replace(asked, said, 1)
    assert chain == str(result)


def test_levels_come_in_equal_parts() -> None:
    lengths = [t.meta["numbers"] for t in arithmetic(numbers=[3, 4, 4, 5], size=400)]
    assert [lengths.count(n) for n in (3, 4, 5)] == [100, 200, 100]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"numbers": [2], "highest": 3, "size": 100}, "too few chains of .2. numbers up to 3: .* 100 wanted"),
        ({"numbers": [1]}, "needs 2 numbers or more"),
        ({"path": "x"}, "unknown key"),
        ({"noise": 1.5}, "a number <= 1"),
    ],
)
def test_arithmetic_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises((DataError, ConfigError), match=message):
        arithmetic(**options)


def jsonl(path: Path, *rows: object, **options: Any) -> list[Task]:
    lines = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    path.write_bytes(b"\n".join(lines))
    return load_tasks(Source(name="jsonl", **options), split="train", project=ROOT, path=str(path))


def test_jsonl(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    first = {"q": "a?", "gold": 27.0, "key": "k1", "shown": ["x", "y"], "by": "exact"}
    chat = [{"role": "user", "content": "b?"}]
    second = {"q": chat, "gold": "B", "key": "k2", "shown": "z", "by": "math"}
    tasks = jsonl(file, first, b"", second, prompt="q", answer="gold", id="key", demos="shown", verifier="by")
    assert tasks[0] == Task("k1", "a?", "27.0", "exact", "jsonl", ("x", "y"), meta={"where": f"{file}:1"})
    assert tasks[1] == Task("k2", tuple(chat), "B", "math", "jsonl", ("z",), meta={"where": f"{file}:3"})
    assert [t.id for t in jsonl(file, {"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": "2"})] == ["1", "2"]


def test_every_bad_row_is_told_at_once(tmp_path: Path) -> None:
    bad = [b'{"prompt": "a"', b'{"prompt": "\xff", "answer": "1"}', b"[1]", {"prompt": "a"},
           {"prompt": "a", "answer": ""}, {"prompt": "a", "answer": None},
           {"prompt": [{"role": "user"}], "answer": "1"}]  # fmt: skip
    with pytest.raises(DataError) as error:
        jsonl(tmp_path / "m.jsonl", {"prompt": "a", "answer": "1"}, *bad)
    expected = ["'jsonl' (train)", "m.jsonl:2: not JSON", "m.jsonl:3: not UTF-8 (byte 12 is 0xff)",
                "m.jsonl:4: a JSON list", "m.jsonl:5: no 'answer'; the columns are: prompt",
                "m.jsonl:6: 'answer' is \"\"",
                "m.jsonl:7: 'answer' is null", "m.jsonl:8: 'prompt' must be text, or messages"]  # fmt: skip
    lines = str(error.value).splitlines()
    assert len(lines) == len(expected)
    assert all(part in line for part, line in zip(expected, lines, strict=True))
    with pytest.raises(DataError, match=r"and 20 more \(30 in all\)"):
        jsonl(tmp_path / "m.jsonl", *[b"{"] * 30)


def test_files_that_are_missing_empty_or_doubled(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.jsonl: No such file"):
        load_tasks(Source(name="jsonl"), split="train", project=ROOT, path=str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="jsonl needs a file"):
        load_tasks(Source(name="jsonl"), split="train", project=ROOT)
    with pytest.raises(DataError, match="is empty"):
        jsonl(tmp_path / "m.jsonl")
    row, other = ({"prompt": prompt, "answer": "1", "id": "x"} for prompt in "ab")
    with pytest.raises(DataError, match=r"m\.jsonl:2 \(id 'x'\): the id was already given to .*m\.jsonl:1"):
        jsonl(tmp_path / "m.jsonl", row, other, id="id")


ROWS = [
    {"question": "Half of 2048?", "answer": "It is 2048/2 = <<2048/2=1024>>1024.\n#### 1,024"},
    {"question": "One?", "answer": "One.\n#### 1"},
]


def gsm8k(split: str, path: str | None = None) -> list[Task]:
    return load_tasks(Source(name="gsm8k"), split=split, project=ROOT, path=path)


def write(file: Path, rows: list[dict[str, str]]) -> str:
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def test_gsm8k_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "gsm8k_train.jsonl", ROWS)
    [first, second] = gsm8k("train", path)
    assert (first.id, first.prompt, first.answer) == ("train/1", "Half of 2048?", "1024")
    assert first.demos == ("It is 2048/2 = 1024.\n\\boxed{1024}",) and second.id == "train/2"
    with pytest.raises(DataError, match="no held-out rows beside"):
        gsm8k("eval", path)
    write(tmp_path / "gsm8k_test.jsonl", ROWS[1:])
    assert [t.id for t in gsm8k("eval", path)] == ["test/1"]
    monkeypatch.setenv("RLVR_DATA", str(tmp_path))
    assert (len(gsm8k("train")), len(gsm8k("eval"))) == (2, 1)
    with pytest.raises(DataError, match=r"x\.jsonl:1: 'answer' has no gold after `####`"):
        gsm8k("train", write(tmp_path / "x.jsonl", [{"question": "?", "answer": "1"}]))


@pytest.mark.parametrize(("split", "rows"), [("train", 7473), ("eval", 1319)])
def test_real_gsm8k(real_data: Path, monkeypatch: pytest.MonkeyPatch, split: str, rows: int) -> None:
    monkeypatch.setenv("RLVR_DATA", str(real_data))
    tasks = gsm8k(split)
    assert len(tasks) == rows
    assert [t.id for t in tasks if MATH.check_answer(t.answer, None)] == []
    wrong = [t.id for t in tasks if MATH.verify(t.demos[0], t.answer, {"prompt": t.prompt})["score"] != 1]
    assert wrong == []


@pytest.mark.parametrize("verifier", ["exact", "math"])
def test_every_gold_answer_is_usable(verifier: str) -> None:
    tasks = arithmetic("eval")
    with VerifierPool(specs(verifier, project=ROOT), processes=1) as pool:
        assert pool.check_answers(tasks) == []
        [(_, problem)] = pool.check_answers([*tasks, Task("r7", "?", "", source="mine")])
    assert "mine" in problem and "r7" in problem and "empty" in problem


def test_catalogue_folders_are_no_packages() -> None:
    module: ModuleType = load(find("data", "jsonl", project=ROOT))
    assert module.__name__.startswith("_rlvr_plugin_")
