"""What a run reads before an engine starts: model folder, tokenizer, tasks, verifiers, and their checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlvr import catalog
from rlvr.errors import ConfigError, DataError
from rlvr.models import load_tokenizer, resolve_model
from rlvr.prompting import Prompter
from rlvr.recipe import Data, Recipe
from rlvr.tasks import TaskStream, load_tasks
from rlvr.types import Task
from rlvr.verify.pool import VerifierPool, verifier_specs

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
    train, held_out = train_tasks(recipe.data, project=project), eval_tasks(recipe, project=project)
    tasks = [t for some in (*train, *held_out.values()) for t in some]
    longest = prompter.check(tasks)
    specs = verifier_specs(recipe.verifier, tasks, project=project)
    pool = VerifierPool(
        specs,
        processes=recipe.resources.verifiers,
        cpu_seconds=recipe.limits.verify_cpu,
        wall_seconds=recipe.limits.verify_wall,
    )
    if problems := pool.check_answers(tasks):
        pool.close()
        raise DataError("\n".join(some(problems)))
    weights = [source.weight for source in recipe.data.train]
    return RunData(
        model_path=model_path,
        prompter=prompter,
        stream=TaskStream(train, weights, seed=recipe.seed),
        eval_sets=held_out,
        verifiers=pool,
        digests=plugin_digests(recipe, specs=specs, project=project),
        longest_prompt=longest,
        warnings=overlap((t for rows in train for t in rows), held_out),
    )


def overlap(train: Iterable[Task], held_out: Mapping[str, Sequence[Task]]) -> list[str]:
    """A warning for every evaluation set that holds prompts of the training set."""
    seen = {str(task.prompt) for task in train}
    counts = {name: sum(str(task.prompt) in seen for task in tasks) for name, tasks in held_out.items()}
    return [
        f"warning: data.eval: {n} of {len(held_out[name])} prompts of {name!r} are trained on: its scores say little"
        for name, n in counts.items()
        if n
    ]


def train_tasks(data: Data, *, project: Path) -> list[list[Task]]:
    """The tasks of every training source."""
    path = data.path if len(data.train) == 1 else None
    return [load_tasks(source, split="train", path=path, project=project) for source in data.train]


def eval_tasks(recipe: Recipe, *, project: Path) -> dict[str, list[Task]]:
    """The held-out tasks by dataset ("name#2" where one is listed twice), at most `evaluate.tasks` of each."""
    data, tasks = recipe.data, []
    for source in data.eval:  # a card that trains from a local file knows where its held-out rows lie
        same = len(data.train) == 1 and source.name == data.train[0].name and "path" not in source.options
        tasks.append(load_tasks(source, split="eval", path=data.path if same else None, project=project))
    return dict(zip(eval_names(recipe.data), (rows[: recipe.evaluate.tasks] for rows in tasks), strict=True))


def eval_names(data: Data) -> list[str]:
    """Unique names of the evaluation sets, in the recipe's order."""
    names: list[str] = []
    for source in data.eval:
        times = sum(name.split("#")[0] == source.name for name in names)
        names.append(source.name if times == 0 else f"{source.name}#{times + 1}")
    return names


def plugin_digests(recipe: Recipe, *, specs: Mapping[str, object], project: Path) -> dict[str, str]:
    """sha256 of every catalogue file that the run uses, by path."""
    found: list[catalog.Found] = [
        catalog.find("data", source.name, project=project) for source in (*recipe.data.train, *recipe.data.eval)
    ]
    found += [catalog.find("rewards", name, project=project) for name in specs]
    found += [catalog.addon_found(spec.kind, project=project) for spec in recipe.explore]
    return {f"{f.name} ({f.path.name})": f.digest for f in found}


def some(problems: Iterable[str]) -> list[str]:
    """The first few problems and how many more there are."""
    rows = list(problems)
    rest = len(rows) - SHOWN
    return rows[:SHOWN] + ([f"... and {rest} more"] if rest > 0 else [])
