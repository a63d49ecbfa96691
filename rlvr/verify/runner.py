"""One loaded verifier inside a child process: calls the functions of its file, and those of its parts."""

from __future__ import annotations

import inspect
import math
import numbers
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from rlvr.plugins import load_plugin, machine_problem
from rlvr.verify.specs import VerifierSpec

DETAIL = 500  # characters of a message or an answer that are kept
STEPS = 40  # lines of an explanation
LINE = 2000  # characters of one
VERDICT_KEYS = frozenset({"score", "correct", "answer_key", "parsed", "detail"})
Reply = dict[str, Any]


class PartError(Exception):
    """A part gave no verdict: its error is that of the whole. `reply` is the part's."""

    def __init__(self, name: str, reply: Reply) -> None:
        self.reply = reply | {"detail": f"{name}: {reply['detail']}"[:DETAIL]}
        super().__init__(self.reply["detail"])


@dataclass(frozen=True)
class Part:
    """One entry of `of:`, bound to a task, as the `verify` of a composition gets it."""

    name: str
    weight: float
    gate: bool
    _runner: Runner
    _task: Mapping[str, Any]

    def __call__(self, response: str) -> Reply:
        """Its verdict: score, correct, answer_key, parsed, detail. An error in it is the error of the whole."""
        reply = self._runner.score(response, self._task)
        if "error" in reply:
            raise PartError(self.name, reply)
        return reply

    def problem(self) -> str | None:
        """Why it cannot use the task's gold answer."""
        return self._runner.problem(self._task["answer"])


class Runner:
    """Turns what a verifier file returns into replies. Raises ConfigError when it cannot be loaded."""

    def __init__(self, spec: VerifierSpec) -> None:
        plugin = load_plugin(spec.found, spec.options, function="verify")
        spec.refuse_wrong_parts(plugin.function)
        if problem := machine_problem(plugin):
            raise RuntimeError(problem)
        self.path = str(spec.found.path)
        self._verify, self._config = plugin.function, plugin.config
        self._names = vars(plugin.module)
        self._parts = [(part, Runner(part)) for part in spec.parts]
        self.version = str(self._names.get("VERSION", ""))[:DETAIL]
        if self._parts:
            self.version += f"({', '.join(f'{p.weight:g} {p.found.name} {r.version}' for p, r in self._parts)})"
        self.problem = lru_cache(maxsize=4096)(self._ask_checker)

    def check(self, answer: str) -> Reply:
        """Why `answer` cannot be a gold answer, or nothing."""
        return {"problem": self.problem(answer)}

    def score(self, response: str, task: Mapping[str, Any]) -> Reply:
        """The verdict on one response, as a reply."""
        problem = self.problem(task["answer"])
        if problem is not None:
            return error_reply("gold_unparsed", problem)
        try:
            returned = self._verify(response, task["answer"], **self._extra(self._verify, task))
        except PartError as error:
            return error.reply | {"version": self.version}
        reply = reply_of(returned)
        if "error" in reply:
            reply["detail"] = f"{self._place(self._verify)}: {reply['detail']}"[:DETAIL]
        return reply | {"version": self.version}

    def explain(self, response: str, task: Mapping[str, Any]) -> Reply:
        """The verdict and its `steps`: the lines in which the file's own `explain` tells how it came about."""
        explain = self._names.get("explain")
        steps: list[str] = []
        for part, runner in self._parts:
            steps += [f"{part.found.name}: {line}" for line in runner.explain(response, task)["steps"]]
        if explain is not None:
            steps += map(str, explain(response, task["answer"], **self._extra(explain, task)))
        reply = self.score(response, task)
        if self._parts or explain is None:
            steps.append(_summary(reply))
        return reply | {"steps": [line[:LINE] for line in steps[:STEPS]]}

    def where(self, error: BaseException) -> str:
        """What was raised, and the line of the verifier's file that it came from."""
        paths = {self.path, *(runner.path for _, runner in self._parts)}
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename in paths] or frames
        place = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
        return f"{type(error).__name__}: {str(error)[:DETAIL]}{place}"

    def _ask_checker(self, answer: str) -> str | None:
        checker = self._names.get("check_answer")
        if checker is None:
            return None
        extra = {"parts": self._bound({"answer": answer})} if self._parts else {}
        problem = checker(answer, self._config, **extra)
        return None if problem is None else str(problem)[:DETAIL]

    def _extra(self, function: Any, task: Mapping[str, Any]) -> dict[str, Any]:
        offered = {"task": task, "config": self._config, "parts": self._bound(task)}
        return {name: offered[name] for name in _taken(function)}

    def _bound(self, task: Mapping[str, Any]) -> list[Part]:
        return [Part(p.found.name, p.weight, p.gate, runner, task) for p, runner in self._parts]

    def _place(self, function: Any) -> str:
        return f"{self.path}:{function.__code__.co_firstlineno}" if inspect.isfunction(function) else self.path


@cache
def _taken(function: Any) -> list[str]:
    """What it wants besides response and answer, by the names of its parameters."""
    parameters = inspect.signature(function).parameters.values()
    every = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return [name for name in ("task", "config", "parts") if every or name in {p.name for p in parameters}]


def _summary(reply: Reply) -> str:
    if "error" in reply:
        return f"error: {reply['error']}: {reply['detail']}"
    said = (f"score {reply['score']:g}", f"answer {reply['answer_key']!r}", reply["detail"])
    return ", ".join(filter(None, said))


def error_reply(kind: str, detail: str) -> Reply:
    """A verdict that is none."""
    return {"error": kind, "detail": detail[:DETAIL]}


def reply_of(value: object) -> Reply:
    """What `verify` may return (a bool, a finite number, or a dict with a `score`) as a reply."""
    given = value if isinstance(value, dict) else {"score": value}
    unknown = [key for key in given if key not in VERDICT_KEYS]
    if unknown:
        return error_reply("bad_verdict", f"unknown keys {unknown}; known are {sorted(VERDICT_KEYS)}")
    score = given.get("score")
    if not isinstance(score, numbers.Real) or not math.isfinite(score):
        expected = "a bool, a finite number, or a dict whose `score` is one"
        return error_reply("bad_verdict", f"verify returned {value!r:.200}; expected {expected}")
    key = given.get("answer_key")
    return {
        "score": float(score),
        "correct": bool(given.get("correct", float(score) >= 1.0)),
        "answer_key": None if key is None else str(key)[:DETAIL],
        "parsed": bool(given.get("parsed", True)),
        "detail": str(given.get("detail", ""))[:DETAIL],
    }
