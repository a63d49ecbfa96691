"""`rlvr eval MODEL_OR_RUN_OR_RECIPE`: unbiased pass@k with intervals."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from rlvr.cli.view import make_console

if TYPE_CHECKING:
    from rlvr.evaluate.run import EvalResult
    from rlvr.recipe import Recipe, Source

_SHARED = ("seed", "model", "data", "prompt", "resources", "limits")  # keys of an SFT recipe that serve here


def command(
    target: Annotated[str, typer.Argument(metavar="MODEL_OR_RUN_OR_RECIPE", help="Whose weights to evaluate.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. verifier=exact")] = None,
    data: Annotated[str | None, typer.Option(help="NAME[,NAME]; default: the recipe's data.eval.")] = None,
    n: Annotated[int | None, typer.Option("-n", "--n", min=1, help="Samples a task (evaluate.n).")] = None,
    k: Annotated[str | None, typer.Option("-k", "--k", help="1,8: which pass@k (evaluate.k).")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="evaluate.temperature.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="evaluate.max_tokens.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many tasks (evaluate.tasks).")] = None,
    out: Annotated[Path | None, typer.Option(help="Result file; default: eval.json, in the run's folder.")] = None,
) -> None:
    """Unbiased pass@k with 95 % intervals, of a model folder or Hub name, a run, or a recipe's model."""
    options = {
        "evaluate.n": n,
        "evaluate.k": f"[{k}]" if k is not None else None,
        "evaluate.temperature": temperature,
        "evaluate.max_tokens": max_tokens,
        "sampling.max_tokens": max_tokens,
        "evaluate.tasks": limit,
    }
    names = [name.strip() for name in data.split(",") if name.strip()] if data else []
    given = [f"{key}={value}" for key, value in options.items() if value is not None] + list(overrides or [])
    project = Path.cwd()
    recipe, folder = resolve(target, names=names, overrides=given, project=project)
    console, started = make_console(), time.perf_counter()
    asked = ", ".join(source.name for source in recipe.data.eval)
    console.print(Text(f"{recipe.model.path} on {asked}: {recipe.evaluate.n} samples a task"), soft_wrap=True)
    results = asyncio.run(measure(recipe, project=project))
    file = out or folder / "eval.json"
    file.write_text(json.dumps(outcome(recipe, results, wall=time.perf_counter() - started), indent=1) + "\n")
    console.print(table(results))
    console.print(Text(f"written to {file}"), soft_wrap=True)


def resolve(target: str, *, names: Sequence[str], overrides: Sequence[str], project: Path) -> tuple[Recipe, Path]:
    """The recipe that says all about the evaluation, and the folder that its result belongs to.

    `target` is a recipe file, a model folder, a run, the name of a recipe, or else a Hub name, tried in this
    order. A dataset that the recipe names keeps the options it has there. Raises ConfigError.
    """
    from rlvr import check, config
    from rlvr.errors import ConfigError
    from rlvr.recipe import Recipe, Source

    file, first, folder = _place(target, names=names, project=project)
    if config.tree_of(file, project=project) is Recipe:
        resolved = config.load(file, overrides=[*first, *overrides], project=project)
    else:
        resolved = _from_sft(file, overrides=[*first, *overrides], project=project)
    check.refuse(replace(resolved, recipe=_without_trainers(resolved.recipe)), project=project)
    known = {source.name: source for source in (*resolved.recipe.data.train, *resolved.recipe.data.eval)}
    sources: list[Source] = [known.get(name) or Source(name=name) for name in names]
    sources = sources or list(resolved.recipe.data.eval)
    if not sources:
        raise ConfigError(f"eval: {target} names no dataset in `data.eval`. Give one: --data NAME[,NAME]")
    data = resolved.recipe.data.model_copy(update={"eval": tuple(sources)})
    resources = resolved.recipe.resources.model_copy(update={"colocate": False})
    return resolved.recipe.model_copy(update={"data": data, "resources": resources}), folder


def _without_trainers(recipe: Recipe) -> Recipe:
    """As `check` is to see it: an evaluation takes the samplers' devices alone."""
    resources = recipe.resources
    alone = resources.model_copy(update={"trainers": 1, "colocate": resources.device == "gpu"})
    return recipe.model_copy(update={"resources": alone, "max_lag": 0})


def _place(target: str, *, names: Sequence[str], project: Path) -> tuple[str, list[str], Path]:
    """The recipe file to read, the overrides that put the weights in, and the folder of the result."""
    from rlvr import catalog
    from rlvr.errors import ConfigError
    from rlvr.models import resolve_model
    from rlvr.track.run_dir import ROOT, RunDir

    path = project / Path(target).expanduser()
    if path.is_file():
        return str(path), [], project
    if not (path / "config.json").is_file():
        run = next((r for r in map(RunDir, (path, project / ROOT / target)) if r.recipe.exists()), None)
        if run is not None:
            weights = resolve_model(str(run.path), project=project, key="eval")
            return str(run.recipe), [f"model.path={json.dumps(weights)}"], run.path
        if target.removeprefix("recipes/").removesuffix(".yaml") in catalog.names("recipes", project=project):
            return target, [], project
    if not names:
        raise ConfigError(f"eval: {target} is a model, which names no dataset. Give one: --data NAME[,NAME]")
    weights = resolve_model(target, project=project, key="eval")
    return "base", [f"model.path={json.dumps(weights)}", f"data.train={json.dumps([{'name': names[0]}])}"], project


def _from_sft(file: str, *, overrides: Sequence[str], project: Path) -> Any:
    """An evaluation with the model, data and prompt of an SFT recipe."""
    from rlvr import config
    from rlvr.recipe import SftRecipe

    keys = config.load(file, tree=SftRecipe, project=project).recipe.model_dump(mode="json", include=set(_SHARED))
    kept = [f"{key}={json.dumps(value)}" for key, value in keys.items()]
    return config.load("base", overrides=[*kept, *overrides], project=project)


async def measure(recipe: Recipe, *, project: Path) -> list[EvalResult]:
    """Read the data, start the samplers, evaluate every dataset of `data.eval`."""
    from rlvr.engines import sampler_only
    from rlvr.evaluate.run import evaluate
    from rlvr.models import load_tokenizer, resolve_model
    from rlvr.prompting import Prompter
    from rlvr.run_data import bad_rows, eval_tasks
    from rlvr.types import Sampling
    from rlvr.verify.pool import VerifierPool, verifier_specs

    model, asked, limits = recipe.model, recipe.evaluate, recipe.limits
    path = resolve_model(str(model.path), project=project)
    tokenizer = load_tokenizer(path, revision=model.revision, trust_remote_code=model.trust_remote_code)
    prompter = Prompter(tokenizer, recipe.prompt)
    sets = {name: tasks[: asked.tasks] for name, tasks in eval_tasks(recipe.data, project=project).items()}
    tasks = [task for members in sets.values() for task in members]
    most = asked.max_tokens or recipe.sampling.max_tokens
    sampling = Sampling(temperature=asked.temperature, top_p=asked.top_p, max_tokens=most, stop=recipe.sampling.stop)
    longest = prompter.check(tasks)
    with VerifierPool(
        verifier_specs(recipe.verifier, tasks, project=project),
        processes=recipe.resources.verifiers,
        cpu_seconds=limits.verify_cpu,
        wall_seconds=limits.verify_wall,
    ) as verifiers:
        if bad := bad_rows(verifiers, tasks, drop=recipe.data.on_bad_rows == "drop"):
            make_console().print(Text(f"{len(bad)} rows are left out, as their answers cannot be used"))
            sets = {name: [t for t in rows if id(t) not in bad] for name, rows in sets.items()}
        async with sampler_only(
            model_path=path,
            dtype=model.dtype,
            max_len=longest + most,
            seed=recipe.seed,
            resources=recipe.resources,
            limits=limits,
            overrides=recipe.vllm,
            trust_remote_code=model.trust_remote_code,
            revision=model.revision,
        ) as sampler:
            return [
                await evaluate(
                    members, dataset=name, sampler=sampler, verifiers=verifiers, encoder=prompter,
                    sampling=sampling, n=asked.n, ks=asked.k, seed=recipe.seed, limit=limits.group,
                )
                for name, members in sets.items()
            ]  # fmt: skip


def outcome(recipe: Recipe, results: Sequence[EvalResult], *, wall: float) -> dict[str, Any]:
    """What eval.json holds: how it was asked, every dataset's line, every task's counts."""
    return {
        "model": recipe.model.path,
        "seed": recipe.seed,
        "evaluate": recipe.evaluate.model_dump(mode="json"),
        "max_tokens": recipe.evaluate.max_tokens or recipe.sampling.max_tokens,
        "verifier": recipe.verifier.model_dump(mode="json"),
        "prompt": recipe.prompt.model_dump(mode="json"),
        "interval": "95 %, percentile bootstrap over questions (Wilson where all are alike)",
        "datasets": [_line(result) for result in results],
        "details": {result.dataset: result.details() for result in results},
        "time/wall_s": round(wall, 1),
    }


def _line(result: EvalResult) -> dict[str, Any]:
    line = result.record(0)
    del line["step"]
    return line


def table(results: Sequence[EvalResult]) -> Table:
    """A column a dataset."""
    lines = [_line(result) for result in results]
    out = Table(box=None, pad_edge=False, header_style="bold")
    out.add_column("", no_wrap=True)
    for line in lines:
        out.add_column(Text(line["dataset"]), justify="right", no_wrap=True)
    for name in dict.fromkeys(name for result in results for name in result.scores):
        out.add_row(name, *(_interval(line.get(name)) for line in lines))
    out.add_row("tasks x samples", *(f"{line['tasks']} x {line['n']}" for line in lines))
    out.add_row("tasks solved", *(str(line["solved"]) for line in lines))
    out.add_row("verifier errors", *(str(line["errors"]) for line in lines))
    out.add_row("truncated", *(f"{line['truncated']:.1%}" for line in lines))
    out.add_row("distinct answers a task", *(f"{line['distinct']:.2f}" for line in lines))
    out.add_row("tokens a response", *(f"{line['length_mean']:.1f}" for line in lines))
    return out


def _interval(score: Mapping[str, float] | None) -> str:
    return "-" if score is None else f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
