"""Whatever a verifier does: one verdict per response, nothing hangs, nothing is left running."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rlvr.engine.protocols import Verifiers
from rlvr.errors import ConfigError, VerifierError
from rlvr.types import Task, Verdict
from rlvr.verify.pool import VerifierPool
from tests.unit.verifiers import alive, child_pid, specs, task, write_verifier


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def pool(project: Path) -> Iterator[VerifierPool]:
    with VerifierPool(write_verifier(project), processes=2, cpu_seconds=0.3, wall_seconds=20) as pool:
        yield pool


@pytest.fixture
def hasty(project: Path) -> Iterator[VerifierPool]:
    """One child, and a wall limit that tests can afford to reach."""
    with VerifierPool(write_verifier(project), processes=1, cpu_seconds=5, wall_seconds=1.0) as pool:
        yield pool


async def one(pool: VerifierPool, response: str, **fields: object) -> Verdict:
    [verdict] = await pool.score(task(**fields), [response])  # type: ignore[arg-type]
    return verdict


def test_is_a_verifiers(pool: VerifierPool) -> None:
    scorer: Verifiers = pool
    assert scorer is pool


@pytest.mark.parametrize(
    ("returned", "score", "correct"),
    [("True", 1, True), ("False", 0, False), ("0.5", 0.5, False), ("-2", -2, False), ("{'score': 1}", 1, True)],
)
async def test_what_may_be_returned(pool: VerifierPool, returned: str, score: float, correct: bool) -> None:
    verdict = await one(pool, f"return {returned}")
    assert (verdict.score, verdict.correct, verdict.error) == (score, correct, None)
    assert verdict.version == "nasty-7" and verdict.elapsed >= 0


@pytest.mark.parametrize(
    "returned", ["None", "'1'", "float('nan')", "math.inf", "[1]", "{'correct': True}", "{'score': 1, 'reward': 1}"]
)
async def test_garbage_is_an_error(pool: VerifierPool, returned: str) -> None:
    verdict = await one(pool, f"return {returned}")
    assert verdict.error == "bad_verdict" and not verdict.correct and verdict.detail


@pytest.mark.parametrize(
    ("response", "detail"),
    [
        ("raise luck", "ValueError: bad luck"),
        ("odd", "Odd: not an Exception"),
        ("exit", "SystemExit: 3"),
        ("_exit", "exited with status 4"),
        ("segv", "SIGSEGV"),
        ("memory", "MemoryError"),
    ],
)
async def test_crashes_are_errors_with_a_reason(pool: VerifierPool, response: str, detail: str) -> None:
    before = pool.stats()["errors"]
    verdicts = await pool.score(task(), ["echo 1", response, "echo 3"])
    assert [v.error for v in verdicts] == [None, "crash", None]
    assert detail in verdicts[1].detail
    assert (verdicts[0].score, verdicts[2].score) == (1, 3)  # its neighbours keep their own verdicts
    assert pool.stats()["errors"] == before + 1


@pytest.mark.parametrize("response", ["spin", "spin_in_c", "spin_below"])
async def test_cpu_seconds_decide_a_timeout(pool: VerifierPool, response: str) -> None:
    verdicts = await pool.score(task(), ["echo 1", response, "echo 3"])
    assert [v.error for v in verdicts] == [None, "timeout", None]
    assert "CPU seconds" in verdicts[1].detail


async def test_what_a_loop_costs_is_a_copy_and_not_a_start(pool: VerifierPool) -> None:
    await pool.score(task(), ["echo 1"] * 200)  # it is known to be quick
    before, loaded = pool.stats(), {child_pid(pool, i) for i in pool._children}
    verdicts = await pool.score(task(), ["spin", "_exit", "echo 3"])
    after = pool.stats()
    assert [v.error for v in verdicts] == ["timeout", "crash", None]
    assert after["restarts"] == before["restarts"] and after["aside"] == before["aside"] + 1
    assert loaded <= {child_pid(pool, i) for i in pool._children}


async def test_errors_carry_version_and_time(pool: VerifierPool) -> None:
    verdicts = await pool.score(task(), ["spin", "_exit", "raise x", "return None"])
    assert [v.error for v in verdicts] == ["timeout", "crash", "crash", "bad_verdict"]
    assert {v.version for v in verdicts} == {"nasty-7"}
    assert all(v.elapsed > 0 for v in verdicts) and verdicts[0].elapsed > 0.2


async def test_a_slow_verdict_is_put_aside_and_comes_out_the_same(project: Path) -> None:
    with VerifierPool(write_verifier(project), processes=1, cpu_seconds=2) as pool:
        await pool.score(task(), ["echo 1"] * 200)
        slow = asyncio.create_task(pool.score(task(), ["echo 1", "burn 0.4", "echo 3"]))
        while not pool.stats()["aside"]:
            await asyncio.sleep(0.01)
        assert (await one(pool, "echo 2")).score == 2 and not slow.done()  # nobody waits for it
        assert [(v.score, v.error) for v in await slow] == [(1, None), (1, None), (3, None)]
        await pool.score(task(), ["burn 0.1"] * 12)
        before = pool.stats()["aside"]
        await pool.score(task(), ["burn 0.2"] * 4)
        assert pool.stats()["aside"] == before  # it is known to take its time by now


async def test_a_copy_that_has_grown_makes_room_for_a_fresh_one(project: Path) -> None:
    with VerifierPool(write_verifier(project), processes=1) as pool:
        before = (await one(pool, "pid")).detail
        assert (await one(pool, "pid")).detail == before
        assert (await one(pool, "grow")).correct
        assert (await one(pool, "pid")).detail != before
        assert pool.stats()["restarts"] == 0


async def test_a_killed_copy_is_tried_again(project: Path, tmp_path: Path) -> None:
    with VerifierPool(write_verifier(project), processes=1, wall_seconds=60) as pool:
        pid = int((await one(pool, "pid")).detail)
        assert pid != child_pid(pool)
        scoring = asyncio.create_task(one(pool, f"sleep_once {tmp_path / 'seen'}"))
        while not (tmp_path / "seen").exists():
            await asyncio.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        assert (await scoring).correct and pool.stats()["retries"] == 1


async def test_a_verifier_with_threads_is_not_copied(tmp_path: Path) -> None:
    text = (
        "import os, threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "def verify(response, answer):\n"
        "    return os._exit(3) if response == 'exit' else {'score': 1, 'detail': str(os.getpid())}\n"
    )
    write_verifier(tmp_path, text, name="threads")
    with VerifierPool(specs("threads", project=tmp_path), processes=1) as pool:
        assert int((await one(pool, "x")).detail) == child_pid(pool)
        assert (await one(pool, "exit")).error == "crash"
        assert (await one(pool, "x")).correct and pool.stats()["restarts"] == 1


async def test_sleep_costs_no_cpu_and_is_no_timeout(pool: VerifierPool) -> None:
    verdict = await one(pool, "sleep 0.7")  # longer than the CPU limit
    assert verdict.correct and verdict.error is None and verdict.elapsed > 0.6


async def test_wall_limit_is_infrastructure_after_one_retry(hasty: VerifierPool) -> None:
    verdicts = await hasty.score(task(), ["echo 1", "sleep 600", "echo 3"])
    assert [v.error for v in verdicts] == [None, "infrastructure", None]
    stats = hasty.stats()
    assert (stats["retries"], stats["restarts"], stats["errors/infrastructure"]) == (1, 2, 1)


async def test_a_child_that_works_is_waited_for_beyond_the_wall_limit(hasty: VerifierPool) -> None:
    """On a machine with much else to do, CPU seconds come late: only what sleeps is lost."""
    before = hasty.stats()["restarts"]
    verdict = await one(hasty, "burn 2.5")
    assert verdict.correct and hasty.stats()["restarts"] == before


async def test_retry_in_a_fresh_child_can_succeed(hasty: VerifierPool, tmp_path: Path) -> None:
    verdict = await one(hasty, f"sleep_once {tmp_path / 'seen'}")
    assert verdict.correct and hasty.stats()["retries"] == 1


async def test_everything_it_forked_is_gone(hasty: VerifierPool, tmp_path: Path) -> None:
    scoring = asyncio.create_task(one(hasty, f"fork {tmp_path / 'forked'}"))
    while not (tmp_path / "forked").exists():
        await asyncio.sleep(0.01)
    family = list(hasty._children[0]._family())
    assert len(family) == 4 and all(
        map(alive, family)
    )  # the child, its copy, its fork, a daemon with an empty environment
    assert (await scoring).error == "infrastructure"
    assert not any(map(alive, family))


async def test_what_a_verdict_leaves_running_ends_with_it(pool: VerifierPool) -> None:
    before = sleepers()
    assert (await one(pool, "leave")).correct
    assert sleepers() == before


def sleepers() -> set[str]:
    found = (Path(f"/proc/{name}/cmdline") for name in os.listdir("/proc") if name.isdigit())
    return {str(file) for file in found if b"601" in read(file)}


def read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


async def test_printing_is_harmless(pool: VerifierPool) -> None:
    assert [v.correct for v in await pool.score(task(), ["print", "echo 1", "print"])] == [True, True, True]


async def test_a_forked_copy_gives_no_second_verdict(hasty: VerifierPool) -> None:
    verdicts = await hasty.score(task(), ["twin", "echo 2", "echo 3"])
    assert [v.score for v in verdicts] == [1, 2, 3]
    for n in (5, 6, 7):
        await asyncio.sleep(0.2)
        assert (await one(hasty, f"echo {n}")).score == n  # not what a copy had to say


async def test_sigkill_in_mid_call_is_tried_again(project: Path, tmp_path: Path) -> None:
    with VerifierPool(write_verifier(project), processes=1, wall_seconds=60) as pool:
        scoring = asyncio.create_task(one(pool, f"sleep_once {tmp_path / 'seen'}"))
        while not (tmp_path / "seen").exists():
            await asyncio.sleep(0.01)
        os.kill(child_pid(pool), signal.SIGKILL)
        assert (await scoring).correct
        assert (pool.stats()["retries"], pool.stats()["restarts"]) == (1, 1)


async def test_order_and_keys_under_200_concurrent_calls(pool: VerifierPool) -> None:
    async def call(i: int) -> list[Verdict]:
        crash = ["raise x"] if i % 7 == 0 else ["_exit"] if i % 50 == 1 else []
        return await pool.score(task(id=f"task{i}"), [f"echo {i * 10 + j}" for j in range(4)] + crash)

    for i, verdicts in enumerate(await asyncio.gather(*map(call, range(200)))):
        assert [v.answer_key for v in verdicts[:4]] == [f"task{i}/{i * 10 + j}" for j in range(4)]
        assert [v.score for v in verdicts[:4]] == [i * 10 + j for j in range(4)]
        assert [v.error for v in verdicts[4:]] == ["crash"] * len(verdicts[4:])


async def test_verdicts_repeat(pool: VerifierPool) -> None:
    responses = ["echo 1", "raise x", "return 0.25", "return None"]
    first, second = [
        [replace(v, elapsed=0.0, detail="" if v.answer_key else v.detail) for v in await pool.score(task(), responses)]
        for _ in range(2)
    ]
    assert first == second


async def test_children_see_no_secrets_and_no_torch(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    with VerifierPool(write_verifier(project), processes=1) as pool:
        names = set((await one(pool, "secrets")).detail.split(","))
        assert "PATH" in names and "PYTHONWARNINGS" in names
        assert not names & {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "HOME"}
        assert (await one(pool, "torch")).score == 0


async def test_unusable_gold_is_an_error_of_its_own(pool: VerifierPool) -> None:
    verdicts = await pool.score(task("bad"), ["echo 1", "echo 2"])
    assert [(v.error, v.detail) for v in verdicts] == [("gold_unparsed", "it is bad")] * 2


def test_check_answers_names_dataset_and_row(pool: VerifierPool) -> None:
    answers = ["1"] * 600 + ["bad", "1", "crash", "1"]
    tasks = [
        task(answer, id=f"r{i}", source="mine", meta={"where": f"mine.jsonl:{i}"}) for i, answer in enumerate(answers)
    ]
    bad, problems = zip(*pool.check_answers(tasks), strict=True)
    assert [t.id for t in bad] == ["r600", "r602"]
    assert all(part in problems[0] for part in ("mine.jsonl:600", "r600", "'nasty'", "'bad'", "it is bad"))
    assert "r602" in problems[1] and "status 5" in problems[1]


async def test_a_task_names_its_own_verifier(project: Path) -> None:
    write_verifier(project, "def verify(response, answer):\n    return response == answer\n", name="plain")
    both = write_verifier(project) | specs("plain", project=project)
    with VerifierPool(both, processes=1) as pool:
        assert (await one(pool, "1", verifier="plain")).correct
        assert not (await one(pool, "1")).correct
        with pytest.raises(VerifierError, match=r"'plainn'.*loaded are: nasty, plain"):
            await one(pool, "1", verifier="plainn")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("import nothing_of_that_name", {}, "nothing_of_that_name"),
        ("x = 1", {}, r"defines no function verify"),
        ("def verify(response, answer): return 1", {"lower": True}, "takes no options"),
        ("import sys; sys.exit(1)", {}, "SystemExit"),
        ("import os; os._exit(9)", {}, "exited with status 9"),
        (
            "from pydantic import BaseModel\nclass Config(BaseModel, extra='forbid'):\n    lower: bool = False\n"
            "def verify(response, answer, config): return config.lower",
            {"lowr": True},
            "did you mean 'lower'",
        ),
    ],
)
async def test_a_verifier_that_cannot_be_loaded(tmp_path: Path, text: str, options: dict, message: str) -> None:
    write_verifier(tmp_path, text, name="broken")
    with VerifierPool(specs("broken", project=tmp_path, **options), processes=1) as pool:
        with pytest.raises(VerifierError, match=message) as error:
            await one(pool, "x")
        assert "broken.py" in str(error.value)


async def test_options_reach_the_verifier(tmp_path: Path) -> None:
    for lower in (False, True):
        with VerifierPool(specs("template", project=tmp_path, lower=lower), processes=1) as pool:
            assert (await one(pool, "it is YES", answer="yes")).correct is lower


def test_an_unknown_verifier(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'math'"):
        specs("maths", project=tmp_path)


async def test_close_ends_calls_in_flight_and_is_final(project: Path) -> None:
    pool = VerifierPool(write_verifier(project), processes=1, wall_seconds=600)
    scoring = [asyncio.create_task(one(pool, "sleep 600")) for _ in range(3)]
    while not pool._children:
        await asyncio.sleep(0.01)
    pid = child_pid(pool)
    started = time.monotonic()
    await asyncio.to_thread(pool.close)
    assert time.monotonic() - started < 10
    assert all(isinstance(r, VerifierError) for r in await asyncio.gather(*scoring, return_exceptions=True))
    assert not alive(pid)
    with pytest.raises(VerifierError, match="closed"):
        await one(pool, "echo 1")
    pool.close()


async def test_an_abandoned_call_does_not_stop_the_next(hasty: VerifierPool) -> None:
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(one(hasty, "sleep 0.3"), 0.05)
    assert (await one(hasty, "echo 1")).correct


def test_children_die_with_the_trainer(project: Path, tmp_path: Path) -> None:
    write_verifier(project)
    code = (
        "import asyncio, sys, pathlib\n"
        "from tests.unit.verifiers import specs, child_pid, task\n"
        "from rlvr.verify.pool import VerifierPool\n"
        "pool = VerifierPool(specs('nasty', project=pathlib.Path(sys.argv[1])), processes=1)\n"
        "asyncio.run(pool.score(task(), ['echo 1']))\n"
        "print(child_pid(pool), flush=True)\n"
        "asyncio.run(pool.score(task(), ['sleep_once ' + sys.argv[2]]))\n"
    )
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", code, str(project), str(tmp_path / "busy")]
    environment = {**os.environ, "PYTHONPATH": root}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as trainer:
        assert trainer.stdout is not None
        pid = int(trainer.stdout.readline())
        while not (tmp_path / "busy").exists():
            time.sleep(0.01)
        assert alive(pid)
        trainer.kill()
    limit = time.monotonic() + 10
    while alive(pid) and time.monotonic() < limit:
        time.sleep(0.01)
    assert not alive(pid)


async def test_lone_surrogates_and_long_responses(pool: VerifierPool) -> None:
    long = "x" * 3_000_000  # many times what a pipe holds
    verdicts = await pool.score(Task(id="\udc80", prompt="?", answer="1"), ["\ud800 " + long, "echo 2", long])
    assert [v.score for v in verdicts] == [0, 2, 0]


async def test_512_quick_verdicts_are_cheap(tmp_path: Path) -> None:
    with VerifierPool(specs("exact", project=tmp_path), processes=2) as pool:
        await asyncio.gather(*(one(pool, "=1") for _ in range(8)))  # started
        fastest = min([await timed(pool) for _ in range(5)])
    assert fastest < 0.5  # about 0.04 s when the machine is free


async def timed(pool: VerifierPool) -> float:
    started = time.perf_counter()
    groups = await asyncio.gather(*(pool.score(task(id=str(i)), [f"1*{j}={j}" for j in range(8)]) for i in range(64)))
    assert all([v.correct for v in verdicts] == [j == 1 for j in range(8)] for verdicts in groups)
    return time.perf_counter() - started
