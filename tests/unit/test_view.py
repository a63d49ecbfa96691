"""`rlvr view` shows what was sampled, whatever the model wrote."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from rlvr.cli import view
from rlvr.errors import ConfigError, DataError
from rlvr.track.journal import encode
from rlvr.track.run_dir import RunDir

NASTY = "[bold red]x[/] [/nothing] [link=http://a]b \x1b[31mred\x1b[0m \x07\x9b \ud800 \u4e2d\nsecond [line]\r!"


def response(text: str, correct: bool | None, **changes: object) -> dict:
    verdict = None
    if correct is not None:
        verdict = {"score": float(correct), "correct": correct, "answer_key": "4", "parsed": True}
        verdict |= {"error": None, "detail": "", "version": ""}
    made = {"text": text, "finish": "stop", "tokens": 3, "source": "policy", "verdict": verdict}
    return made | {"reward": 0.5, "advantage": -0.125, "versions": [[7, 2], [8, 1]]} | changes


def record(step: int, draw: int, *responses: dict, task: str = "t/1", dropped: str | None = None) -> dict:
    head = {"step": step, "draw": draw, "task": task, "source": "arithmetic", "prompt": "2+2=", "answer": "4"}
    return head | {"dropped": dropped, "responses": list(responses)}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "mine")
    run.path.mkdir()
    run.recipe.touch()
    groups = [
        record(1, 0, response("first", True), response("bad", False)),
        record(1, 1, response(NASTY, False), task="t/[2]", dropped="all wrong"),
        record(2, 2, response("fine", True), response("none", None, advantage=[0.5, None, -0.25], reward=None)),
    ]
    run.rollouts.write_bytes(b"".join(map(encode, groups)))
    steps = [{"step": s, "reward/mean": 0.5 * s, "train/loss": None, "time/step": 1.0} for s in (1, 2)]
    run.metrics.write_bytes(b"".join(map(encode, steps)))
    return run


def show(run: RunDir, *options: str) -> str:
    """What a pipe gets."""
    app = typer.Typer()
    app.command()(view.command)
    result = CliRunner().invoke(app, [str(run.path), *options])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_everything_of_a_group_is_shown(run: RunDir) -> None:
    out = show(run, "--draw", "0")
    assert out.splitlines()[:3] == ["== step 1  draw 0  task t/1", "prompt: 2+2=", "answer: 4"]
    assert "[0]  right  score 1  read as 4  reward 0.5  advantage -0.125  3 tokens  weights v7x2 v8x1" in out
    assert "    first" in out and "[1]  wrong" in out
    assert "dropped: all wrong" in show(run, "--draw", "1")
    assert "branch of" not in out
    assert "advantage -0.25..0.5" in show(run, "--draw", "2")


def test_a_branch_says_of_which_row(run: RunDir) -> None:
    run.rollouts.write_bytes(encode(record(1, 0, response("a", True), response("b", False, parent=[0, 5]))))
    first, second = (line for line in show(run).splitlines() if line.startswith("["))
    assert "branch of" not in first and second.endswith("  branch of [0]")


def test_filters(run: RunDir) -> None:
    assert "first" not in show(run, "--step", "2") and "fine" in show(run, "--step", "2")
    assert "draw 1" in show(run, "--task", "t/[2]") and "draw 0" not in show(run, "--task", "t/[2]")
    wrong = show(run, "--wrong")
    assert "[1]  wrong" in wrong and "bad" in wrong and "first" not in wrong and "draw 2" not in wrong
    assert "first" in show(run, "--right") and "bad" not in show(run, "--right")
    last = show(run, "--limit", "1")
    assert "draw 2" in last and "draw 0" not in last and "1 of 3 matching groups" in last
    with pytest.raises(ConfigError, match="exclude each other"):
        show(run, "--right", "--wrong")
    with pytest.raises(DataError, match="no group matches"):
        show(run, "--step", "77")


def test_model_text_is_shown_as_it_is_and_never_run(run: RunDir) -> None:
    out = show(run, "--draw", "1")
    assert "[bold red]x[/] [/nothing] [link=http://a]b \u241b[31mred\u241b[0m \u2407\ufffd \ufffd \u4e2d\n" in out
    assert "    second [line]\u240d!" in out
    assert "task t/[2]" in out
    assert "\x1b" not in out and "\x07" not in out


def test_a_terminal_gets_colours_and_still_no_markup(run: RunDir) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=60, highlight=False)
    groups = view.matching(view._records(run.rollouts), step=None, task=None, draw=1, judged=None)
    view.show_groups(console, groups, limit=4, source=run.rollouts)
    assert "[bold red]x[/] [/nothing]" in out.getvalue()
    assert "\x1b[31mred" not in out.getvalue() and "\u241b[31mred" in out.getvalue()


def test_long_lines_are_not_wrapped_in_a_pipe(run: RunDir) -> None:
    run.rollouts.write_bytes(encode(record(1, 0, response("word " * 400, True))))
    assert ("word " * 400).rstrip() in show(run)


def test_messages(run: RunDir) -> None:
    made = record(1, 0, response("x", True)) | {"prompt": [{"role": "system", "content": "be [good]"}]}
    run.rollouts.write_bytes(encode(made))
    assert "system: be [good]" in show(run)


def test_metrics_table(run: RunDir) -> None:
    assert [line.split() for line in show(run, "--metrics").splitlines()] == [
        ["step", "reward", "s"],
        ["1", "0.500", "1.00"],
        ["2", "1.000", "1.00"],
    ]
    assert len(show(run, "--metrics", "--limit", "1").splitlines()) == 2
    assert ["train/loss", "None"] in [line.split() for line in show(run, "--metrics", "--step", "2").splitlines()]


def test_a_run_that_has_not_begun(run: RunDir) -> None:
    run.rollouts.unlink()
    with pytest.raises(DataError, match="has not finished a step yet"):
        show(run)
