"""Everything that can be known about a recipe without an engine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlvr import check
from rlvr.config import Resolved
from rlvr.errors import ConfigError
from rlvr.recipe import Recipe, SftRecipe

GOOD: dict[str, Any] = {
    "model": {"path": "org/name"},
    "data": {"train": [{"name": "gsm8k"}]},
    "verifier": {"name": "exact"},
}


def told(project: Path, *, machine: bool = False, **changes: Any) -> list[str]:
    """ "level key: message" of every problem of the good recipe with some keys changed."""
    found = check.problems(Recipe.model_validate(GOOD | changes), project=project, machine=machine)
    return [f"{p.level} {p.key}: {p.message}" for p in found]


def test_a_good_recipe_has_no_problem(tmp_path: Path) -> None:
    assert told(tmp_path) == []


CASES: list[tuple[dict[str, Any], list[str]]] = [
    (
        {"group": 1, "keep": "informative"},
        [
            "error keep: got 'informative' with group: 1: one response is never both right and wrong; use keep: all",
            "error advantage: 'grpo' compares the responses of a group: it needs group >= 2, got 1",
        ],
    ),
    (
        {"minibatches": 9, "prompts": 8},
        ["error minibatches: got 9, with prompts: 8; a batch is split by whole groups, so at most one update a prompt"],
    ),
    (
        {"steps": 2, "minibatches": 2, "optimizer": {"warmup": 5}},
        ["warning optimizer.warmup: 5 updates, but the whole run has 4"],
    ),
    ({"objective": {"constant": 5}}, ["warning objective.constant: has no effect without reduction: constant"]),
    (
        {"objective": {"reduction": "constant", "constant": 512}},
        ["warning objective.constant: L = 512, not sampling.max_tokens = 1024: the gradient is 2 times as large"],
    ),
    (
        {"overlong": {"kind": "shape", "buffer": 1024}},
        [
            "error overlong.buffer: got 1024, with sampling.max_tokens: 1024; "
            "the soft penalty needs room before it begins"
        ],
    ),
    (
        {"sampling": {"top_p": 0.9, "top_k": 20}},
        [
            "warning sampling.top_p: got 0.9; below 1 it biases the importance ratio: "
            "the trainer's log-probs are of the whole distribution",
            "warning sampling.top_k: got 20; other than -1 (off) it biases the importance ratio: "
            "the trainer's log-probs are of the whole distribution",
        ],
    ),
    ({"sampling": {"top_k": -3}}, ["error sampling.top_k: got -3, expected a number > 0, or -1 for off"]),
    (
        {"evaluate": {"n": 4, "k": [1, 8, 16]}},
        ["error evaluate.k: got k = 8, 16, with evaluate.n: 4; pass@k needs at least k samples a task"],
    ),
    (
        {"evaluate": {"every": 5}},
        ["error evaluate.every: there is nothing to evaluate on: set data.eval, or evaluate.every: 0"],
    ),
    (
        {"max_lag": 1, "resources": {"colocate": True}},
        ["error max_lag: got 1; colocated engines take turns, so there is no lag: max_lag: 0"],
    ),
    (
        {"resources": {"device": "cpu", "colocate": True, "tensor_parallel": 2}},
        [
            "error resources.colocate: shares a GPU between engines; with device: cpu there is none",
            "error resources.tensor_parallel: got 2; with device: cpu use more samplers",
        ],
    ),
    (
        {"model": {}},
        ["error model: names no model: set `model: NAME` (Hub or folder) or `model.scratch`"],
    ),
    (
        {"model": {"path": "a/b", "scratch": {"max_len": 4096}}},
        ["error model: both `path` and `scratch` are set: keep one (`model.scratch=null` or `model.path=null`)"],
    ),
    (
        {"model": {"scratch": {"max_len": 4096, "width": 130, "kv_heads": 3}}},
        [
            "error model.scratch.heads: width 130 does not divide by 4 heads",
            "error model.scratch.kv_heads: 4 heads do not divide by 3",
        ],
    ),
    (
        {"model": {"scratch": {"max_len": 512}}},
        ["error sampling.max_tokens: prompt.max_tokens + sampling.max_tokens = 2048, over the model's context of 512"],
    ),
    ({"model": {"path": "./none"}}, ["error model.path: no such folder: ./none (a name on the Hub reads `org/name`)"]),
    ({"model": {"path": "a/b/c"}}, ["error model.path: no such folder: a/b/c (a name on the Hub reads `org/name`)"]),
    (
        {"model": {"path": "runs/base/export"}},
        [
            "warning model.path: runs/base/export does not exist yet: "
            "it is written by an earlier run (`rlvr sft`, `rlvr train`)"
        ],
    ),
    ({"checkpoint": {"start_from": "old"}}, ["error checkpoint.start_from: no such run: old"]),
    ({"run": "a/b"}, ["error run: got 'a/b', expected a plain folder name: the run is written to runs/NAME"]),
    (
        {"prompt": {"template": "Solve it."}},
        ["error prompt.template: got 'Solve it.', expected a text with {prompt} in it"],
    ),
    ({"data": {"train": [], "path": None}}, ["error data.train: names no dataset"]),
    (
        {"data": {"train": [{"name": "gsm8k"}, {"name": "gsm8k"}], "path": "none.jsonl"}},
        [
            "error data.path: stands for the only training source, but there are 2",
            "error data.path: no such file: none.jsonl",
        ],
    ),
    (
        {
            "data": {
                "train": [{"name": "gsm8k", "pass_rate": {"file": "none.json", "min": 0.9, "max": 0.1}}],
                "eval": [{"name": "aime24", "pass_rate": {"file": "pyproject.toml"}}],
            }
        },
        [
            "error data.train.0.pass_rate.file: no such file: none.json; `rlvr eval` writes it",
            "error data.train.0.pass_rate.min: got 0.9, over max: 0.1",
            "error data.eval.0.pass_rate: picks training tasks; an evaluation set is taken as it is",
            "error data.eval.0.pass_rate.file: no such file: pyproject.toml; `rlvr eval` writes it",
        ],
    ),
    (
        {"deepspeed": {"optimizer": {}, "zero_optimization": {"stage": 4}}},
        [
            "error deepspeed.optimizer: cannot be set here, it is decided by optimizer; remove the line",
            "error deepspeed.zero_optimization.stage: got 4, expected 0, 1, 2 or 3",
        ],
    ),
    (
        {"vllm": {"dtype": "half", "max_num_seqs": 8}},
        ["error vllm.dtype: cannot be set here, it is decided by model.dtype; remove the line"],
    ),
]


@pytest.mark.parametrize(
    ("changes", "expected"), CASES, ids=[next(iter(c)) + f"-{i}" for i, (c, _) in enumerate(CASES)]
)
def test_each_problem(tmp_path: Path, changes: dict[str, Any], expected: list[str]) -> None:
    assert told(tmp_path, **changes) == expected


def test_all_at_once(tmp_path: Path) -> None:
    merged = {k: v for changes, _ in CASES for k, v in changes.items() if k not in ("model", "data")}
    levels = [line.split()[1] for line in told(tmp_path, **merged)]
    assert {"advantage:", "keep:", "run:", "evaluate.every:", "deepspeed.optimizer:", "vllm.dtype:"} <= set(levels)


def test_what_only_the_cpu_forbids(tmp_path: Path) -> None:
    block = {"vllm": {"enable_chunked_prefill": True}}
    assert told(tmp_path, **block) == []
    on_cpu = told(tmp_path, **block, resources={"device": "cpu"})
    assert on_cpu[0].startswith("error vllm.enable_chunked_prefill: cannot be set here")


def test_plugins_and_their_options(tmp_path: Path) -> None:
    found = told(
        tmp_path,
        verifier={"name": "template", "lowre": True},
        data={"train": [{"name": "gsm9k"}], "eval": [{"name": "jsonl", "promt": "q"}]},
        explore=[{"kind": "clip_cov", "ration": 1}],
    )
    assert [line.partition(":")[0] for line in found] == [
        "error data.train.0", "error data.eval.0.promt", "error verifier.lowre", "error explore.0.ration",
    ]  # fmt: skip
    assert "unknown dataset 'gsm9k', did you mean 'gsm8k'?" in found[0]
    assert found[1].endswith(": unknown key, did you mean 'prompt'?")
    assert found[2].endswith(": unknown key, did you mean 'lower'?")
    assert found[3].endswith("unknown key, did you mean 'ratio'?")


def test_a_barrier_add_on_allows_no_lag(tmp_path: Path) -> None:
    text = "from rlvr.explore.base import AddOn\nclass B(AddOn):\n    kind = 'block'\n    barrier = True\n"
    (tmp_path / "b.py").write_text(text)
    explore = [{"kind": "b.py:B"}]
    assert told(tmp_path, explore=explore) == []
    assert told(tmp_path, explore=explore, max_lag=2) == [
        "error max_lag: got 2; the add-on block needs the whole block at once: max_lag: 0"
    ]


def test_threads_take_turns_without_lag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check.os, "cpu_count", lambda: 2)
    resources = {"device": "cpu", "threads": 2}
    assert told(tmp_path, resources=resources) == []
    assert told(tmp_path, resources=resources, max_lag=1) == [
        "warning resources.threads: 4 threads at work at once, on 2 cores"
    ]


def test_devices() -> None:
    side = Recipe.model_validate(GOOD | {"resources": {"trainers": 4, "samplers": 2, "tensor_parallel": 3}}).resources
    assert check.devices(side) == 10
    assert check.devices(side.model_copy(update={"colocate": True})) == 6
    assert check.devices(side, samplers=0) == 4


def test_gpus_are_counted_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: 2))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    resources = {"trainers": 2, "samplers": 1}
    assert told(tmp_path, resources=resources) == []
    assert told(tmp_path, resources=resources, machine=True) == [
        "error resources: 3 GPUs needed, this machine has 2; "
        "set resources.address to a Ray cluster, or lower trainers or samplers"
    ]
    assert told(tmp_path, resources=resources | {"address": "auto"}, machine=True) == []


QWEN3_0_6B = {
    "vocab_size": 151936, "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "head_dim": 128,
    "num_key_value_heads": 8, "intermediate_size": 3072, "tie_word_embeddings": True, "max_position_embeddings": 1500,
}  # fmt: skip


def test_sizes_from_a_local_model(tmp_path: Path) -> None:
    (tmp_path / "runs/base/export").mkdir(parents=True)
    (tmp_path / "runs/base/export/config.json").write_text(json.dumps(QWEN3_0_6B))
    recipe = Recipe.model_validate(GOOD | {"model": {"path": "runs/base"}})
    # 155,582,464 of the embedding + 28 x (2 x 1024 x 128 x 24 + 3 x 1024 x 3072); the model card says 0.6B (0.44B + it)
    assert check.parameters(recipe.model, project=tmp_path) == 595_984_384
    assert told(tmp_path, model={"path": "runs/base"})[0].endswith("= 2048, over the model's context of 1500")
    line = check.memory(recipe, project=tmp_path)
    assert line is not None
    assert line.startswith("596.0M parameters; a trainer holds 8.88 GiB, a sampler 1.11 GiB")  # 16 and 2 bytes each


@pytest.mark.parametrize(
    ("block", "size"),
    [
        ({}, 16.0),
        ({"zero_optimization": {"stage": 1}}, 2 + 2 + 12 / 4),
        ({"zero_optimization": {"stage": 2}}, 2 + 14 / 4),
        ({"zero_optimization": {"stage": 3}}, 16 / 4),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}, 4 / 4),
        ({"zero_optimization": 3}, 16.0),
    ],
)
def test_zero_splits_what_it_splits(block: dict[str, Any], size: float) -> None:
    recipe = Recipe.model_validate(GOOD | {"resources": {"trainers": 4}, "deepspeed": block})
    assert check.device_bytes(recipe, 1000) == (pytest.approx(1000 * size), 2000)


def test_sft_recipes_are_checked_too(tmp_path: Path) -> None:
    sft = SftRecipe.model_validate({"model": {}, "data": {"train": [{"name": "gsm9k"}]}, "run": ".."})
    assert [p.key for p in check.problems(sft, project=tmp_path)] == ["run", "model", "data.train.0"]


def test_refuse_says_where_and_returns_the_warnings(tmp_path: Path) -> None:
    def resolved(**changes: Any) -> Resolved[Recipe]:
        recipe = Recipe.model_validate(GOOD | changes)
        return Resolved(recipe, {"run": "a.yaml:3", "sampling.top_p": "command line"}, (), tmp_path)

    warned = check.refuse(resolved(sampling={"top_p": 0.5}), project=tmp_path, machine=False)
    assert [p.key for p in warned] == ["sampling.top_p"]
    with pytest.raises(ConfigError) as caught:
        check.refuse(resolved(run="a/b", sampling={"top_p": 0.5}), project=tmp_path, machine=False)
    assert caught.value.problems == [
        "a.yaml:3: run: got 'a/b', expected a plain folder name: the run is written to runs/NAME"
    ]
