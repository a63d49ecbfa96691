"""The numbers of docs/verifiers.md: agreement, throughput, hanging answers, hostile input.

    RLVR_TEST_DATA=FOLDER python benchmarks/verifiers.py [agree|speed|hang|hostile ...]

FOLDER holds gsm8k_model_solutions.jsonl of openai/grade-school-math: four models' solutions with the authors' verdicts.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rlvr.recipe import Verifier
from rlvr.types import Task, Verdict
from rlvr.verify.pool import VerifierPool
from rlvr.verify.specs import verifier_specs

Row = tuple[Task, str]
HANG: Row = (Task(id="hang", prompt="?", answer=r"2\sqrt2"), r"\boxed{(x+y+z+w)^{80}}")  # sympy multiplies it out
ENDLESS = ["9^{9^{9^9}}", "(x+y+z+w)^{80}", "10^{10^{10}}", r"\sin^{99}(x)\cos^{99}(x)"]


def solutions() -> list[tuple[Row, bool]]:
    """Every solution with its task and the authors' verdict."""
    file = Path(os.environ["RLVR_TEST_DATA"]) / "gsm8k_model_solutions.jsonl"
    found = []
    for i, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        task = Task(id=str(i), prompt=row["question"], answer=row["ground_truth"].rpartition("A:")[2].strip())
        found += [((task, s["solution"]), s["is_correct"]) for s in row.values() if isinstance(s, dict)]
    return found


def pool(*, cpu_seconds: float = 5.0, name: str = "math") -> VerifierPool:
    """Two processes."""
    specs = verifier_specs(Verifier(name=name), project=Path.cwd())
    return VerifierPool(specs, processes=2, cpu_seconds=cpu_seconds)


async def score(
    verifiers: VerifierPool, rows: Sequence[Row], *, at_once: int
) -> tuple[list[Verdict], list[float], float]:
    """Verdicts, seconds from handing in to verdict of each, and when each was done."""
    gate = asyncio.Semaphore(at_once)
    started = time.perf_counter()

    async def one(row: Row) -> tuple[Verdict, float, float]:
        async with gate:
            begin = time.perf_counter()
            [verdict] = await verifiers.score(row[0], [row[1]])
            return verdict, time.perf_counter() - begin, time.perf_counter() - started

    verdicts, waits, ends = zip(*await asyncio.gather(*map(one, rows)), strict=True)
    return list(verdicts), list(waits), list(ends)


async def warm(verifiers: VerifierPool, rows: Sequence[Row]) -> None:
    """Children started, usual time known."""
    await score(verifiers, rows[:400], at_once=64)


async def agree() -> None:
    """Against the authors' verdicts."""
    judged = solutions()
    with pool() as verifiers:
        verdicts, _, _ = await score(verifiers, [row for row, _ in judged], at_once=64)
    wrong = [(row, right, v) for (row, right), v in zip(judged, verdicts, strict=True) if v.error or v.correct != right]
    print(f"agree: {len(judged) - len(wrong)} of {len(judged)} ({100 * (1 - len(wrong) / len(judged)):.3f} %)")
    for (task, text), right, verdict in wrong:
        print(f"  task {task.id}, gold {task.answer}, authors say {right}: {verdict} on {text[-80:]!r}")


async def speed() -> None:
    """GSM8K answers, one call each and in groups of the four solutions to one problem."""
    rows = [row for row, _ in solutions()]
    with pool() as verifiers:
        await warm(verifiers, rows)
        for at_once in (16, 64, len(rows)):
            _, waits, ends = await score(verifiers, rows, at_once=at_once)
            p99 = sorted(waits)[int(0.99 * len(waits))]
            print(f"speed: {len(rows) / max(ends):.0f} verdicts/s, {at_once} calls at once, p99 {1000 * p99:.1f} ms")
        groups = [(rows[i][0], [text for _, text in rows[i : i + 4]]) for i in range(0, len(rows), 4)]
        begin = time.perf_counter()
        await asyncio.gather(*(verifiers.score(task, texts) for task, texts in groups))
        print(f"speed: {len(rows) / (time.perf_counter() - begin):.0f} verdicts/s in groups of four")


async def hang() -> None:
    """One hanging answer in 5,000, then one in 50, at a CPU limit of 1 s."""
    rows = [row for row, _ in solutions()][:5000]
    with pool(cpu_seconds=1.0) as verifiers:
        await warm(verifiers, rows)
        await score(verifiers, [HANG], at_once=1)  # the children of the second lane are started once
        without, with_one = [], []
        for _ in range(5):
            _, _, ends = await score(verifiers, rows, at_once=64)
            without.append(max(ends))
            some = [*rows[:2500], HANG, *rows[2500:4999]]
            verdicts, _, ends = await score(verifiers, some, at_once=64)
            assert [v.error for v in verdicts].count("timeout") == 1 and len(verdicts) == 5000
            with_one.append(max(end for row, end in zip(some, ends, strict=True) if row is not HANG))
        base, cost = sorted(without)[2], sorted(with_one)[2]
        percent = 100 * (cost / base - 1)
        print(f"hang: 5,000 in {base:.3f} s; with one that hangs the others in {cost:.3f} s ({percent:+.0f} %)")
        many = [HANG if i % 50 == 25 else row for i, row in enumerate(rows[:1000])]
        verdicts, waits, ends = await score(verifiers, many, at_once=64)
        others = sorted(wait for row, wait in zip(many, waits, strict=True) if row is not HANG)
        lost = sum(v.error is not None for row, v in zip(many, verdicts, strict=True) if row is not HANG)
        hung = [v.error for row, v in zip(many, verdicts, strict=True) if row is HANG]
        print(f"hang: 1 in 50: {lost} others lost, p99 {others[int(0.99 * len(others))]:.3f} s, max {others[-1]:.3f} s")
        print(
            f"hang: {hung.count('timeout')} of {len(hung)} hanging answers timed out, all done after {max(ends):.1f} s"
        )


def hostile(n: int, *, seed: int) -> list[Row]:
    """Fuzzed LaTeX, long texts, deep nesting, huge powers; formula golds, so that nothing is answered early."""
    rng = random.Random(seed)
    words = [
        r"\frac",
        r"\sqrt",
        r"\boxed",
        r"\left(",
        r"\right)",
        "{",
        "}",
        "^",
        "_",
        "1",
        "9",
        "x",
        "+",
        r"\pi",
        "$",
        "=",
    ]
    words += [
        r"\int",
        r"\infty",
        ",",
        "(",
        "]",
        r"\text",
        r"\begin{pmatrix}",
        "&",
        "\\\\",
        "\0",
        "\ud800",
        "\u202e",
        "<think>",
    ]
    golds = [r"2\sqrt2", "(1,2)", r"\{1,2\}", "x+1", "7", r"\frac{\pi}{3}", r"\begin{pmatrix}1\\2\end{pmatrix}"]
    makers = [
        lambda: "".join(rng.choices(words, k=rng.randint(1, 60))),
        lambda: "".join(chr(rng.randint(0, 0x10FFFF)) for _ in range(50)),
        lambda: r"\sqrt{" * (k := rng.randint(1, 400)) + "2" + "}" * k,
        lambda: "(" * (k := rng.randint(1, 300)) + "1" + ")" * k,
        lambda: f"{rng.randint(2, 99)}^{{{rng.randint(2, 10 ** rng.randint(1, 4))}}}",
        lambda: rng.choice("1x9\\{") * rng.randint(1, 1900),
    ]
    rows = [
        (Task(id=str(i), prompt="?", answer=rng.choice(golds)), rf"\boxed{{{rng.choice(makers)()}}}") for i in range(n)
    ]
    for i in range(0, n, 200):  # towers of powers, and a megabyte of text
        rows[i] = (rows[i][0], rf"\boxed{{{rng.choice(ENDLESS)}}}")
        rows[i + 1] = (rows[i][0], rng.choice(["x", "{", r"\boxed{", "\\frac", "answer is ", "$"]) * 200_000)
    return rows


def family() -> tuple[int, int]:
    """Processes below this one, and the bytes that they hold."""
    parents, sizes = {}, {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            parents[int(name)], sizes[int(name)] = int(stat[1]), int(stat[21]) * os.sysconf("SC_PAGESIZE")
        except OSError:
            continue
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return len(ours) - 1, sum(sizes[pid] for pid in ours)


async def attack() -> None:
    """10,000 hostile answers; processes and memory after each thousand."""
    rows = hostile(10_000, seed=0)
    begin, counts = time.perf_counter(), dict[str, int]()
    with pool(cpu_seconds=1.0) as verifiers:
        for start in range(0, len(rows), 1000):
            verdicts, _, _ = await score(verifiers, rows[start : start + 1000], at_once=64)
            for verdict in verdicts:
                kind = verdict.error or ("right" if verdict.correct else "wrong")
                counts[kind] = counts.get(kind, 0) + 1
            processes, held = family()
            print(
                f"hostile: {start + 1000}: {processes} processes, {held >> 20} MiB, {time.perf_counter() - begin:.0f} s"
            )
        print(f"hostile: {counts}, {verifiers.stats()}", flush=True)
    await asyncio.sleep(0.5)
    print(f"hostile: after close {family()[0]} processes, {time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    parts = {"agree": agree, "speed": speed, "hang": hang, "hostile": attack}
    for wanted in sys.argv[1:] or parts:
        asyncio.run(parts[wanted]())
