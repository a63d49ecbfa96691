"""The evaluation over a sampler and a verifier whose answers are known."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from rlvr.errors import ConfigError, DataError, EngineError
from rlvr.evaluate.run import EvalResult, evaluate, make_gate
from rlvr.evaluate.samples import fresh
from rlvr.seeds import stable_seed
from rlvr.types import I32, Completion, Request, Sampling, Task, Verdict

TASKS = [Task(f"t{i}", f"q{i}", str(i)) for i in range(3)]


class Letters:
    """Tokens are characters."""

    def encode(self, task: Task) -> I32:
        assert isinstance(task.prompt, str)
        return np.array([ord(c) for c in task.prompt], dtype=np.int32)

    def decode(self, tokens: I32) -> str:
        return "".join(map(chr, tokens))


class Scripted:
    """Sample i of a task answers `script[task id][i]`; "~" at the end is a truncated response."""

    def __init__(self, script: dict[str, Sequence[str]], delay: float = 0.0) -> None:
        self.script, self.delay = script, delay
        self.requests: list[Request] = []
        self.active = self.most = 0

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.requests += requests
        self.active += 1
        self.most = max(self.most, self.active)
        await asyncio.sleep(self.delay)
        self.active -= 1
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Completion:
        _, _, task, i = request.key.split("/")
        text = self.script[task][int(i)]
        tokens = np.array([ord(c) for c in text], dtype=np.int32)
        blank = np.zeros(len(tokens))
        finish = "length" if text.endswith("~") else "stop"
        return Completion(request.key, tokens, blank.astype(np.float32), blank.astype(np.int32), finish)


class Exact:
    """Right when the text is the answer; "!" is an error, "?" cannot be parsed."""

    async def score(self, task: Task, responses: Sequence[str]) -> list[Verdict]:
        return [self._one(task, text) for text in responses]

    def _one(self, task: Task, text: str) -> Verdict:
        if text == "!":
            return Verdict(0.0, False, error="crash")
        right = text == task.answer
        return Verdict(float(right), right, answer_key=None if text == "?" else text, parsed=text != "?")


async def run(sampler: Scripted, tasks: Sequence[Task] = TASKS, *, n: int = 4, ks: Sequence[int] = (1, 2), **rest):
    how = Sampling(temperature=0.7, max_tokens=5)
    draw = fresh(sampler, Letters(), sampling=how, dataset="toy", seed=11)
    asked = {"verifiers": Exact(), "max_tokens": 5} | rest
    return await evaluate(tasks, dataset="toy", draw=draw, n=n, ks=ks, seed=11, **asked)


SCRIPT = {"t0": ["0", "0", "5", "5~"], "t1": ["7", "?", "?", "8"], "t2": ["2", "2", "!", "!"]}


async def test_counts_and_estimates_by_hand() -> None:
    result: EvalResult = await run(Scripted(SCRIPT))
    t0, t1, t2 = result.tasks
    assert (t0.valid, t0.correct, t0.errors, t0.truncated, t0.distinct, t0.length) == (4, 2, {}, 1, 3, 1.25)
    assert (t1.valid, t1.correct, t1.unparsed, t1.distinct, t1.majority(4)) == (4, 0, 2, 2, 0.0)
    assert (t2.valid, t2.correct, t2.errors, t2.distinct, t2.majority(4)) == (2, 2, {"crash": 2}, 1, 1.0)
    assert result.scores["pass@1"].value == pytest.approx((0.5 + 0 + 1) / 3)
    assert result.scores["pass@2"].value == pytest.approx((5 / 6 + 0 + 1) / 3)  # 1 - C(2,2)/C(4,2) = 5/6
    assert result.scores["maj@4"].value == pytest.approx((1 + 0 + 1) / 3)
    line = result.record(8)
    assert {
        k: line[k]
        for k in (
            "step",
            "dataset",
            "n",
            "tasks",
            "errors",
            "error_kinds",
            "unparsed",
            "solved",
            "truncated",
            "distinct",
        )
    } == {
        "step": 8,
        "dataset": "toy",
        "n": 4,
        "tasks": 3,
        "errors": 2,
        "error_kinds": {"crash": 2},
        "unparsed": 2 / 10,
        "solved": 2,
        "truncated": 1 / 12,
        "distinct": 2.0,
    }
    assert set(line["pass@1"]) == {"value", "low", "high"} and "short" not in line
    assert not any(key.startswith("time/") for key in line)


async def test_errors_leave_a_question_out_of_large_k_and_are_counted() -> None:
    result = await run(Scripted(SCRIPT), ks=(1, 4))
    assert result.scores["pass@4"].value == pytest.approx((1 + 0) / 2)
    assert result.record(0)["short"] == {"pass@4": 1}


async def test_requests_are_keyed_and_seeded_by_name() -> None:
    sampler = Scripted(SCRIPT)
    await run(sampler)
    by_key = {request.key: request for request in sampler.requests}
    assert set(by_key) == {f"eval/toy/t{t}/{i}" for t in range(3) for i in range(4)}
    assert by_key["eval/toy/t1/2"].sampling == Sampling(
        temperature=0.7, max_tokens=5, seed=stable_seed(11, "eval", "t1", 2)
    )
    assert len({request.sampling.seed for request in sampler.requests}) == 12


async def test_the_result_does_not_depend_on_concurrency() -> None:
    one, many = Scripted(SCRIPT, 0.002), Scripted(SCRIPT, 0.002)
    assert (await run(one, gate=asyncio.Semaphore(1))) == (await run(many, gate=asyncio.Semaphore(2)))
    assert (one.most, many.most) == (1, 2)


async def test_long_samples_are_calls_of_their_own() -> None:
    short, long = Scripted(SCRIPT), Scripted(SCRIPT)
    seen: list[int] = []
    whole = await run(short)
    split = await run(long, max_tokens=5000, progress=lambda rows: seen.append(len(rows)))
    assert split == whole and seen == [1] * 12
    assert [len({r.key for r in s.requests}) for s in (short, long)] == [12, 12]


def test_the_gate_keeps_engines_busy_and_long_samples_few() -> None:
    assert make_gate(64, max_tokens=48)._value == 4096 // 64
    assert make_gate(1, max_tokens=32768, samplers=2)._value == 2 * 256


async def test_what_cannot_be_evaluated_is_said() -> None:
    with pytest.raises(ConfigError, match=r"pass@8 needs at least 8.*evaluate\.n=4"):
        await run(Scripted(SCRIPT), ks=(1, 8))
    with pytest.raises(DataError, match="toy: no task"):
        await run(Scripted(SCRIPT), [])
    with pytest.raises(EngineError, match=r"task t0 took more than 0 s \(limits\.group\)"):
        await run(Scripted(SCRIPT, delay=5), limit=0.01)
    with pytest.raises(EngineError, match=r"no task has 1 or more verdicts without error \(4 errors in all: crash 4\)"):
        await run(Scripted({"t0": "!!!!"}), TASKS[:1])


async def test_a_failure_cancels_the_rest_and_arrives_as_it_is() -> None:
    class Broken(Scripted):
        async def generate(self, requests: Sequence[Request]) -> list[Completion]:
            if requests[0].key.startswith("eval/toy/t0"):
                raise EngineError("the engine is gone")
            return await super().generate(requests)

    broken = Broken(SCRIPT, delay=30)
    with pytest.raises(EngineError, match="the engine is gone"):
        await asyncio.wait_for(run(broken), 5)


async def test_no_answer_keys_means_no_majority() -> None:
    class Keyless(Exact):
        async def score(self, task: Task, responses: Sequence[str]) -> list[Verdict]:
            return [replace(v, answer_key=None) for v in await super().score(task, responses)]

    result = await run(Scripted(SCRIPT), verifiers=Keyless(), ks=(1,))
    assert list(result.scores) == ["pass@1"]
