"""rlvr verify: steps, exit codes, where the response comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlvr.cli.main import app
from tests.unit.verifiers import write_verifier


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, stdin: str = "") -> tuple[int, str]:
    done = CliRunner().invoke(app, ["verify", *arguments], input=stdin)
    return done.exit_code, done.output


def test_right_wrong_and_the_steps(project: Path) -> None:
    code, text = run("--gold", r"\frac12", "--answer", r"<think>\boxed{3}</think> so \boxed{0.5}")
    assert code == 0
    assert "24 of 39 characters" in text and "box 1 of 1: '0.5'" in text and "answer key '1/2'" in text
    assert "verdict: right" in text and "version: math-" in text and " ms" in text
    (project / "answer.txt").write_text(r"\boxed{2\sqrt{3}}")
    code, text = run("--gold", r"2\sqrt2", "--answer", "@answer.txt")
    assert code == 1 and "not equal" in text and "Pow(Integer(3), Rational(1, 2))" in text


def test_an_error_is_2(project: Path) -> None:
    write_verifier(project)
    code, text = run("--verifier", "nasty", "--gold", "1", "--seconds", "0.3", stdin="spin")
    assert code == 2 and "timeout: more than 0.3 CPU seconds" in text and "nasty.py:" in text
    assert run("--verifier", "nasty", "--gold", "1", stdin="raise luck")[0] == 2
    assert run("--verifier", "nasti", "--gold", "1", stdin="echo 1")[0] == 2
    assert run("--verifier", "{name: math, wrong: 1}", "--gold", "1", stdin="1")[0] == 2  # not "wrong"
    assert run("--gold", "1", "--answer", "@nowhere")[0] == 2


def test_a_composition_is_explained_part_by_part() -> None:
    whole = "{name: all, of: [math, {name: format, weight: 0.1}]}"
    code, text = run("--verifier", whole, "--gold", "5", stdin=r"\boxed{5}")
    assert code == 0 and "math: compared: the same" in text and "format: <think> 0 times" in text
