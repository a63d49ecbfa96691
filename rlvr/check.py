"""Everything about a recipe that can be known without an engine: what cannot work, and what surprises."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlvr import catalog, methods
from rlvr.check_reference import kl_problems, reference_problems
from rlvr.compatibility import conflicts
from rlvr.config import DEFAULT, Resolved, source_of
from rlvr.engine.vllm_args import CPU_OWNED, OWNED
from rlvr.errors import ConfigError
from rlvr.explore.base import AddOn
from rlvr.plugins import load_plugin, machine_problem
from rlvr.problems import Problem, error, warning
from rlvr.recipe import Data, Model, Prompt, Recipe, Resources, Scratch, SftRecipe, Source
from rlvr.verify.specs import spec_problems, told
from rlvr.words import shorten

DEEPSPEED_OWNED = {
    "train_batch_size": "prompts, group and minibatches",
    "train_micro_batch_size_per_gpu": "resources.token_budget",
    "gradient_accumulation_steps": "resources.token_budget",
    "gradient_clipping": "optimizer.max_norm",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "optimizer": "optimizer",
    "scheduler": "optimizer.schedule and optimizer.warmup",
}
GIB = 1024**3


def problems(recipe: Recipe | SftRecipe, *, project: Path, machine: bool = False) -> list[Problem]:
    """All that is wrong with a recipe. `machine` also compares it with the GPUs of this machine (loads torch)."""
    found = [
        *_run_name(recipe.run),
        *_model(recipe.model, project=project),
        *_data(recipe.data, project=project),
        *_prompt(recipe.prompt),
        *_deepspeed(recipe.deepspeed),
        *_wandb(recipe.track.wandb),
        *_start_from(recipe.checkpoint.start_from, project=project),
    ]
    if isinstance(recipe, Recipe):
        found += [
            *_batch(recipe),
            *_objective(recipe),
            *_sampling(recipe),
            *_context(recipe, project=project),
            *_evaluate(recipe),
            *_plugins(recipe, project=project),
            *_vllm(recipe),
        ]
    training = isinstance(recipe, Recipe)
    samplers, lag = (recipe.resources.samplers, recipe.max_lag > 0) if training else (0, False)
    found += _placement(recipe.resources, samplers=samplers, lag=lag, machine=machine)
    return found


def refuse(resolved: Resolved[Any], *, project: Path, machine: bool = True) -> list[Problem]:
    """The warnings of a recipe; raises ConfigError with every error and where it was written."""
    found = problems(resolved.recipe, project=project, machine=machine)
    errors = [p for p in found if p.level == "error"]
    if errors:
        raise ConfigError([f"{place(p.key, resolved)}: {p.key}: {p.message}" for p in errors])
    return found


def place(key: str, resolved: Resolved[Any]) -> str:
    """File and line that a problem is about; the recipe's file where nothing was written for the key."""
    source = source_of(key, resolved.sources)
    return str(resolved.path) if source == DEFAULT else source


def devices(resources: Resources, *, samplers: int | None = None) -> int:
    """GPUs that a run takes: trainers and samplers side by side, or sharing when colocated."""
    sampling = (resources.samplers if samplers is None else samplers) * resources.tensor_parallel
    return max(resources.trainers, sampling) if resources.colocate else resources.trainers + sampling


# --- parts of both trees -----------------------------------------------------------------------------------


def _run_name(run: str) -> Iterator[Problem]:
    if not run or Path(run).name != run or run in (".", ".."):
        yield error("run", f"got {run!r}, expected a plain folder name: the run is written to runs/NAME")


def _local(path: str, *, project: Path) -> Path | None:
    """The folder that a model path means, or None where it is a name on the Hub (`org/name`)."""
    folder = project / Path(path).expanduser()
    looks_local = path.startswith((".", "/", "~", "runs/")) or path.count("/") != 1 or "\\" in path
    return folder if folder.is_dir() or (looks_local and "/" in path) or path.startswith((".", "~")) else None


def _model(model: Model, *, project: Path) -> Iterator[Problem]:
    if model.path is None and model.scratch is None:
        yield error("model", "names no model: set `model: NAME` (Hub or folder) or `model.scratch`")
    if model.path is not None and model.scratch is not None:
        yield error("model", "both `path` and `scratch` are set: keep one (`model.scratch=null` or `model.path=null`)")
    if model.scratch is not None and model.scratch.width % model.scratch.heads:
        yield error(
            "model.scratch.heads", f"width {model.scratch.width} does not divide by {model.scratch.heads} heads"
        )
    if model.scratch is not None and model.scratch.heads % model.scratch.kv_heads:
        yield error("model.scratch.kv_heads", f"{model.scratch.heads} heads do not divide by {model.scratch.kv_heads}")
    if model.path is not None:
        yield from _folder("model.path", model.path, project=project)


def _folder(key: str, path: str, *, project: Path) -> Iterator[Problem]:
    folder = _local(path, project=project)
    if folder is None or folder.is_dir():
        return
    if path.startswith("runs/"):
        yield warning(key, f"{path} does not exist yet: it is written by an earlier run (`rlvr sft`, `rlvr train`)")
    else:
        yield error(key, f"no such folder: {path} (a name on the Hub reads `org/name`)")


def _start_from(path: str | None, *, project: Path) -> Iterator[Problem]:
    if path is not None and not (project / path).is_dir():
        level = warning if path.startswith("runs/") else error
        yield level("checkpoint.start_from", f"no such run: {path}")


def _data(data: Data, *, project: Path) -> Iterator[Problem]:
    if not data.train:
        yield error("data.train", "names no dataset")
    if data.path is not None and len(data.train) != 1:
        yield error("data.path", f"stands for the only training source, but there are {len(data.train)}")
    if data.path is not None and not (project / Path(data.path).expanduser()).is_file():
        yield error("data.path", f"no such file: {data.path}")
    for split, sources in (("train", data.train), ("eval", data.eval)):
        for i, source in enumerate(sources):
            yield from _source(f"data.{split}.{i}", source, project=project)


def _source(key: str, source: Source, *, project: Path) -> Iterator[Problem]:
    yield from _plugin(key, "data", source, function="load", project=project)
    rule = source.pass_rate
    if rule is None:
        return
    if key.startswith("data.eval"):
        yield error(f"{key}.pass_rate", "picks training tasks; an evaluation set is taken as it is")
    if not (project / Path(rule.file).expanduser()).is_file():
        yield error(f"{key}.pass_rate.file", f"no such file: {rule.file}; `rlvr eval` writes it")
    if rule.min > rule.max:
        yield error(f"{key}.pass_rate.min", f"got {rule.min:g}, over max: {rule.max:g}")


def _plugin(key: str, folder: catalog.Folder, plugin: Source, *, function: str, project: Path) -> Iterator[Problem]:
    """Does the name exist, can the file be executed, and does it take these options?"""
    try:
        loaded = load_plugin(catalog.find(folder, plugin.name, project=project), plugin.options, function=function)
        if problem := machine_problem(loaded):
            yield warning(key, f"will be refused on this machine: {problem}")
    except ConfigError as wrong:
        yield from (error(*one) for one in told(key, plugin.name, wrong))


def _prompt(prompt: Prompt) -> Iterator[Problem]:
    if "{prompt}" not in prompt.template:
        yield error("prompt.template", f"got {prompt.template!r}, expected a text with {{prompt}} in it")


def _owned(block: str, given: Mapping[str, Any], owned: Mapping[str, str]) -> Iterator[Problem]:
    for key in given:
        if key in owned:
            yield error(f"{block}.{key}", f"cannot be set here, it is decided by {owned[key]}; remove the line")


def _deepspeed(block: Mapping[str, Any]) -> Iterator[Problem]:
    yield from _owned("deepspeed", block, DEEPSPEED_OWNED)
    stage = _mapping(block.get("zero_optimization")).get("stage", 0)
    if stage not in (0, 1, 2, 3):
        yield error("deepspeed.zero_optimization.stage", f"got {shorten(stage)}, expected 0, 1, 2 or 3")


def _wandb(name: str | None) -> Iterator[Problem]:
    if name is not None and importlib.util.find_spec("wandb") is None:
        yield error("track.wandb", "the package wandb is not installed: pip install wandb, or track.wandb=null")


# --- parts of a training run -------------------------------------------------------------------------------


def _batch(recipe: Recipe) -> Iterator[Problem]:
    if recipe.group == 1 and recipe.keep == "informative":
        yield error(
            "keep", "got 'informative' with group: 1: one response is never both right and wrong; use keep: all"
        )
    if recipe.minibatches > recipe.prompts:
        given = f"got {recipe.minibatches}, with prompts: {recipe.prompts}"
        yield error("minibatches", f"{given}; a batch is split by whole groups, so at most one update a prompt")
    updates = recipe.steps * recipe.minibatches * recipe.epochs
    if recipe.optimizer.warmup > updates:
        yield warning("optimizer.warmup", f"{recipe.optimizer.warmup} updates, but the whole run has {updates}")


def _objective(recipe: Recipe) -> Iterator[Problem]:
    objective, limit = recipe.objective, recipe.sampling.max_tokens
    if objective.constant is not None and objective.reduction != "constant":
        yield warning("objective.constant", "has no effect without reduction: constant")
    if objective.reduction == "constant" and objective.constant not in (None, limit):
        given = f"L = {objective.constant}, not sampling.max_tokens = {limit}"
        yield warning(
            "objective.constant", f"{given}: the gradient is {limit / (objective.constant or limit):.3g} times as large"
        )
    yield from kl_problems(recipe.kl)
    if recipe.overlong.kind == "shape" and recipe.overlong.buffer >= limit:
        given = f"got {recipe.overlong.buffer}, with sampling.max_tokens: {limit}"
        yield error("overlong.buffer", f"{given}; the soft penalty needs room before it begins")


def _sampling(recipe: Recipe) -> Iterator[Problem]:
    bias = "biases the importance ratio: the trainer's log-probs are of the whole distribution"
    if recipe.sampling.top_p < 1:
        yield warning("sampling.top_p", f"got {recipe.sampling.top_p:g}; below 1 it {bias}")
    if recipe.sampling.top_k > 0:
        yield warning("sampling.top_k", f"got {recipe.sampling.top_k}; other than -1 (off) it {bias}")
    elif recipe.sampling.top_k not in (0, -1):
        yield error("sampling.top_k", f"got {recipe.sampling.top_k}, expected a number > 0, or -1 for off")


def _context(recipe: Recipe, *, project: Path) -> Iterator[Problem]:
    needed = recipe.prompt.max_tokens + recipe.sampling.max_tokens
    sizes = f"prompt.max_tokens + sampling.max_tokens = {needed}"
    limit = context_length(recipe.model, project=project)
    if limit is not None and needed > limit:
        yield error("sampling.max_tokens", f"{sizes}, over the model's context of {limit}")


def _evaluate(recipe: Recipe) -> Iterator[Problem]:
    evaluate = recipe.evaluate
    over = [k for k in evaluate.k if k > evaluate.n]
    if over:
        given = f"got k = {', '.join(map(str, over))}, with evaluate.n: {evaluate.n}"
        yield error("evaluate.k", f"{given}; pass@k needs at least k samples a task")
    if evaluate.every and not recipe.data.eval:
        yield error("evaluate.every", "there is nothing to evaluate on: set data.eval, or evaluate.every: 0")


def _plugins(recipe: Recipe, *, project: Path) -> Iterator[Problem]:
    yield from (Problem(*one) for one in spec_problems(recipe.verifier, project=project))
    read, complaints = methods.read_methods(recipe, project=project)
    yield from (error(c.key, c.text) for c in complaints)
    yield from (Problem(level, key, text) for level, key, text in conflicts(recipe, read))
    yield from reference_problems(recipe, [hook for hook in (one.build() for one in read) if isinstance(hook, AddOn)])


def _vllm(recipe: Recipe) -> Iterator[Problem]:
    owned = OWNED | (CPU_OWNED if recipe.resources.device == "cpu" else {})
    yield from _owned("vllm", recipe.vllm, owned)
    if recipe.resources.colocate and recipe.max_lag:
        yield error("max_lag", f"got {recipe.max_lag}; colocated engines take turns, so there is no lag: max_lag: 0")


def _placement(resources: Resources, *, samplers: int, lag: bool, machine: bool) -> Iterator[Problem]:
    if resources.device == "cpu":
        yield from _placement_cpu(resources, samplers=samplers, lag=lag)
        return
    sizes = (resources.trainers, samplers, resources.tensor_parallel)
    if resources.colocate and sizes != (1, 1, 1):
        got = f"trainers: {sizes[0]}, samplers: {sizes[1]}, tensor_parallel: {sizes[2]}"
        yield error("resources.colocate", f"one trainer and one sampler share one GPU; got {got}")
    needed = devices(resources, samplers=samplers)
    if machine and resources.address is None and "RAY_ADDRESS" not in os.environ:
        import torch

        have = torch.cuda.device_count()
        if needed > have:
            total = f"{needed} GPUs needed, this machine has {have}"
            yield error("resources", f"{total}; set resources.address to a Ray cluster, or lower trainers or samplers")


def _placement_cpu(resources: Resources, *, samplers: int, lag: bool) -> Iterator[Problem]:
    if resources.colocate:
        yield error("resources.colocate", "shares a GPU between engines; with device: cpu there is none")
    if resources.tensor_parallel > 1:
        yield error("resources.tensor_parallel", f"got {resources.tensor_parallel}; with device: cpu use more samplers")
    busy = resources.trainers + samplers if lag else max(resources.trainers, samplers)  # without lag they take turns
    threads, cores = resources.threads * busy, os.cpu_count() or 1
    if threads > cores:
        yield warning("resources.threads", f"{threads} threads at work at once, on {cores} cores")


# --- sizes of a model --------------------------------------------------------------------------------------


def model_config(model: Model, *, project: Path) -> dict[str, Any] | None:
    """The model's `config.json`, where it lies in a local folder; a run of ours keeps it in `export/`."""
    folder = _local(model.path, project=project) if model.path is not None else None
    for place in (folder, folder / "export") if folder is not None else ():
        if (place / "config.json").is_file():
            return json.loads((place / "config.json").read_text(encoding="utf-8"))
    return None


def context_length(model: Model, *, project: Path) -> int | None:
    """Tokens that the model can hold, where that is known without the Hub."""
    if model.scratch is not None:
        return model.scratch.max_len
    config = model_config(model, project=project) or {}
    return config.get("max_position_embeddings")


def parameters(model: Model, *, project: Path) -> int | None:
    """Parameters of a decoder with gated MLP (Llama, Qwen), from its sizes, where they are known."""
    if model.scratch is not None:
        return _scratch_parameters(model.scratch)
    config = model_config(model, project=project) or {}
    keys = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    if any(key not in config for key in keys):
        return None
    vocab, width, layers, heads, mlp = (int(config[key]) for key in keys)
    head = config.get("head_dim") or width // heads
    kv = config.get("num_key_value_heads") or heads
    tied = bool(config.get("tie_word_embeddings", False))
    return vocab * width * (1 if tied else 2) + layers * (2 * width * head * (heads + kv) + 3 * width * mlp)


def _scratch_parameters(s: Scratch) -> int:
    attention = 2 * s.width * (s.width // s.heads) * (s.heads + s.kv_heads)
    return s.vocab * s.width * (1 if s.tied else 2) + s.layers * (attention + 3 * s.width * s.mlp)


def memory(recipe: Recipe | SftRecipe, *, project: Path) -> str | None:
    """One line: GiB of weights and optimizer state per device, without activations and caches."""
    count = parameters(recipe.model, project=project)
    if count is None:
        return None
    trainer, sampler = device_bytes(recipe, count)
    line = f"{count / 1e6:,.1f}M parameters; a trainer holds {trainer / GIB:.2f} GiB"
    if isinstance(recipe, Recipe):
        line += f", a sampler {sampler / GIB:.2f} GiB"
    return f"{line} (before activations and caches)"


def device_bytes(recipe: Recipe | SftRecipe, count: int) -> tuple[float, float]:
    """Bytes per trainer rank and per sampler device: AdamW with fp32 master weights, split as ZeRO splits them."""
    size = 2 if recipe.model.dtype == "bfloat16" else 4
    zero = _mapping(recipe.deepspeed.get("zero_optimization"))
    stage, ranks = zero.get("stage", 0), recipe.resources.trainers
    offloaded = _mapping(zero.get("offload_optimizer")).get("device", "none") != "none"
    state = 0 if offloaded else 12 if size == 2 else 8
    parts: Sequence[tuple[int, bool]] = ((size, stage >= 3), (size, stage >= 2), (state, stage >= 1))
    per_parameter = sum(part / (ranks if split else 1) for part, split in parts)
    if isinstance(recipe, Recipe) and recipe.kl.coef:
        per_parameter += size / (ranks if stage >= 3 else 1)
    return count * per_parameter, count * size / recipe.resources.tensor_parallel


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
