"""An evaluation as a document: what `eval.json` holds (schema in docs/evaluation.md) and the tables in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from rlvr.evaluate.interval import PerQuestion, estimate, over_samples
from rlvr.evaluate.measure import Measured
from rlvr.evaluate.pass_at_k import TAUS, g_pass_at_k, mg_pass_at_k, pass_at_k
from rlvr.evaluate.run import EvalResult, TaskResult, majorities

FORMAT = 1
LEVELS = (
    "level",
    "subject",
    "subfield",
    "type",
    "problem_type",
    "numbers",
)  # keys of a task's meta that a table is made by
INTERVALS = {
    "low, high": "95 % over questions: studentised bootstrap (Wilson's where all questions are alike)",
    "over_samples": "95 % over samples of the same questions: delete-one jackknife; null where 4k > n, and for maj@k",
}
Score = dict[str, Any]


def document(measured: Sequence[Measured], *, about: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What eval.json holds; `about` is model, verifier, prompt and seed."""
    return {
        "format": FORMAT,
        **about,
        "intervals": INTERVALS,
        "datasets": [dataset(one, seed=seed) for one in measured],
        "details": {one.result.dataset: [details(row, one.result) for row in one.result.tasks] for one in measured},
    }


def dataset(measured: Measured, *, seed: int) -> dict[str, Any]:
    """All that is said of one dataset."""
    result, sampling = measured.result, measured.sampling
    asked = {"temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_tokens}
    shown = (
        {"wanted_max_tokens": measured.setting.max_tokens} if sampling.max_tokens < measured.setting.max_tokens else {}
    )
    versions = {row.verdict.version for task in result.tasks for row in task.scored if row.verdict.version}
    return {
        "dataset": result.dataset,
        "tasks": len(result.tasks),
        "n": result.n,
        "k": list(result.ks),
        "sampling": asked | shown | {"stop": list(sampling.stop), "source": measured.setting.source},
        "generated": measured.generated,
        "verifier_versions": sorted(versions),
        "scores": scores(result, seed=seed),
        "curve": curve(result, seed=seed),
        "short": result.short,
        **result.counts(),
        "levels": {key: rows for key in LEVELS if (rows := levels(result, key, seed=seed))},
    }


def scores(result: EvalResult, *, seed: int) -> dict[str, Score]:
    """avg@n, pass@k, maj@k, G-Pass@k (by threshold, and its mean) for every k that was asked for."""
    found: dict[str, Score] = {f"avg@{result.n}": _score(pass_at_k, result.tasks, 1, seed=seed)}
    several = [k for k in result.ks if k > 1]
    found |= {f"pass@{k}": _score(pass_at_k, result.tasks, k, seed=seed) for k in result.ks}
    for k in dict.fromkeys((*several, result.n)):
        votes = majorities(result.tasks, k)
        if votes is not None:
            found[f"maj@{k}"] = asdict(estimate(votes, seed=seed)) | {"over_samples": None}
    for k in several:
        for tau in TAUS:
            found[f"g-pass@{k}[{tau:g}]"] = _score(partial(g_pass_at_k, tau=tau), result.tasks, k, seed=seed)
        found[f"mg-pass@{k}"] = _score(mg_pass_at_k, result.tasks, k, seed=seed)
    return found


def curve(result: EvalResult, *, seed: int) -> list[Score]:
    """pass@k at powers of two, and at n, all over the same tasks, so that it never falls with k.

    The tasks are those with n/2 or more valid samples, and k goes as far as all of them have.
    """
    rows = [row for row in result.tasks if 2 * row.valid >= result.n]
    most = min((row.valid for row in rows), default=0)
    ks = [1 << i for i in range(most.bit_length()) if 1 << i < result.n] + [result.n] * (most == result.n)
    return [{"k": k} | (_score(pass_at_k, rows, k, seed=seed) or {}) for k in ks]


def levels(result: EvalResult, key: str, *, seed: int) -> list[Score]:
    """avg@n and the largest pass@k by a key of the tasks' meta; nothing where the tasks do not differ in it."""
    groups: dict[str | int, list[TaskResult]] = {}
    for row in result.tasks:
        if (value := row.task.meta.get(key)) is not None:
            groups.setdefault(level(value), []).append(row)
    if len(groups) < 2:
        return []
    most = max(result.ks)
    return [
        {"name": str(name), "tasks": len(rows)}
        | {f"avg@{result.n}": _score(pass_at_k, rows, 1, seed=seed)}
        | ({f"pass@{most}": _score(pass_at_k, rows, most, seed=seed)} if most > 1 else {})
        for name, rows in sorted(groups.items(), key=lambda item: (isinstance(item[0], str), item[0]))
    ]


def level(value: Any) -> str | int:
    """What a task's meta says, as a group's name: a list (of a problem's fields) as one text."""
    return value if isinstance(value, int) else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _score(of: PerQuestion, rows: Sequence[TaskResult], k: int, *, seed: int) -> Score | None:
    """The estimate over the tasks with at least k valid samples; None where there is none."""
    counts = np.array([(row.valid, row.correct) for row in rows if row.valid >= k], dtype=np.int64).reshape(-1, 2)
    if not len(counts):
        return None
    valid, correct = counts.T
    noise = over_samples(of, valid, correct, k)
    made = asdict(estimate(np.clip(of(valid, correct, k), 0.0, 1.0), seed=seed))
    return made | {"over_samples": None if noise is None else list(noise)}


def details(row: TaskResult, result: EvalResult) -> dict[str, Any]:
    """One task's counts; `majority` is maj@k by k."""
    votes = {str(k): vote for k in dict.fromkeys((*result.ks, result.n)) if (vote := row.majority(k)) is not None}
    return {
        "id": row.id, "valid": row.valid, "correct": row.correct, "errors": dict(row.errors),
        "truncated": row.truncated, "unparsed": row.unparsed, "distinct": row.distinct, "length": row.length,
        "majority": votes, **{key: level(row.task.meta[key]) for key in LEVELS if row.task.meta.get(key) is not None},
    }  # fmt: skip


def table(made: Mapping[str, Any]) -> Table:
    """A column a dataset; G-Pass@k at thresholds 0.5 and 1 alone (all are in eval.json)."""
    sets: Sequence[Mapping[str, Any]] = made["datasets"]
    out = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    out.add_column("", no_wrap=True)
    for one in sets:
        out.add_column(Text(one["dataset"]), justify="right", no_wrap=True)
    names = sorted({name for one in sets for name in one["scores"]}, key=_place)
    for name in (n for n in names if not n.endswith(("[0.25]", "[0.75]"))):
        out.add_row(Text(name), *(interval(one["scores"].get(name)) for one in sets))
    rows: tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...] = (
        ("tasks x samples", lambda one: f"{one['tasks']} x {one['n']}"),
        ("tasks solved", lambda one: f"{one['solved']} of {one['tasks']}"),
        ("verifier errors", lambda one: ", ".join(f"{k} {n}" for k, n in one.get("error_kinds", {}).items()) or "0"),
        ("tasks left out of a pass@k", lambda one: ", ".join(f"{k}: {n}" for k, n in one["short"].items()) or "0"),
        ("no answer found", lambda one: f"{one['unparsed']:.1%}"),
        ("truncated", lambda one: f"{one['truncated']:.1%}"),
        ("distinct answers a task", lambda one: f"{one['distinct']:.2f}"),
        ("tokens a response", lambda one: f"{one['length_mean']:.1f}"),
        (
            "temperature, top-p, tokens",
            lambda one: "{temperature:g}, {top_p:g}, {max_tokens}".format(**one["sampling"]),
        ),
    )
    for label, value in rows:
        if label.startswith("tasks left") and not any(one["short"] for one in sets):
            continue
        out.add_row(label, *(Text(value(one)) for one in sets))
    return out


def _place(name: str) -> tuple[int, int, str]:
    """Kind by kind, each by k."""
    kind, k = name.partition("[")[0].split("@")
    return ("avg", "pass", "maj", "g-pass", "mg-pass").index(kind), int(k), name


def level_table(one: Mapping[str, Any], key: str) -> Table:
    """A row a level."""
    rows = one["levels"][key]
    out = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    out.add_column(Text(f"{one['dataset']}: {key}"))
    out.add_column("tasks", justify="right")
    names = [name for name in rows[0] if name not in ("name", "tasks")]
    for name in names:
        out.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        out.add_row(Text(row["name"]), str(row["tasks"]), *(interval(row[name]) for name in names))
    return out


def interval(score: Mapping[str, Any] | None) -> Text:
    """`0.473 [0.325, 0.622] ±0.017`: value, interval over questions, half of the one over samples."""
    if score is None:
        return Text("-")
    noise = score["over_samples"]
    around = f" ±{(noise[1] - noise[0]) / 2:.3f}" if noise else "       "
    return Text.assemble(
        (f"{score['value']:.3f}", "bold"), f" [{score['low']:.3f}, {score['high']:.3f}]", (around, "dim")
    )


LEGEND = "[low, high]: 95 % over questions; ±: 95 % over samples of the same questions (where 4k <= n)"
