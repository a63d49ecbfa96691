"""How many small programs a second `rewards/code.py` judges, through the same pool of processes as in a run.

python benchmarks/sandbox.py --processes 2 --programs 300
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from pathlib import Path

from rlvr.recipe import Verifier
from rlvr.types import Task
from rlvr.verify.pool import VerifierPool, verifier_specs
from rlvr.verify.sandbox import Sandbox, require_isolation, trial

ANSWERS = {
    "three asserts": {"asserts": ["assert f(1) == 2", "assert f(2) == 3", "assert f(9) == 10"]},
    "three calls": {"fn_name": "f", "inputs": [[1], [2], [9]], "outputs": [2, 3, 10]},
    "one stdin test": {"inputs": ["1\n"], "outputs": ["2\n"]},
    "ten stdin tests": {"inputs": [f"{i}\n" for i in range(10)], "outputs": [f"{i + 1}\n" for i in range(10)]},
}
FUNCTION = "```python\nimport collections\ndef f(x):\n    return x + 1\n```"
SCRIPT = "```python\nimport sys\nprint(int(sys.stdin.read()) + 1)\n```"


async def rate(pool: VerifierPool, answer: dict[str, object], *, programs: int) -> float:
    """Programs a second; every one of them must be judged right."""
    task = Task(id="t", prompt="?", answer=json.dumps(answer))
    response = FUNCTION if "asserts" in answer or "fn_name" in answer else SCRIPT
    await asyncio.gather(*(pool.score(task, [response]) for _ in range(8)))
    started = time.perf_counter()
    verdicts = await asyncio.gather(*(pool.score(task, [response] * 4) for _ in range(programs // 4)))
    seconds = time.perf_counter() - started
    wrong = [v for group in verdicts for v in group if not v.correct]
    if wrong:
        raise SystemExit(f"{len(wrong)} programs were not judged right: {wrong[0]}")
    return programs // 4 * 4 / seconds


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--programs", type=int, default=300)
    options = parser.parse_args()
    started = time.perf_counter()
    trial("namespaces")
    first = time.perf_counter() - started
    started = time.perf_counter()
    for _ in range(20):
        with Sandbox():
            pass
    place = (time.perf_counter() - started) / 20
    print(f"level {require_isolation()}, {os.cpu_count()} cores, {options.processes} verifier processes")
    print(f"the trial of the level {first:.2f} s, once a process; a sandbox without a program {place * 1000:.0f} ms")
    specs = verifier_specs(Verifier(name="code"), project=Path(__file__).parents[1])
    with VerifierPool(specs, processes=options.processes) as pool:
        for name, answer in ANSWERS.items():
            print(f"{name}: {asyncio.run(rate(pool, answer, programs=options.programs)):.0f} programs/s")


if __name__ == "__main__":
    main()
