"""The document, the tables, the comparison of two documents, and the page, over results that are known."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from rlvr.errors import DataError
from rlvr.evaluate.compare import compare, question_table, read_document, unlike, widest
from rlvr.evaluate.compare import table as comparison
from rlvr.evaluate.measure import Measured
from rlvr.evaluate.page import page
from rlvr.evaluate.report import document, level_table, table
from rlvr.evaluate.run import EvalResult, Scored, judge, summarise
from rlvr.evaluate.samples import Sample
from rlvr.evaluate.settings import Setting
from rlvr.types import Sampling, Task, Verdict

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
SETTING = Setting(4, (1, 2), 0.6, 0.95, 32768, "a paper")
ABOUT = {"model": {"path": "m", "digest": "d"}, "seed": 0, "verifier": {"name": "exact"}, "prompt": {"system": None}}


def result(rows: Sequence[str], *, name: str = "arith[metic]") -> EvalResult:
    """A task a word: r right, w wrong, x another wrong answer, ? unparsed, ! error; the first three are level 1."""
    tasks = []
    for i, word in enumerate(rows):
        task = Task(
            f"t{i}",
            f"{EVIL} {i}",
            EVIL,
            meta={"level": 1 if i < 3 else 2, "where": "here", "type": ["a", "b"] if i else ["c"]},
        )
        verdicts = [
            Verdict(0.0, False, error="timeout", parsed=False)
            if c == "!"
            else Verdict(float(c == "r"), c == "r", answer_key=None if c == "?" else c, parsed=c != "?", version="v1")
            for c in word
        ]
        samples = [
            Scored(Sample(EVIL, 3, "length" if c == "?" else "stop"), v) for c, v in zip(word, verdicts, strict=True)
        ]
        tasks.append(judge(task, samples))
    return summarise(tasks, dataset=name, n=len(rows[0]), ks=(1, 2), seed=0)


def made(rows: Sequence[str], **about: object) -> dict:
    sampling = Sampling(temperature=0.6, top_p=0.95, max_tokens=100)
    return document([Measured(result(rows), SETTING, sampling, 0)], about=ABOUT | about, seed=0)


ROWS = ["rrww", "wwwx", "rrrr", "rw??", "r!!!"]


def text_of(*renderables: object) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for one in renderables:
        console.print(one)
    return console.export_text()


def test_the_document_by_hand() -> None:
    one = json.loads(json.dumps(made(ROWS)))["datasets"][0]
    scores = one["scores"]
    assert scores["avg@4"]["value"] == scores["pass@1"]["value"] == pytest.approx((2 + 0 + 4 + 1 + 4) / 20)
    assert scores["pass@2"]["value"] == pytest.approx((5 / 6 + 0 + 1 + 3 / 6) / 4)  # the last task has one valid sample
    assert one["short"] == {"pass@2": 1} and one["errors"] == 3 and one["error_kinds"] == {"timeout": 3}
    assert scores["g-pass@2[1]"]["value"] == pytest.approx((1 / 6 + 0 + 1 + 0) / 4)
    assert scores["maj@4"]["value"] == pytest.approx((0.5 + 0 + 1 + 0.5 + 1) / 5)
    assert one["unparsed"] == pytest.approx(2 / 17) and one["truncated"] == pytest.approx(2 / 20)
    assert one["sampling"]["wanted_max_tokens"] == 32768 and one["sampling"]["source"] == "a paper"
    assert [point["k"] for point in one["curve"]] == [1, 2, 4]
    values = [point["value"] for point in one["curve"]]
    assert values == sorted(values) and values[-1] == pytest.approx(3 / 4)  # over the four tasks that have all four
    assert [(row["name"], row["tasks"]) for row in one["levels"]["level"]] == [("1", 3), ("2", 2)]
    assert [row["name"] for row in one["levels"]["type"]] == ["a, b", "c"]
    assert one["levels"]["level"][0]["avg@4"]["value"] == pytest.approx(6 / 12)


def test_the_tables_say_it() -> None:
    one = made(ROWS)
    shown = text_of(table(one), level_table(one["datasets"][0], "level"))
    assert "arith[metic]" in shown and "timeout 3" in shown and "pass@2: 1" in shown and "0.6, 0.95, 100" in shown
    assert re.search(r"pass@1 +0\.550 \[0\.\d+, \d\.\d+\]", shown)
    assert "g-pass@2[1]" in shown and "g-pass@2[0.75]" not in shown


def test_comparison_by_hand() -> None:
    a, b = made(["rrww", "wwww", "rrrr", "rwww", "wwww"]), made(["rrrw", "wwww", "rrrw", "rrww", "rwww"])
    first, second, votes = compare(a, b, ks=None, seed=0)
    assert (first.score, second.score, votes.score) == ("pass@1", "pass@2", "maj@4")
    assert first.a == pytest.approx(7 / 20) and first.b == pytest.approx(9 / 20)
    assert (first.change.value, first.b_better, first.a_better) == (pytest.approx(0.1), 3, 1)
    assert first.change.low < 0 < first.change.high and first.winner == "neither"
    assert [gap[1] for gap in widest(a, b, "arith[metic]")] == ["t2", "t0", "t3", "t4"]
    assert list(unlike(a, b)) == []
    shown = text_of(comparison([first, second]), question_table(widest(a, b, "arith[metic]"), "arith[metic]"))
    assert "+0.100 [" in shown and "1 : 1 : 3" in shown and re.search(r"t2 +4/4 +3/4 +A", shown)


def test_comparison_is_antisymmetric_and_finds_a_winner() -> None:
    a = made(["rwww"] * 20 + ["wwww"] * 10 + ["rrww"] * 10)
    b = made(["rrww"] * 20 + ["rwww"] * 10 + ["rrrw"] * 10)
    assert compare(a, b, ks=[1], seed=0)[0].winner == "B"
    assert compare(b, a, ks=[1], seed=0)[0].winner == "A"
    assert compare(a, a, ks=[1], seed=0)[0].winner == "neither"


def test_what_differs_besides_the_model_is_said() -> None:
    a, b = made(ROWS), made(ROWS[:4], verifier={"name": "math"})
    b["datasets"][0]["sampling"]["temperature"] = 1.0
    said = "\n".join(unlike(a, b))
    assert "verifier differs" in said and "temperature differs: A 0.6, B 1.0" in said and "4 shared questions" in said


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    b = made(ROWS)
    b["datasets"][0]["dataset"] = "other"
    with pytest.raises(DataError, match="nothing to compare: A has"):
        compare(made(ROWS), b, ks=None, seed=0)
    with pytest.raises(DataError, match="no evaluation there"):
        read_document("nothing", project=tmp_path)
    (tmp_path / "eval.json").write_text("{}")
    with pytest.raises(DataError, match="not an evaluation of format 1"):
        read_document("eval.json", project=tmp_path)
    (tmp_path / "eval.json").write_text(json.dumps(made(ROWS)))
    assert read_document(".", project=tmp_path)["format"] == 1


def test_the_page_is_closed_in_itself_and_nothing_in_it_is_markup() -> None:
    html = page(made(ROWS), [result(ROWS)])
    assert "__DATA__" not in html and html.count("</script>") == 2 and "alert(1)" in html
    assert "onerror=alert" in html and "<img" not in html
    assert not re.search(
        r"(?:src|href)\s*=|url\(|https?://(?!www\.w3\.org/2000/svg)|innerHTML|document\.write",
        html.replace("src=x", ""),
    )
    assert "default-src 'none'" in html and "prefers-color-scheme: dark" in html
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', html, re.DOTALL)[1])
    (first, *_) = data["questions"]["arith[metic]"]
    assert first["prompt"].startswith(EVIL) and first["hidden"] == 0
    assert [(s["outcome"], s["count"]) for s in first["samples"]] == [("right", 2), ("wrong", 2)]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_a_browser_draws_the_page_and_runs_nothing_of_the_samples(tmp_path: Path) -> None:
    (tmp_path / "eval.html").write_text(page(made(ROWS), [result(ROWS)]))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"--user-data-dir={tmp_path}/u"]
    done = subprocess.run(
        [*command, (tmp_path / "eval.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    drawn = re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)
    assert "Scores of arith[metic]" in drawn and "By level" in drawn and "<polyline" in drawn
    assert drawn.count('aria-current="') == 5 and "verifier error" in drawn
    assert "&lt;script&gt;alert(1)" in drawn and "<img" not in drawn


def test_a_page_leaves_out_what_is_too_much_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlvr.evaluate.page.TEXT_BUDGET", 10)
    html = page(made(ROWS), [result(ROWS)])
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', html, re.DOTALL)[1])
    assert next(q["hidden"] for q in data["questions"]["arith[metic]"]) == 2
