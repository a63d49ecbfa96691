"""Programs in Python, judged by tests in a sandbox. The last fenced block after the thinking is what runs.

The gold answer is JSON in one of three forms:

- `{"inputs": ["1 2\\n", ...], "outputs": ["3\\n", ...]}`: each input on stdin, the output compared;
- the same with `"fn_name": "add"`: each input is a list of arguments, each output the value to return;
- `{"asserts": ["assert add(1, 2) == 3", ...]}`: each is a test: statements, a `check(candidate)` (with
  `"entry_point": "add"`), `test_...` functions or unittest cases. `"setup"` (run before the program, such as the
  imports of the prompt) and `"test_setup"` (before each test) are optional.

What a program prints, how it exits and what it replaces in its own interpreter decide nothing: outputs are compared in
the verifier's process, and tests run in a process that the program cannot reach (`rlvr.verify.remote`).
"""

from __future__ import annotations

import ast
import json
import math
import re
import time
from functools import lru_cache
from itertools import chain
from typing import Any

from pydantic import BaseModel, PositiveFloat, PositiveInt

from rlvr.verify.sandbox import Level, Sandbox, SandboxError, judged, require_isolation, shared

VERSION = "code-1"
BLOCK = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
LANGUAGES = ("", "python", "python3", "py")
KEYS = {"inputs", "outputs", "fn_name", "asserts", "entry_point", "setup", "test_setup"}


class Config(BaseModel, extra="forbid"):
    seconds: PositiveFloat = 4.0  # CPU seconds of one test; a test that sleeps has twice that and a second
    total: PositiveFloat = 30.0  # wall seconds of all tests together; the rest has failed
    memory: PositiveInt = 512  # MiB of one program
    partial: bool = False  # score: the fraction of tests that pass; else 1 when all do
    unsafe: bool = False  # where no isolation works: run the programs all the same, with all that you may do


def verify(response: str, answer: str, config: Config) -> dict[str, Any]:
    """Score with the number of tests that passed. Raises SandboxError where programs cannot be run."""
    tests = read(answer)
    source = program(response)
    if source is None:
        return {"score": 0.0, "parsed": False, "detail": "no Python block"}
    run = _outputs if "inputs" in tests and "fn_name" not in tests else _tests
    results = run(shared(_level(config), memory=config.memory << 20), source, tests, config)
    total, passed = _count(tests), sum(why is None for why in results)
    why = next((why for why in results if why is not None), "")
    if not why and len(results) < total:
        why = f"the time for all tests, {config.total:g} s, was used up"
    score = passed / total if config.partial else float(passed == total)
    detail = f"{passed} of {total} tests" + (f"; {why}" if why else "")
    return {"score": score, "correct": passed == total, "detail": detail}


def check_answer(answer: str, config: Config) -> str | None:
    """Why the tests cannot be used."""
    try:
        tests = read(answer)
    except ValueError as error:
        return str(error)
    for text in (*tests.get("asserts", ()), tests.get("setup", ""), tests.get("test_setup", "")):
        try:
            ast.parse(text)
        except SyntaxError as error:
            return f"a test is no Python: {error}"
    return None


def check_machine(config: Config) -> str | None:
    """Why programs cannot be run here; `rlvr check` asks before a run starts."""
    try:
        _level(config)
    except SandboxError as error:
        return str(error)
    return None


def _level(config: Config) -> Level:
    try:
        return require_isolation()
    except SandboxError:
        if config.unsafe:
            return "none"
        raise


def program(response: str) -> str | None:
    """The last fenced block in Python (or without a language) after the thinking; none where that has no end."""
    rest = response.rpartition("</think>")[2]
    blocks = [] if "<think>" in rest else BLOCK.findall(rest)
    return next((text for language, text in reversed(blocks) if language.lower() in LANGUAGES and text.strip()), None)


@lru_cache(maxsize=64)
def read(answer: str) -> dict[str, Any]:
    """The tests. Raises ValueError with what is wrong with them."""
    try:
        tests = json.loads(answer)
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(tests, dict) or not tests.keys() <= KEYS or ("asserts" in tests) == ("inputs" in tests):
        raise ValueError(f"expected an object with inputs and outputs, or with asserts; known keys are {sorted(KEYS)}")
    if "asserts" in tests:
        return _texts(tests)
    inputs, outputs = tests["inputs"], tests.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs) or not inputs:
        raise ValueError("inputs and outputs must be two lists of the same length, and not empty")
    if "fn_name" not in tests and not all(isinstance(text, str) for text in (*inputs, *outputs)):
        raise ValueError("without fn_name, inputs and outputs are text for stdin and stdout")
    if "fn_name" in tests and not all(isinstance(arguments, list) for arguments in inputs):
        raise ValueError("with fn_name, each of inputs is the list of arguments of one call")
    return tests


def _texts(tests: dict[str, Any]) -> dict[str, Any]:
    asserts = tests["asserts"]
    if not isinstance(asserts, list) or not asserts or not all(isinstance(text, str) for text in asserts):
        raise ValueError("asserts must be a list of texts, and not empty")
    return tests


def _count(tests: dict[str, Any]) -> int:
    return len(tests["asserts"] if "asserts" in tests else tests["inputs"])


def _outputs(sandbox: Sandbox, source: str, tests: dict[str, Any], config: Config) -> list[str | None]:
    """For each test None, or why it failed; shorter where the time was used up or one failure decides."""
    deadline = time.monotonic() + config.total
    found: list[str | None] = []
    for given, expected in zip(tests["inputs"], tests["outputs"], strict=True):
        wall = min(2 * config.seconds + 1, deadline - time.monotonic())
        if wall <= 0 or (found and found[-1] and not config.partial):
            break
        ended = sandbox.script(source, stdin=given, cpu=config.seconds, wall=wall)
        if ended.why or ended.status:
            found.append(f"test {len(found) + 1}: {ended.reason}")
            continue
        out = ended.out.decode(errors="replace")
        found.append(None if same_output(out, expected) else f"test {len(found) + 1}: printed {out[:100]!r}")
    return found


def _tests(sandbox: Sandbox, source: str, tests: dict[str, Any], config: Config) -> list[str | None]:
    deadline = time.monotonic() + config.total
    function = tests.get("fn_name")
    items = tests["asserts"] if function is None else _calls(tests)
    job = {"source": source, "tests": items, "function": function, "entry_point": tests.get("entry_point")}
    job |= {"setup": tests.get("setup", ""), "test_setup": tests.get("test_setup", "")}
    found: list[str | None] = []
    for result in judged(sandbox, job, cpu=config.seconds, wall=min(2 * config.seconds + 1, config.total)):
        if result.get("unsupported"):
            raise ValueError(f"test {len(found) + 1} cannot be run: {result['detail']}")
        found.append(None if result["passed"] else f"test {len(found) + 1}: {result['detail']}")
        if time.monotonic() > deadline or (found[-1] and not config.partial):
            break
    return found


def _calls(tests: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"args": a, "expected": e} for a, e in zip(tests["inputs"], tests["outputs"], strict=True)]


def same_output(out: str, expected: str) -> bool:
    """Equal but for white space at the ends of lines and of the text; numbers with a point within 1e-6."""
    lines, wanted = ([line.split() for line in text.strip().splitlines()] for text in (out, expected))
    if [len(line) for line in lines] != [len(line) for line in wanted]:
        return False
    pairs = zip(chain.from_iterable(lines), chain.from_iterable(wanted), strict=True)
    return all(given == gold or _close(given, gold) for given, gold in pairs)


def _close(given: str, gold: str) -> bool:
    if "." not in gold:
        return False
    try:
        return math.isclose(float(given), float(gold), rel_tol=1e-6, abs_tol=1e-6)
    except ValueError:
        return False
