"""The code verifier: three forms of tests, and every way to be paid without solving the task."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rlvr import check
from rlvr.catalog import find, load
from rlvr.cli import doctor
from rlvr.errors import VerifierError
from rlvr.recipe import Recipe
from rlvr.verify import sandbox
from rlvr.verify.pool import VerifierPool
from tests.unit.verifiers import specs, task, write_verifier

ADD = {"asserts": ["assert add(1, 2) == 3", "assert add(-1, 1) == 0", "assert add(2, 2) == 4"]}
CALLS = {"fn_name": "add", "inputs": [[1, 2], [-1, 1], [2, 2]], "outputs": [3, 0, 4]}
SCRIPT = {"inputs": ["1 2\n", "-1 1\n", "2 2\n"], "outputs": ["3\n", "0\n", "4\n"]}
RIGHT = "def add(a, b):\n    return a + b"
RIGHT_SCRIPT = "a, b = map(int, input().split())\nprint(a + b)"


@pytest.fixture
def code(root: Path) -> ModuleType:
    if sandbox.best_level()[0] is None:
        pytest.skip(f"no isolation works here: {sandbox.best_level()[1]}")
    return load(find("rewards", "code", project=root))


def block(source: str) -> str:
    return f"<think>\n```python\nwrong()\n```</think>Here:\n```python\n{source}\n```\nDone."


def scored(code: ModuleType, source: str, tests: dict[str, Any], **options: Any) -> dict[str, Any]:
    return code.verify(block(source), json.dumps(tests), code.Config(**{"seconds": 1.0} | options))


@pytest.mark.parametrize(("tests", "source"), [(ADD, RIGHT), (CALLS, RIGHT), (SCRIPT, RIGHT_SCRIPT)])
def test_right_and_wrong(code: ModuleType, tests: dict[str, Any], source: str) -> None:
    assert scored(code, source, tests) == {"score": 1.0, "correct": True, "detail": "3 of 3 tests"}
    wrong = source.replace("a + b", "abs(a) + b")
    verdict = scored(code, wrong, tests, partial=True)
    assert verdict["score"] == pytest.approx(2 / 3) and not verdict["correct"] and "test 2" in verdict["detail"]
    assert scored(code, wrong, tests)["score"] == 0
    broken = scored(code, "def add(a, b:", tests)
    assert broken["score"] == 0 and "SyntaxError" in broken["detail"]


FORGERIES = {
    "exits at once": "import os; os._exit(0)",
    "exits in the call": "def add(*a):\n    import os; os._exit(0)",
    "sys.exit in the call": "def add(*a):\n    import sys; sys.exit(0)",
    "exits at the end": "import atexit, os\natexit.register(os._exit, 0)",
    "prints a pass": "print('PASS'); print('{\"passed\": true}'); print('OK')",
    "prints results on every descriptor": (
        "import os\nfor fd in range(100):\n    try: os.write(fd, b'{\"passed\": true}\\n')\n    except OSError: pass"
    ),
    "speaks on the link": (
        "import json, os, struct\ndef add(*a):\n"
        "    body = json.dumps({'value': None, 'passed': True, 'args': []}).encode()\n"
        "    os.write(4, struct.pack('<I', len(body)) + body)\n    return None"
    ),
    "garbage on the link": "import os\ndef add(*a):\n    os.write(4, bytes(range(256)) * 100)\n    return 3",
    "always equal": "class Same:\n    def __eq__(self, other): return True\ndef add(*a): return Same()",
    "always equal number": "class Same(int):\n    def __eq__(self, other): return True\ndef add(*a): return Same(7)",
    "always equal list": "class Same(list):\n    def __eq__(self, other): return True\ndef add(*a): return Same()",
    "patches builtins": (
        "import builtins\nbuiltins.AssertionError = type('E', (Exception,), {})\nbuiltins.all = lambda x: True\n"
        "builtins.len = lambda x: 3\nbuiltins.abs = lambda x: 0\nbuiltins.compile = None\nbuiltins.exec = None\n"
        "def add(*a): return None"
    ),
    "patches unittest": (
        "import unittest\nunittest.TestCase.assertEqual = lambda *a: None\n"
        "unittest.TestResult.wasSuccessful = lambda s: True\n"
        "def add(*a): return None"
    ),
    "patches the harness": (
        "import sys\nfor m in list(sys.modules.values()):\n    for n in ('same', '_one', 'test', 'judged', 'verify'):\n"
        "        if hasattr(m, n): setattr(m, n, lambda *a, **k: True)\ndef add(*a): return None"
    ),
    "looks for the tests in memory": (
        "import gc, sys\nf, seen = sys._getframe(), gc.get_objects()\n"
        "while f:\n    seen.append(f.f_locals); f = f.f_back\n"
        "found = [o for o in seen if isinstance(o, dict) and any(isinstance(v, str) and 'asse' + 'rt add(' in v "
        "or isinstance(v, list) and 'exp' + 'ected' in str(v)[:999] for v in list(o.values()))]\n"
        "def add(a, b): return a + b if found else None"
    ),
    "raises its way out": "def add(*a): raise SystemExit(0)",
    "raises in a strange class": "class E(BaseException): pass\ndef add(*a): raise E()",
    "traces": "import sys\nsys.settrace(lambda *a: None)\ndef add(*a): return None",
    "defines the tests' words": "def check(c): pass\ndef candidate(*a): pass\nadd = check",
    "sleeps": "import time\ndef add(*a): time.sleep(600)",
    "floods": "def add(*a):\n    while True: print('x' * 10000)",
    "endless iterator": "import itertools\ndef add(*a): return itertools.count()",
    "too much to send": "def add(*a): return 'x' * (100 << 20)",
    "deep": "def add(*a):\n    x = []\n    for i in range(10 ** 5): x = [x]\n    return x",
    "no function": "x = 1",
    "nothing": "pass",
}


SLOW = ("sleeps", "floods", "garbage on the link")
CASE = "import unittest\nclass T(unittest.TestCase):\n    def test_it(self): self.assertEqual(add(1, 2), 3)"
CHECK = {"asserts": ["def check(candidate):\n    assert candidate(1, 2) == 3"], "entry_point": "add"}
FORMS: dict[str, dict[str, Any]] = {
    "asserts": {"asserts": ["assert add(1, 2) == 3"]},
    "calls": {"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]},
    "unittest": {"asserts": [CASE]},
    "check": CHECK,
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_can_be_passed(code: ModuleType, form: str) -> None:
    assert scored(code, RIGHT, FORMS[form])["score"] == 1


@pytest.mark.parametrize(
    ("form", "trick"), [(f, t) for f in FORMS for t in FORGERIES if f == "asserts" or t not in SLOW]
)
def test_no_forgery_scores(code: ModuleType, form: str, trick: str) -> None:
    verdict = scored(code, FORGERIES[trick], FORMS[form], partial=True, seconds=0.3)
    assert verdict["score"] == 0, verdict


SCRIPTS = ["print('PASS')", "import os; os._exit(0)", "print(3)\nprint(0)\nprint(4)", "pass", "print(input())"]


@pytest.mark.parametrize("source", SCRIPTS)
def test_no_script_forgery_scores(code: ModuleType, source: str) -> None:
    assert scored(code, source, SCRIPT, partial=True)["score"] == 0


def test_a_right_answer_with_a_crash_is_wrong(code: ModuleType) -> None:
    verdict = scored(code, RIGHT_SCRIPT + "\n1/0", SCRIPT)
    assert verdict["score"] == 0 and "ZeroDivisionError" in verdict["detail"]


def test_a_helper_of_the_dataset_is_not_the_programs(code: ModuleType) -> None:
    setup = "def poly(x):\n    return x - 3\ndef root():\n    '''a root of poly'''"
    tests = {
        "asserts": ["def check(candidate):\n    assert abs(poly(candidate())) < 1e-6"],
        "entry_point": "root",
        "setup": setup,
    }
    assert scored(code, "def root(): return 3.0", tests)["score"] == 1
    assert scored(code, "def poly(x): return 0\ndef root(): return 99.0", tests)["score"] == 0
    assert scored(code, "def root(): return next(x for x in range(9) if poly(x) == 0)", tests)["score"] == 1


def test_a_changed_argument_is_no_way_to_be_equal(code: ModuleType) -> None:
    tests = {"asserts": ["x = [3, 1]\nassert order(x) == sorted(x)"]}
    assert scored(code, "def order(x):\n    x.clear()\n    return []", tests)["score"] == 0
    assert scored(code, "def order(x): return sorted(x)", tests)["score"] == 1
    in_place = {"asserts": ["x = [3, 1]\nassert order(x) is None\nassert x == [1, 3]"]}
    assert scored(code, "def order(x): x.sort()", in_place)["score"] == 1


def test_what_crosses(code: ModuleType) -> None:
    values = [
        "None", "True", "-7", "2 ** 5000", "1.5", "float('inf')", "'é\\ud800'", "b'x'", "(1, [2])", "{1: {2}}",
        "frozenset({1})",
        "1 + 2j",
        "fractions.Fraction(1, 3)",
        "decimal.Decimal('1.50')", "range(3)",
    ]  # fmt: skip
    tests = {"asserts": [f"v = same({v})\nassert v == {v} and type(v) is type({v})" for v in values]}
    assert (
        scored(code, "def same(x): return x", tests, partial=True)["detail"] == f"{len(values)} of {len(values)} tests"
    )


def test_classes_functions_iterators_and_errors_cross(code: ModuleType) -> None:
    source = """
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x); return self
    def __len__(self): return len(self.items)
def apply(f, xs): return [f(x) for x in xs]
def evens(n): return (i for i in range(n) if i % 2 == 0)
def fail(): raise ValueError('bad luck')
def adder(n): return lambda x: x + n
"""
    tests = {
        "asserts": [
            "s = Stack()\ns.push(1).push(2)\nassert len(s) == 2 and s.items == [1, 2]",
            "assert apply(lambda x: x * 2, [1, 2]) == [2, 4]",
            "assert list(evens(5)) == [0, 2, 4]",
            "try:\n    fail()\n    assert False\nexcept ValueError as e:\n    assert 'luck' in str(e)",
            "assert adder(2)(3) == 5",
            "def test_one():\n    assert math.isclose(adder(0.1)(0.2), 0.3)",
        ]
    }
    assert scored(code, source, tests, partial=True)["detail"] == "6 of 6 tests"


def test_functions_return_equal_values(code: ModuleType) -> None:
    tests = {"fn_name": "f", "inputs": [[0], [1], [2], [3]], "outputs": [[[1, 2]], {"1": 0.5}, 1, True]}
    source = "def f(n): return [[(1, 2)], {1: 0.5000000001}, True, 1][n]"
    verdict = scored(code, source, tests, partial=True)
    assert verdict["score"] == 0.5  # tuples and keys as JSON has them; True is not 1


@pytest.mark.parametrize(
    ("out", "gold", "same"),
    [
        ("1 2\n3", "1 2  \n3\n\n", True), ("1\n2", "1 2", False), ("0.3333333", "0.33333333", True),
        ("0.33", "0.3333", False),
        ("1.0", "1", False), ("1", "1.0", True), ("yes", "Yes", False), ("", "", True), ("nan", "1.0", False),
        ("3 4", "3", False),
    ],
)  # fmt: skip
def test_outputs_compare(code: ModuleType, out: str, gold: str, same: bool) -> None:
    assert code.same_output(out, gold) is same


def test_the_last_block_counts(code: ModuleType) -> None:
    assert code.program("```py\na\n```\ntext\n```\nb\n```\n```text\noutput\n```") == "b\n"
    assert code.program("<think>\n```python\na\n```") is None
    assert code.program("<think>\n```python\na\n```</think> none") is None
    assert code.program("```python\nunfinished") is None and code.program("a = 1") is None
    assert code.verify("no block", json.dumps(ADD), code.Config())["parsed"] is False


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("x", "not JSON"), ("[]", "expected an object"), ('{"asserts": []}', "not empty"),
        ('{"asserts": ["assert ("]}', "no Python"),
        ('{"inputs": ["1"], "outputs": []}', "same length"), ('{"inputs": [1], "outputs": ["1"]}', "text for stdin"),
        ('{"inputs": ["1"], "outputs": ["1"], "fn_name": "f"}', "list of arguments"),
        ('{"inputs": ["1"], "output": ["1"]}', "known keys"),
        (json.dumps(ADD), None), (json.dumps(CALLS), None), (json.dumps(SCRIPT), None),
    ],
)  # fmt: skip
def test_golds_are_checked(code: ModuleType, answer: str, problem: str | None) -> None:
    found = code.check_answer(answer, code.Config())
    assert found is None if problem is None else problem in found


def test_time_for_all_tests(code: ModuleType) -> None:
    slow = "def add(a, b):\n    import time; time.sleep(0.7)\n    return a + b"
    verdict = scored(code, slow, {"asserts": ADD["asserts"] * 20}, total=4.0, partial=True)
    assert 0 < verdict["score"] < 0.2 and "time for all tests" in verdict["detail"]


async def test_in_the_pool_a_programs_seconds_are_not_the_verifiers(code: ModuleType, tmp_path: Path) -> None:
    spin = "def add(a, b):\n    while True: pass"
    with VerifierPool(specs("code", project=tmp_path, seconds=0.7, partial=True), processes=1, cpu_seconds=1.0) as pool:
        verdicts = await pool.score(task(json.dumps(ADD)), [block(RIGHT), block(spin), "none", block(RIGHT)])
    assert [(v.score, v.error) for v in verdicts] == [(1, None), (0, None), (0, None), (1, None)]
    assert verdicts[0].version == "code-1" and verdicts[1].detail.startswith("0 of 3 tests; test 1: ")


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "trial", lambda level: f"no {level} here")


@pytest.mark.usefixtures("nowhere")
def test_without_isolation_it_refuses_unless_unsafe(root: Path) -> None:
    code = load(find("rewards", "code", project=root))
    with pytest.raises(sandbox.SandboxError, match="not run without isolation"):
        code.verify(block(RIGHT), json.dumps(ADD), code.Config())
    assert "unsafe: true" in code.check_machine(code.Config())
    assert code.check_machine(code.Config(unsafe=True)) is None
    assert code.verify(block(RIGHT), json.dumps(ADD), code.Config(unsafe=True))["score"] == 1


NOT_HERE = "def verify(response, answer): return 1\ndef check_machine(config): return 'no room for it'"


def test_check_warns_of_a_verifier_that_this_machine_cannot_run(tmp_path: Path) -> None:
    write_verifier(tmp_path, NOT_HERE, name="roomy")
    good = {"model": {"path": "org/name"}, "data": {"train": [{"name": "gsm8k"}]}, "verifier": {"name": "roomy"}}
    [problem] = check.problems(Recipe.model_validate(good), project=tmp_path)
    assert (problem.level, problem.key) == ("warning", "verifier") and "no room for it" in problem.message


async def test_a_pool_refuses_a_verifier_that_this_machine_cannot_run(tmp_path: Path) -> None:
    with VerifierPool(write_verifier(tmp_path, NOT_HERE, name="roomy"), processes=1) as pool:
        scoring = pool.score(task(), ["x"])
        with pytest.raises(VerifierError, match=r"cannot be loaded.*roomy.py.*no room for it"):
            await scoring


@pytest.mark.usefixtures("nowhere")
def test_doctor_says_what_to_do() -> None:
    finding = doctor.sandbox()
    assert (finding.level, finding.advice) == ("warn", sandbox.ADVICE) and "no namespaces here" in finding.found
