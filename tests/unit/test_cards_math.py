"""The cards of the Hub, one row for each quirk of their sources, and the real files where they can be had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlvr.cards import last_box, unpadded, whole
from rlvr.catalog import find, load
from rlvr.errors import DataError
from rlvr.recipe import Source
from rlvr.rows import Dataset
from rlvr.tasks import load_tasks

TEMPLATED = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\nWhat is $1+1$?\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLVR_DATA", str(tmp_path))
    return tmp_path


def tasks(
    folder: Path, name: str, *rows: dict[str, Any], split: str = "eval", file: str = "", **options: Any
) -> Dataset:
    """The card's tasks of a file that RLVR_DATA holds."""
    (folder / f"{file or name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return load_tasks(Source(name=name, **options), split=split, project=folder)


def test_aime_answers_lose_their_leading_zeros(folder: Path) -> None:
    made = tasks(folder, "aime24", {"problem": "p", "answer": "033"}, {"problem": "q", "answer": "000"})
    assert [(t.prompt, t.answer, t.source) for t in made] == [("p", "33", "aime24"), ("q", "0", "aime24")]
    with pytest.raises(DataError, match=r"aime24.jsonl:1: 'answer' is '3\.5', expected a whole number"):
        tasks(folder, "aime24", {"problem": "p", "answer": "3.5"})


def test_math500_keeps_latex_and_ids(folder: Path) -> None:
    row = {"problem": "p", "answer": "\\frac{1}{2}", "subject": "Algebra", "level": 2, "unique_id": "test/a/1.json"}
    (task,) = tasks(folder, "math500", row)
    assert (task.id, task.answer, task.meta["level"]) == ("test/a/1.json", "\\frac{1}{2}", 2)


def test_dapo_prompts_lose_the_answer_template(folder: Path) -> None:
    rows = [{"prompt": TEMPLATED, "solution": "2"}, {"prompt": "What is $1+2$?", "solution": "3"}]
    made = tasks(folder, "dapo_math", *rows, split="train")
    assert [(t.prompt, t.answer) for t in made] == [("What is $1+1$?", "2"), ("What is $1+2$?", "3")]


@pytest.mark.parametrize(("name", "split"), [("aime24", "train"), ("math500", "train"), ("dapo_math", "eval")])
def test_benchmarks_and_training_data_stay_apart(folder: Path, name: str, split: str) -> None:
    with pytest.raises(DataError, match=r"data\.eval"):
        tasks(
            folder, name, {"problem": "p", "prompt": "p", "answer": "1", "solution": "1", "unique_id": "u"}, split=split
        )


@pytest.mark.parametrize(
    ("text", "number"), [("033", "33"), ("27.0", "27"), (" 1,024 ", "1024"), ("-0", "0"), ("-7.00", "-7"), ("000", "0")]
)
def test_whole_numbers_have_one_spelling(text: str, number: str) -> None:
    assert whole(text) == number


def test_unpadded_leaves_all_else_alone() -> None:
    assert [unpadded(t) for t in ("035", "0", "00", "0.5", "\\frac{01}{2}", "-3 ")] == [
        "35", "0", "0", "0.5", "\\frac{01}{2}", "-3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("solution", "box"),
    [
        (r"so \boxed{1} or \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\fbox{x^{2}}", "x^{2}"),
        (r"$\boxed 5$ it is", "5"),
        (r"\boxed{\left\{1,2\right\}}", r"\left\{1,2\right\}"),
        (r"\framebox{204} minutes", "204"),
    ],
)
def test_the_last_box(solution: str, box: str) -> None:
    assert last_box(solution) == box


@pytest.mark.parametrize("solution", ["no box", r"\boxed{1"])
def test_a_solution_without_an_answer(solution: str) -> None:
    with pytest.raises(DataError, match="box"):
        last_box(solution)


def test_amc_reads_both_copies(folder: Path) -> None:
    made = tasks(folder, "amc23", {"problem": "p", "answer": 27.0, "question": "p"}, {"question": "q", "answer": "-3"})
    assert [(t.prompt, t.answer) for t in made] == [("p", "27"), ("q", "-3")]


def test_ids_depend_on_the_text_alone(folder: Path) -> None:
    p, q = {"problem": "p", "answer": 1}, {"problem": "q", "answer": "2"}
    assert [t.id for t in tasks(folder, "aime25", p, q)] == [t.id for t in tasks(folder, "aime25", q, p)][::-1]


def test_repeats_are_dropped_and_counted(folder: Path) -> None:
    made = tasks(folder, "aime24", *[{"problem": "p", "answer": "033"}] * 32, {"problem": "q  r", "answer": "1"},
                 {"problem": "q\nr", "answer": "1"})  # fmt: skip
    assert [t.prompt for t in made] == ["p", "q  r"] and made.dropped == {"repeats of an earlier row": 32}


def test_of_a_training_prompt_with_two_answers_no_row_stays(folder: Path) -> None:
    rows = [{"prompt": p, "solution": s} for p, s in (("a", "1"), ("b", "2"), ("a", "3"), ("a", "1"))]
    made = tasks(folder, "dapo_math", *rows, split="train")
    assert [t.prompt for t in made] == ["b"]
    assert made.dropped == {"rows of a prompt with several answers": 2, "repeats of an earlier row": 1}
    made = tasks(folder, "aime24", {"problem": "p", "answer": "1"}, {"problem": "p", "answer": "2"})
    assert len(made) == 2  # a benchmark keeps its rows


def test_the_original_dapo_file(folder: Path) -> None:
    row = {"prompt": [{"role": "user", "content": TEMPLATED}], "reward_model": {"ground_truth": "2", "style": "rule"}}
    made = tasks(folder, "dapo_math", *[row] * 100, split="train")
    assert [(t.prompt, t.answer) for t in made] == [("What is $1+1$?", "2")] and made.dropped.total() == 99


def test_math_takes_the_box_and_keeps_the_solution(folder: Path) -> None:
    row = {"problem": "p", "solution": r"It is $\boxed{\frac{1}{2}}$.", "level": "Level 3", "type": "Algebra"}
    (task,) = tasks(folder, "math", row, split="train", file="math_train")
    assert (task.answer, task.demos, task.meta["level"]) == (r"\frac{1}{2}", (row["solution"],), "Level 3")
    (folder / "math_test.jsonl").write_text(json.dumps(row | {"problem": "q"}))
    (held_out,) = load_tasks(Source(name="math"), split="eval", project=folder, path=str(folder / "math_train.jsonl"))
    assert held_out.prompt == "q"
    with pytest.raises(DataError, match="solution has no"):
        tasks(folder, "math", row | {"solution": "5"}, split="train", file="math_train")


def test_deepscaler_golds_and_empty_solutions(folder: Path) -> None:
    rows = [
        {"problem": "p", "answer": "035", "solution": ""},
        {"problem": "q", "answer": "$x$", "solution": "It is x."},
    ]
    made = tasks(folder, "deepscaler", *rows, split="train")
    assert [(t.answer, t.demos) for t in made] == [("35", ()), ("$x$", ("It is x.\n\\boxed{$x$}",))]


def test_numina_leaves_out_what_cannot_be_checked(folder: Path) -> None:
    good = {"problem": "p", "solution": r"\boxed{2}", "answer": "2", "problem_is_valid": "Yes",
            "solution_is_valid": "Yes", "synthetic": False, "source": "amc_aime"}  # fmt: skip
    others = [{"answer": "proof"}, {"answer": "notfound"}, {"answer": None}, {"problem_is_valid": "No"},
              {"synthetic": True, "problem": "s"}]  # fmt: skip
    rows = [good, *(good | other for other in others)]
    made = tasks(folder, "numina", *rows, split="train")
    assert [(t.answer, t.demos, t.meta["source"]) for t in made] == [("2", (r"\boxed{2}",), "amc_aime")]
    assert sorted(made.dropped.values()) == [1, 1, 1, 2]
    assert len(tasks(folder, "numina", *rows, split="train", synthetic=True)) == 2
    with pytest.raises(DataError, match=r"empty: no row.*1 a proof"):
        tasks(folder, "numina", good | {"answer": "proof"}, split="train")


def test_openr1_shows_right_and_whole_traces_alone(folder: Path) -> None:
    row = {"problem": "p", "answer": "2", "uuid": "u", "generations": ["right", "cut", "wrong", "judged"],
           "is_reasoning_complete": [True, False, True, True], "correctness_math_verify": [True, True, False, None],
           "correctness_llama": [False, True, True, True]}  # fmt: skip
    (task,) = tasks(folder, "openr1", row, split="train")
    assert (task.id, task.demos) == ("u", ("right", "judged"))
    with pytest.raises(DataError, match="'is_reasoning_complete' has 1 entries for 4"):
        tasks(folder, "openr1", row | {"is_reasoning_complete": [True]}, split="train")


def test_skywork_golds_are_lists_in_a_text(folder: Path) -> None:
    def row(prompt: str, gold: str) -> dict[str, Any]:
        chat = [{"role": "user", "content": prompt}]
        difficulty = {"model_difficulty": {"m": 3}}
        return {"prompt": chat, "reward_model": {"ground_truth": gold}, "extra_info": difficulty}

    rows = row("p", '["\\\\frac{1}{2}"]'), row("q", '["1", "2"]'), row("r", '["7", "7"]')
    made = tasks(folder, "skywork", *rows, split="train")
    assert [(t.prompt, t.answer) for t in made] == [("p", "\\frac{1}{2}"), ("r", "7")]
    assert made.dropped == {"several answers": 1} and made[0].meta["model_difficulty"] == {"m": 3}
    with pytest.raises(DataError, match="expected a JSON list"):
        tasks(folder, "skywork", row("p", "1/2"), split="train")


def test_big_math_keeps_its_rates(folder: Path) -> None:
    (task,) = tasks(folder, "big_math", {"problem": "p", "answer": "07", "llama8b_solve_rate": 0.5}, split="train")
    assert (task.answer, task.meta["llama8b_solve_rate"]) == ("7", 0.5)


def test_math_beyond_by_base_model(folder: Path) -> None:
    rows = [{"problem": p, "answer": 1, "a_unsolved": a, "b_unsolved": True} for p, a in (("p", True), ("q", False))]
    assert len(tasks(folder, "math_beyond", *rows)) == 2
    made = tasks(folder, "math_beyond", *rows, unsolved_by=["a", "b"])
    assert [t.prompt for t in made] == ["p"] and made.dropped == {"solved by one of `unsolved_by`": 1}
    with pytest.raises(DataError, match="no model 'c'; the models are: a, b"):
        tasks(folder, "math_beyond", *rows, unsolved_by=["c"])


def test_hmmt_by_competition(folder: Path) -> None:
    row = {"problem": "p", "answer": r"\sqrt{2}", "problem_idx": 3, "problem_type": ["Algebra"]}
    (task,) = tasks(folder, "hmmt", row, file="hmmt_feb_2026", competition="feb_2026")
    assert (task.answer, task.meta["problem_type"]) == (r"\sqrt{2}", ["Algebra"])


@pytest.mark.parametrize(
    ("python", "gold"),
    [
        ("4.5e33", r"4.5 \times 10^{33}"), ("1e-5", r"1 \times 10^{-5}"), ("-1./3", "-1/3"), ("e^{t} / 3", "e^{t} / 3"),
        ("np.arcsin(10/13)", r"\arcsin(10/13)"), (r"\frac{1}{2a}\exp{a*t}", r"\frac{1}{2a}e^{a*t}"),
    ],
)  # fmt: skip
def test_minerva_golds_lose_their_python(folder: Path, python: str, gold: str) -> None:
    rows = {"problem": "p", "solution": rf"\boxed{{{python}}} \mathrm{{~cm}}"}, {"question": "q", "answer": python}
    assert [t.answer for t in tasks(folder, "minerva", *rows, file="minerva_math")] == [gold, gold]


@pytest.mark.parametrize(
    ("given", "gold"),
    [
        (["$\\frac{1}{2}$"], r"\frac{1}{2}"), ("['2']", "2"), (["$69$,$84$"], "69, 84"),
        (["$(1,1), (3,2)$"], "(1,1), (3,2)"), (["$t(0,4]$"], "(0,4]"),
        (["$f(x)=a x+b$, where $b$ is an integer"], "f(x)=a x+b"), (["1", "2"], "1, 2"),
    ],
)  # fmt: skip
def test_olympiadbench_golds(folder: Path, given: object, gold: str) -> None:
    (task,) = tasks(folder, "olympiadbench", {"question": "p", "final_answer": given, "id": 7, "unit": None})
    assert (task.id, task.answer, "unit" in task.meta) == ("7", gold, False)


def test_local_files_of_any_card(folder: Path, tmp_path: Path) -> None:
    from pyarrow import Table, parquet

    row = {"problem": "p", "answer": "7"}
    parquet.write_table(Table.from_pylist([row]), tmp_path / "aime25.parquet")
    assert load_tasks(Source(name="aime25"), split="eval", project=folder)[0].answer == "7"
    parquet.write_table(Table.from_pylist([row | {"answer": "8"}]), tmp_path / "mine.parquet")
    mine = Source(name="aime25", path=str(tmp_path / "mine.parquet"))
    assert load_tasks(mine, split="eval", project=folder)[0].answer == "8"
    with pytest.raises(DataError, match=r"neither amc23\.jsonl nor amc23\.parquet"):
        load_tasks(Source(name="amc23"), split="eval", project=folder)


def test_tables_with_columns_of_ones_own(folder: Path, tmp_path: Path) -> None:
    from pyarrow import Table, parquet

    row = {"prompt": [{"role": "user", "content": "p?"}], "reward_model": {"ground_truth": "4"}, "extra_info": {"i": 9}}
    file = tmp_path / "train.parquet"
    parquet.write_table(Table.from_pylist([row]), file)
    source = Source(name="parquet", path=str(file), answer="reward_model.ground_truth", id="extra_info.i")
    (task,) = load_tasks(source, split="train", project=folder)
    assert (task.id, task.prompt, task.answer) == ("9", ({"role": "user", "content": "p?"},), "4")
    (tmp_path / "name.jsonl").write_text(json.dumps({"q": "p", "a": 1}))
    (task,) = load_tasks(Source(name="hub", dataset="org/name", prompt="q", answer="a"), split="eval", project=folder)
    assert (task.prompt, task.answer) == ("p", "1")
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(DataError, match="not a Parquet file"):
        load_tasks(Source(name="parquet", path=str(tmp_path / "bad.parquet")), split="train", project=folder)


def test_a_revision_reaches_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    asked: list[tuple[object, ...]] = []

    def download(name: str, config: str | None, *, split: str, revision: str | None) -> list[dict[str, str]]:
        asked.append((name, config, split, revision))
        return [{"problem": "p", "answer": "7"}]

    monkeypatch.delenv("RLVR_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", download)
    load_tasks(Source(name="aime25", revision="abc"), split="eval", project=tmp_path)
    load_tasks(Source(name="hub", dataset="o/n", hub_split="test", config="c", prompt="problem"), split="train",
               project=tmp_path)  # fmt: skip
    assert asked == [("math-ai/aime25", None, "test", "abc"), ("o/n", "c", "test", None)]


@pytest.mark.parametrize(
    ("name", "rows"), [("math500", 500), ("aime24", 30), ("amc23", 40), ("minerva", 272), ("olympiadbench", 675)]
)
def test_real_benchmarks(real_data: Path, monkeypatch: pytest.MonkeyPatch, name: str, rows: int) -> None:
    monkeypatch.setenv("RLVR_DATA", str(real_data))
    math = load(find("rewards", "math", project=real_data))
    made = load_tasks(Source(name=name), split="eval", project=real_data)
    assert len(made) == rows and not made.dropped
    assert [t.id for t in made if math.check_answer(t.answer, None)] == []
