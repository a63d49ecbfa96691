"""`rlvr eval` with a real engine: killed in the middle, continued, and scored again without an engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.engines.project import Project, make_project

pytestmark = pytest.mark.timeout(400)
COMMAND = ("eval", "r.yaml", "-n", "64", "-k", "1,8")
ALWAYS = '''
def verify(response: str, answer: str) -> float:
    """Everything is right: another verifier over the same samples."""
    return 1.0
'''


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = make_project(tmp_path_factory.mktemp("project"))
    (made.path / "always.py").write_text(ALWAYS)
    return made


def cached(project: Project) -> list[str]:
    """Whole lines of the sample cache, its head left out."""
    lines = [line for file in project.path.glob("runs/samples/*.jsonl") for line in file.read_text().splitlines(True)]
    return [line for line in lines if line.endswith("\n") and '"prompt"' in line[:12]]


def result(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_killed_continued_and_scored_again(project: Project) -> None:
    """8 tasks of 64 samples. SIGKILL after the first samples are on disk; the second start draws the others alone."""
    child = project.start(*COMMAND, "evaluate.max_tokens=128")  # one call a task: samples arrive in eight parts
    project.kill_when(child, lambda: len(cached(project)) > 0)
    child.wait(30)
    before = cached(project)
    status, out = project.rlvr(*COMMAND, "evaluate.max_tokens=128")
    assert status == 0, out
    after = cached(project)
    assert len(after) == len(set(after)) == 512 and after[: len(before)] == before
    one = result(project.path / "eval.json")["datasets"][0]
    assert one["generated"] == 512 - len(before) and f"512 samples, {len(before)} of them from" in out
    assert one["errors"] == 0 and 0 < one["scores"]["pass@1"]["value"] < one["scores"]["pass@8"]["value"]
    page = (project.path / "eval.html").read_text()
    assert "__DATA__" not in page and one["dataset"] in page

    again = ("eval", "r.yaml", "-n", "32", "-k", "1,16", "evaluate.max_tokens=128", "verifier=always.py:verify")
    status, out = project.rlvr(*again, "--out", "again.json", limit=60)
    assert status == 0 and "512 samples" not in out, out
    other = result(project.path / "again.json")["datasets"][0]
    assert other["generated"] == 0 and other["scores"]["pass@1"]["value"] == 1.0
    assert cached(project) == after
    status, out = project.rlvr("eval", "--compare", "eval.json", "again.json")
    assert status == 0 and "verifier differs" in out and "pass@1" in out
