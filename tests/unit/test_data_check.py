"""`rlvr data verify`: what it accepts, what it calls an exception, how it ends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlvr.cli.main import app
from rlvr.data_check import BOXED, DEMO, GARBAGE, PLAIN, check, wrong_answer
from rlvr.types import Task, Verdict


class Stub:
    """A verifier that wants `prefix` and the gold; some responses raise."""

    def __init__(self, prefix: str = "", *, accepts: str = "never", raises: str = "never") -> None:
        self.prefix, self.accepts, self.raises = prefix, accepts, raises

    async def score(self, task: Task, responses: Sequence[str]) -> list[Verdict]:
        return [self.one(task, response) for response in responses]

    def one(self, task: Task, response: str) -> Verdict:
        if response == self.raises:
            return Verdict(0, False, error="crash", detail="oh")
        right = response in (self.prefix.replace("gold", task.answer), self.accepts)
        return Verdict(float(right), right, version="stub-1")


TASKS = [Task(str(i), f"{i}?", answer, demos=(f"so {answer}", "bad")) for i, answer in enumerate(("1", "x", "x", "-3"))]


@pytest.mark.parametrize(("prefix", "way"), [("\\boxed{gold}", BOXED), ("gold", PLAIN), ("so gold", DEMO)])
async def test_a_dataset_that_fits(prefix: str, way: str) -> None:
    [report] = (await check(TASKS, Stub(prefix), default="stub")).values()
    assert (report.said, report.tasks, report.gold_right, report.wrong_right) == (way, 4, 4, 0)
    assert report.garbage == 12 and not report.problems and report.versions == {"stub-1"}
    assert (report.demos, report.demos_right) == (8, 4 if way == DEMO else 0)


async def test_exceptions_are_named_by_row() -> None:
    tasks = [Task(str(i), "?", str(i), meta={"where": f"f:{i}"}) for i in range(10)]
    [report] = (await check(tasks, Stub("gold", accepts="7", raises="####"), default="stub")).values()
    assert report.gold_right == 10 and report.wrong_right == 1  # 7 = 2 * 2 + 3 is taken for the answer of task 2
    assert [p for p in report.problems if "is right" in p] == ["f:2 (id '2'): '7' is right, the gold is '2'"]
    place = GARBAGE.index("####")
    assert [p for p in report.problems if "raises" in p] == [
        f"f:{place // 3} (id '{place // 3}'): '####' raises: crash: oh"
    ]
    assert report.errors == {"crash": report.raised["####", "crash: oh"]}
    [report] = (await check(tasks, Stub("gold", raises="3"), default="stub")).values()
    assert report.gold_right == 9
    assert any(p == "f:3 (id '3'): the gold '3' is not right: crash (oh)" for p in report.problems)
    assert any(p == "f:0 (id '0'): '3' is crash, the gold is '0'" for p in report.problems)


async def test_each_verifier_has_its_report() -> None:
    tasks = [Task("1", "?", "1"), Task("2", "?", "2", verifier="other")]
    reports = await check(tasks, Stub("gold"), default="stub")
    assert {name: report.tasks for name, report in reports.items()} == {"stub": 1, "other": 1}


def test_wrong_answers() -> None:
    assert [wrong_answer(i, TASKS, way=PLAIN) for i in range(4)] == ["5", "-3", "-3", "-2"]
    assert wrong_answer(1, TASKS, way=DEMO) == "so -3" and wrong_answer(0, TASKS[1:3], way=PLAIN) is None


def run(*options: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", *options])
    return result.exit_code, result.output


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"problem": f"{i}?", "answer": f"0{i}"} for i in range(9)]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, [*rows, rows[0]])))
    code, out = run("verify", "aime25", f"data.path={file}", "--processes", "1")
    assert code == 0 and "aime25 (eval)" in out and "1 repeats of an earlier row" in out
    assert "math" in out and r"\boxed{gold}" in out
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards/odd.py").write_text("def verify(response, answer):\n    return response == '\\\\boxed{5}'\n")
    code, out = run("verify", "aime25", f"data.path={file}", "verifier=odd", "--processes", "1")
    assert code == 1 and "mine.jsonl:1 (id" in out and "the gold '0' is not right: score 0" in out
    assert "'\\\\boxed{5}' is right, the gold is '1'" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("prove", "aime25"), "expected `rlvr data verify NAME`"),
        (("verify", "aime2025"), "did you mean 'aime25'"),
        (("verify", "aime25", "data.path=none.jsonl"), "no such file: none.jsonl"),
        (("verify", "aime25", "oops"), "expected key=value"),
        (("verify", "aime25", "revison=x"), "did you mean 'revision'"),
        (("verify", "aime25", "--split", "train"), "belongs in data.eval"),
        (("verify", "aime25", "--split", "dev"), "expected train or eval"),
    ],
)
def test_bad_requests(options: tuple[str, ...], message: str) -> None:
    code, out = run(*options)
    assert code == 2 and message in out
