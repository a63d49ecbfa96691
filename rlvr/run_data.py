"""What a run reads before an engine starts: model folder, tokenizer, tasks, verifiers, and their checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlvr import catalog, methods
from rlvr.errors import ConfigError, DataError
from rlvr.evaluate.cache import DIGESTS, model_digest
from rlvr.explore.base import AddOn
from rlvr.models import load_tokenizer, resolve_model
from rlvr.overlap import without_overlap
from rlvr.prompting import Prompter
from rlvr.recipe import Data, Recipe
from rlvr.reference import uses_reference
from rlvr.resume import REFERENCE_MODEL
from rlvr.rows import Dataset
from rlvr.tasks import TaskStream, counts, load_tasks
from rlvr.types import Task
from rlvr.verify.pool import VerifierPool
from rlvr.verify.specs import VerifierSpec, verifier_specs

SHOWN = 10  # problems of one kind that are printed


@dataclass(frozen=True)
class RunData:
    """Tasks and verifiers of a run, checked: every prompt fits and every gold answer can be parsed."""

    model_path: str
    prompter: Prompter
    stream: TaskStream
    eval_sets: Mapping[str, Sequence[Task]]
    verifiers: VerifierPool
    digests: Mapping[str, str]
    longest_prompt: int
    warnings: Sequence[str] = ()


def read_data(recipe: Recipe, *, project: Path) -> RunData:
    """Read and check everything that needs no engine. The caller closes `verifiers`.

    Raises ConfigError or DataError with all problems that were found.
    """
    start = recipe.checkpoint.start_from
    if recipe.model.path is None and start is None:
        raise ConfigError("model.path: names no model (`model: NAME`); `scratch` models are built by `rlvr sft`")
    model_path = resolve_model(
        start or str(recipe.model.path), project=project, key="checkpoint.start_from" if start else "model.path"
    )
    model = recipe.model
    tokenizer = load_tokenizer(model_path, revision=model.revision, trust_remote_code=model.trust_remote_code)
    prompter = Prompter(tokenizer, recipe.prompt)
    train, held_out, notes = read_sets(recipe.data, project=project, limit=recipe.evaluate.tasks)
    tasks = [t for some in (*train, *held_out.values()) for t in some]
    longest = prompter.check(tasks)
    specs = verifier_specs(recipe.verifier, tasks, project=project)
    pool = VerifierPool(
        specs,
        processes=recipe.resources.verifiers,
        cpu_seconds=recipe.limits.verify_cpu,
        wall_seconds=recipe.limits.verify_wall,
    )
    try:
        bad = bad_rows(pool, tasks, drop=recipe.data.on_bad_rows == "drop")
    except DataError:
        pool.close()
        raise
    if bad:
        notes.append(f"{len(bad)} rows are left out, as their answers cannot be used (data.on_bad_rows)")
        train = [Dataset(t for t in rows if id(t) not in bad) for rows in train]
        held_out = {name: [t for t in rows if id(t) not in bad] for name, rows in held_out.items()}
    weights = [source.weight for source in recipe.data.train]
    return RunData(
        model_path=model_path,
        prompter=prompter,
        stream=TaskStream(train, weights, seed=recipe.seed),
        eval_sets=held_out,
        verifiers=pool,
        digests=plugin_digests(recipe, specs=specs, project=project)
        | reference_digest(recipe, model_path=model_path, project=project),
        longest_prompt=longest,
        warnings=notes,
    )


def read_sets(
    data: Data, *, project: Path, limit: int | None = None
) -> tuple[list[Dataset], dict[str, list[Task]], list[str]]:
    """The tasks of every training source without those of the evaluation sets, the evaluation sets, what to tell.

    `limit` is `evaluate.tasks`; the overlap is looked for in the whole sets.
    """
    held_out = eval_tasks(data, project=project)
    path = data.path if len(data.train) == 1 else None
    train = [load_tasks(source, split="train", path=path, project=project) for source in data.train]
    train = without_overlap(train, held_out)
    notes = [note for tasks in (*train, *held_out.values()) for note in tasks.notes]
    named = [*zip((source.name for source in data.train), train, strict=True), *held_out.items()]
    notes += [f"dataset {name!r}: left out {counts(tasks.dropped)}" for name, tasks in named if tasks.dropped]
    return train, {name: tasks[:limit] for name, tasks in held_out.items()}, notes


def bad_rows(pool: VerifierPool, tasks: Sequence[Task], *, drop: bool) -> set[int]:
    """`id()` of the tasks whose gold answer cannot be used. Raises DataError naming them, unless `drop`."""
    bad = pool.check_answers(tasks)
    if bad and not drop:
        raise DataError("\n".join([*some(text for _, text in bad), "`data.on_bad_rows: drop` leaves such rows out"]))
    return {id(task) for task, _ in bad}


def eval_tasks(data: Data, *, project: Path) -> dict[str, Dataset]:
    """The held-out tasks by dataset ("name#2" where one is listed twice)."""
    sets: list[Dataset] = []
    for source in data.eval:  # a card that trains from a local file knows where its held-out rows lie
        same = len(data.train) == 1 and source.name == data.train[0].name and "path" not in source.options
        sets.append(load_tasks(source, split="eval", path=data.path if same else None, project=project))
    return dict(zip(eval_names(data), sets, strict=True))


def eval_names(data: Data) -> list[str]:
    """Unique names of the evaluation sets, in the recipe's order."""
    names: list[str] = []
    for source in data.eval:
        times = sum(name.split("#")[0] == source.name for name in names)
        names.append(source.name if times == 0 else f"{source.name}#{times + 1}")
    return names


def plugin_digests(recipe: Recipe, *, specs: Mapping[str, VerifierSpec], project: Path) -> dict[str, str]:
    """sha256 of every catalogue file that the run uses, by path."""
    found: list[catalog.Found] = [
        catalog.find("data", source.name, project=project) for source in (*recipe.data.train, *recipe.data.eval)
    ]
    found += [part.found for spec in specs.values() for _, part in spec.walk("verifier")]
    found += [methods.find(family, spec.kind, project=project) for _, family, spec in methods.places(recipe)]
    return {f"{f.name} ({f.path.name})": f.digest for f in found}


def reference_digest(recipe: Recipe, *, model_path: str, project: Path) -> dict[str, str]:
    """What pi_ref is, where there is one that never moves: one that moves is in the checkpoint itself."""
    read, _ = methods.read_methods(recipe, project=project)
    hooks = [hook for hook in (one.build() for one in read) if isinstance(hook, AddOn)]
    if recipe.reference.update != "never" or not uses_reference(recipe.kl, hooks):
        return {}
    return {REFERENCE_MODEL: model_digest(model_path, revision=recipe.model.revision, memory=project / DIGESTS)}


def some(problems: Iterable[str]) -> list[str]:
    """The first few problems and how many more there are."""
    rows = list(problems)
    rest = len(rows) - SHOWN
    return rows[:SHOWN] + ([f"... and {rest} more"] if rest > 0 else [])
