"""`rlvr eval --compare A B`: is B better than A, on which benchmark, and on which questions?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from rlvr.errors import DataError
from rlvr.evaluate.interval import Estimate, difference
from rlvr.evaluate.pass_at_k import pass_at_k
from rlvr.evaluate.report import FORMAT
from rlvr.track.run_dir import ROOT

Document = Mapping[str, Any]
SHOWN = 5  # questions named for each side


@dataclass(frozen=True)
class Change:
    """One score of one dataset, on the questions that both have: A, B, and B - A with its interval."""

    dataset: str
    score: str
    questions: int
    a: float
    b: float
    change: Estimate
    a_better: int  # questions
    b_better: int

    @property
    def winner(self) -> str:
        """A or B where the interval of the difference leaves out 0, else "neither"."""
        return "B" if self.change.low > 0 else "A" if self.change.high < 0 else "neither"


def read_document(name: str, *, project: Path) -> Document:
    """The eval.json that a file, a folder or the name of a run means. Raises DataError."""
    given = project / Path(name).expanduser()
    places = [given] if given.is_file() else [given / "eval.json", project / ROOT / name / "eval.json"]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        looked = " and ".join(map(str, places))
        raise DataError(f"--compare {name}: no evaluation there (looked for {looked}). Run `rlvr eval {name}` first.")
    try:
        made = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error}). Evaluate again.") from None
    if not isinstance(made, dict) or made.get("format") != FORMAT:
        raise DataError(f"{file}: not an evaluation of format {FORMAT}. Evaluate again with this version.")
    return made


def compare(a: Document, b: Document, *, ks: Sequence[int] | None, seed: int) -> list[Change]:
    """Every pass@k that both can give (the k of both, or `ks`), and maj@n where both had the same n.

    Raises DataError when they share no dataset, no question or no k.
    """
    found: list[Change] = []
    sets_a, sets_b = ({one["dataset"]: one for one in made["datasets"]} for made in (a, b))
    for name in (name for name in sets_a if name in sets_b):
        rows_a, rows_b = ({row["id"]: row for row in made["details"][name]} for made in (a, b))
        pairs = [(rows_a[i], rows_b[i]) for i in rows_a if i in rows_b]
        wanted = ks or sorted({1, *sets_a[name]["k"]} & {1, *sets_b[name]["k"]})
        found += [made for k in wanted if (made := _passes(name, pairs, k, seed=seed)) is not None]
        votes = str(sets_a[name]["n"])
        if sets_a[name]["n"] == sets_b[name]["n"]:
            voting = [(x, y) for x, y in pairs if votes in x["majority"] and votes in y["majority"]]
            scores = [tuple(row["majority"][votes] for row in pair) for pair in voting]
            if scores:
                found.append(_change(name, f"maj@{votes}", np.array(scores, dtype=np.float64), seed=seed))
    if not found:
        raise DataError(
            f"nothing to compare: A has {', '.join(sets_a) or 'no dataset'}, B has {', '.join(sets_b) or 'none'}; "
            "both need a dataset with the same question ids, and k samples of a question for a pass@k."
        )
    return found


def _passes(name: str, pairs: Sequence[tuple[Document, Document]], k: int, *, seed: int) -> Change | None:
    enough = [pair for pair in pairs if all(row["valid"] >= k for row in pair)]
    if not enough:
        return None
    sides = [[pair[side] for pair in enough] for side in (0, 1)]
    scores = [pass_at_k([r["valid"] for r in rows], [r["correct"] for r in rows], k) for rows in sides]
    return _change(name, f"pass@{k}", np.stack(scores, axis=1), seed=seed)


def _change(name: str, score: str, pairs: np.ndarray, *, seed: int) -> Change:
    a, b = pairs.T
    return Change(
        dataset=name,
        score=score,
        questions=len(pairs),
        a=float(a.mean()),
        b=float(b.mean()),
        change=difference(b, a, seed=seed),
        a_better=int((a > b).sum()),
        b_better=int((b > a).sum()),
    )


def unlike(a: Document, b: Document) -> Iterator[str]:
    """What differs between the two evaluations besides the model: then the difference is not the model's alone."""
    for key in ("verifier", "prompt"):
        if a[key] != b[key]:
            yield f"warning: {key} differs: A {a[key]}, B {b[key]}"
    sets = {one["dataset"]: one for one in b["datasets"]}
    for one in (one for one in a["datasets"] if one["dataset"] in sets):
        other, name = sets[one["dataset"]], one["dataset"]
        for key in ("temperature", "top_p", "max_tokens", "stop"):
            if one["sampling"][key] != other["sampling"][key]:
                yield f"warning: {name}: {key} differs: A {one['sampling'][key]}, B {other['sampling'][key]}"
        if one["verifier_versions"] != other["verifier_versions"]:
            versions = f"A {one['verifier_versions']}, B {other['verifier_versions']}"
            yield f"warning: {name}: the verifier's version differs: {versions}"
        ids = [{row["id"] for row in made["details"][name]} for made in (a, b)]
        if ids[0] != ids[1]:
            yield f"note: {name}: {len(ids[0] & ids[1])} shared questions; A has {len(ids[0])}, B {len(ids[1])}"


def widest(a: Document, b: Document, dataset: str) -> list[tuple[float, str, str, str]]:
    """(B - A, id, "c/n" of A, "c/n" of B) of the questions that differ, those that A is better on first."""
    rows_a, rows_b = ({row["id"]: row for row in made["details"][dataset]} for made in (a, b))
    found = []
    for i in (i for i in rows_a if i in rows_b and rows_a[i]["valid"] and rows_b[i]["valid"]):
        x, y = rows_a[i], rows_b[i]
        gap = y["correct"] / y["valid"] - x["correct"] / x["valid"]
        if gap:
            found.append((gap, i, f"{x['correct']}/{x['valid']}", f"{y['correct']}/{y['valid']}"))
    return sorted(found)


def table(changes: Sequence[Change]) -> Table:
    """Both scores, the difference with its interval, and who wins."""
    out = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("dataset", "score", "A", "B", "B - A, 95 % over questions", "wins", "questions A : equal : B"):
        out.add_column(heading, justify="left" if heading in ("dataset", "score", "wins") else "right", no_wrap=True)
    for one in changes:
        change = f"{one.change.value:+.3f} [{one.change.low:+.3f}, {one.change.high:+.3f}]"
        equal = one.questions - one.a_better - one.b_better
        colour = {"A": "red", "B": "green"}.get(one.winner, "dim")
        out.add_row(
            Text(one.dataset), one.score, f"{one.a:.3f}", f"{one.b:.3f}", change, Text(one.winner, style=colour),
            f"{one.a_better} : {equal} : {one.b_better}",
        )  # fmt: skip
    return out


def question_table(gaps: Sequence[tuple[float, str, str, str]], dataset: str) -> Table:
    """The questions that differ most, for each side."""
    out = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in (f"{dataset}: differs most on", "A right", "B right", "better"):
        out.add_column(Text(heading), justify="left" if heading.endswith(("on", "better")) else "right")
    most_b = [gap for gap in gaps[::-1] if gap[0] > 0][:SHOWN]
    most_a = [gap for gap in gaps if gap[0] < 0][:SHOWN]
    for gap, i, x, y in (*most_b, *most_a):
        out.add_row(Text(i), x, y, "B" if gap > 0 else "A")
    return out
