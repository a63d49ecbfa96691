"""Recipes from YAML: what is read, what each mistake is told, and where every value came from."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr import config
from rlvr.errors import ConfigError
from rlvr.recipe import Recipe, SftRecipe

MINIMAL = "model: org/name\ndata: {train: gsm8k}\n"


def write(folder: Path, text: str, name: str = "r.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text), encoding="utf-8")
    return path


def problems(path: Path, *overrides: str, tree: type = Recipe) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.load(path, overrides=overrides, tree=tree, project=path.parent)
    return caught.value.problems


def test_shorthands_are_written_out(tmp_path: Path) -> None:
    text = """\
        model: org/name
        verifier: math
        data: {train: [gsm8k, {name: jsonl, weight: 2, prompt: question}], eval: gsm8k}
        explore: [clip_cov, {kind: entropy_bonus, coef: 1e-3}]
    """
    recipe = config.load(write(tmp_path, text), project=tmp_path).recipe
    assert recipe.model.path == "org/name"
    assert recipe.verifier.name == "math"
    assert [s.name for s in recipe.data.train] == ["gsm8k", "jsonl"]
    assert recipe.data.train[1].weight == 2.0 and recipe.data.train[1].options == {"prompt": "question"}
    assert [s.name for s in recipe.data.eval] == ["gsm8k"]
    assert recipe.explore[0].kind == "clip_cov" and recipe.explore[1].options == {"coef": 0.001}


def test_numbers_are_read_as_yaml_1_2_reads_them(tmp_path: Path) -> None:
    text = (
        MINIMAL + "run: '1e-6'\nseed: 1_000\noptimizer: {lr: 1e-6, eps: 1E-8, weight_decay: .5}\nprompt: {system: no}\n"
    )
    recipe = config.load(write(tmp_path, text), project=tmp_path).recipe
    assert (recipe.optimizer.lr, recipe.optimizer.eps, recipe.optimizer.weight_decay) == (1e-6, 1e-8, 0.5)
    assert (recipe.run, recipe.seed, recipe.prompt.system) == ("1e-6", 1000, "no")


def test_extends_merges_mappings_and_replaces_lists(tmp_path: Path) -> None:
    write(tmp_path, "optimizer: {lr: 1e-4, warmup: 3}\nsampling: {stop: [a, b]}\nkl: {coef: 0.1}\n", "base.yaml")
    write(tmp_path, "extends: ../base.yaml\noptimizer: {lr: 1e-5}\nsampling: {stop: [c]}\n", "sub/mid.yaml")
    top = write(tmp_path, "extends: mid.yaml\nmodel: org/name\ndata: {train: gsm8k}\n", "sub/top.yaml")
    resolved = config.load(top, project=tmp_path)
    recipe = resolved.recipe
    assert (recipe.optimizer.lr, recipe.optimizer.warmup) == (1e-5, 3)
    assert recipe.sampling.stop == ("c",) and recipe.kl.coef == 0.1
    assert [f.name for f in resolved.files] == ["top.yaml", "mid.yaml", "base.yaml"]
    assert resolved.sources["optimizer.lr"] == "sub/mid.yaml:2"
    assert resolved.sources["optimizer.warmup"] == "base.yaml:1"
    assert resolved.sources["model.path"] == "sub/top.yaml:2"
    assert resolved.sources["steps"] == "default"


def test_extends_is_relative_to_the_file_not_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "seed: 1\n", "base.yaml")
    write(tmp_path, "seed: 2\n", "sub/base.yaml")
    top = write(tmp_path, MINIMAL + "extends: base.yaml\n", "sub/top.yaml")
    monkeypatch.chdir(tmp_path)
    assert config.load(top).recipe.seed == 2


def test_a_project_may_extend_a_shipped_recipe_by_name(tmp_path: Path) -> None:
    top = write(tmp_path, "extends: quickstart\nrun: mine\n")
    recipe = config.load(top, project=tmp_path).recipe
    assert recipe.run == "mine" and recipe.data.train[0].name == "arithmetic"


def test_a_recipe_is_found_by_name_in_the_project_first(tmp_path: Path) -> None:
    assert config.load("quickstart", project=tmp_path).recipe.run == "quickstart"
    write(tmp_path, MINIMAL + "run: own\n", "recipes/quickstart.yaml")
    assert config.load("quickstart", project=tmp_path).recipe.run == "own"
    assert config.locate("grpo/tiny_gsm8k_cpu", project=tmp_path).name == "tiny_gsm8k_cpu.yaml"


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "explore: [{kind: clip_cov, ratio: 0.1}, entropy_bonus]\n")
    given = [
        "optimizer.lr=1e-5",
        "data.train=jsonl",
        "explore.0.ratio=2e-4",
        "model.scratch=null",
        "prompt.system=a: b",
    ]
    resolved = config.load(path, overrides=given, project=tmp_path)
    recipe = resolved.recipe
    assert recipe.optimizer.lr == 1e-5
    assert [s.name for s in recipe.data.train] == ["jsonl"]
    assert recipe.explore[0].options == {"ratio": 2e-4} and recipe.explore[1].kind == "entropy_bonus"
    assert recipe.prompt.system == "a: b"
    assert {k for k, v in resolved.sources.items() if v == "command line"} == {
        "optimizer.lr", "data.train.0.name", "explore.0.ratio", "model.scratch", "prompt.system",
    }  # fmt: skip
    assert config.load(path, overrides=["explore=[]"], project=tmp_path).recipe.explore == ()


def test_another_verifier_leaves_the_options_of_the_first(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "verifier: {name: math, precision: 3}\n")
    same = config.load(path, overrides=["verifier.precision=4"], project=tmp_path).recipe.verifier
    other = config.load(path, overrides=["verifier=exact"], project=tmp_path).recipe.verifier
    assert same.options == {"precision": 4}
    assert (other.name, other.options) == ("exact", {})


def test_another_kind_leaves_the_options_of_the_old_one(tmp_path: Path) -> None:
    old = "objective: {low: 0.1, reduction: constant, correction: {kind: tis, cap: 3}}\nadvantage: {eps: 1e-3}\n"
    write(tmp_path, MINIMAL + old, "base.yaml")
    path = write(tmp_path, "extends: base.yaml\nobjective: {high: 0.3}\nadvantage: dr_grpo\n")
    same = config.load(path, project=tmp_path).recipe
    assert same.objective.options == {"low": 0.1, "high": 0.3} and same.objective.reduction == "constant"
    assert same.objective.correction.options == {"cap": 3}
    assert (same.advantage.kind, same.advantage.options) == ("dr_grpo", {})
    words = ["objective=other.py:Mine", "objective.correction=none", "advantage.kind=grpo"]
    other = config.load(path, overrides=words, project=tmp_path).recipe
    assert (other.objective.kind, other.objective.options) == ("other.py:Mine", {})
    assert other.objective.reduction is None and other.objective.correction.options == {}
    kept = config.load(path, overrides=words[:1], project=tmp_path).recipe.objective.correction
    assert (kept.kind, kept.options) == ("tis", {"cap": 3})


def test_every_problem_at_once_with_its_place(tmp_path: Path) -> None:
    write(tmp_path, "optimizer:\n  lr: fast\n", "base.yaml")
    text = """\
        extends: base.yaml
        model: org/name
        data: {train: gsm8k}
        stepz: 5
        group: 0
        objective: {reduction: tokn}
        resources: {colocate: 1, trainers: 2.5}
        betas: [1]
    """
    assert problems(write(tmp_path, text), "kl.coef=-1", "optimizer.betas=[0.9]") == [
        "r.yaml:5: group: got 0, expected a number > 0",
        "r.yaml:6: objective.reduction: got 'tokn', expected 'token', 'sequence', 'constant' or 'sum', "
        "did you mean 'token'?",
        "command line: kl.coef: got -1, expected a number >= 0",
        "base.yaml:2: optimizer.lr: got 'fast', expected a number",
        "command line: optimizer.betas.1: missing, and it has no default",
        "r.yaml:7: resources.trainers: got 2.5, expected a whole number",
        "r.yaml:7: resources.colocate: got 1, expected true or false",
        "r.yaml:4: stepz: unknown key, did you mean 'steps'?",
        "r.yaml:8: betas: unknown key, did you mean 'optimizer.betas'?",
    ]


def test_unknown_keys_name_the_closest_key_of_their_own_level(tmp_path: Path) -> None:
    text = "model: {scratch: {layerz: 3}}\ndata: {train: gsm8k}\ncheckpoint: {evry: 3}\nkl: {path: a}\n"
    assert problems(write(tmp_path, text)) == [
        "r.yaml:1: model.scratch.layerz: unknown key, did you mean 'layers'?",
        "r.yaml:4: kl.path: unknown key, did you mean 'model.path'?",
        "r.yaml:3: checkpoint.evry: unknown key, did you mean 'every'?",
    ]
    far = problems(write(tmp_path, MINIMAL + "kl: {zzz: 1}\n"))
    assert far == ["r.yaml:3: kl.zzz: unknown key; the keys here are coef, estimator, where, gradient, importance"]


def test_wrong_types(tmp_path: Path) -> None:
    two = problems(write(tmp_path, MINIMAL + "objective: [gspo, clip]\n"))
    assert two == ['r.yaml:3: objective: got ["gspo", "clip"], expected one mapping (key: value) and not a list']
    text = MINIMAL + "run: 7\nsteps: true\nkl: 3\nvllm: [1]\nsampling: {stop: a, temperature: .inf}\ndeepspeed:\n"
    assert problems(write(tmp_path, text)) == [
        "r.yaml:3: run: got 7, expected text (put it in quotes)",
        "r.yaml:4: steps: got true, expected a whole number",
        "r.yaml:7: sampling.temperature: got Infinity, expected a finite number",
        "r.yaml:7: sampling.stop: got 'a', expected a list",
        "r.yaml:5: kl: got 3, expected a mapping (key: value)",
        "r.yaml:6: vllm: got [1], expected a mapping (key: value)",
        "r.yaml:8: deepspeed: got null, expected a mapping (key: value)",
    ]


def test_missing_keys(tmp_path: Path) -> None:
    assert problems(write(tmp_path, "data: {eval: gsm8k}\nexplore: [{ratio: 1}]\n")) == [
        "r.yaml: model: missing, and it has no default",
        "r.yaml:1: data.train: missing, and it has no default",
        "r.yaml:2: explore.0.kind: missing, and it has no default",
    ]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "known in recipes/: " in problems(tmp_path / "absent.yaml")[0]
    with pytest.raises(
        ConfigError, match="quikstart: no such file, and unknown recipe 'quikstart', did you mean 'quick"
    ):
        config.load("quikstart", project=tmp_path)
    broken = problems(write(tmp_path, "model: [a\ndata: {\n"))
    assert broken[0].startswith("r.yaml: not valid YAML: ") and "line 2" in broken[0]
    assert problems(write(tmp_path, "- a\n"))[0] == 'r.yaml: got ["a"], expected a mapping (key: value)'
    write(tmp_path, "", "latin.yaml").write_bytes(b"run: \xff\n")
    assert problems(tmp_path / "latin.yaml")[0].startswith("latin.yaml: cannot be read: 'utf-8' codec")
    assert problems(write(tmp_path, MINIMAL + "seed: 1\nseed: 2\n")) == ["r.yaml:1: seed: written twice in one mapping"]


def test_extends_that_cannot_work(tmp_path: Path) -> None:
    a = write(tmp_path, MINIMAL + "extends: b.yaml\n", "a.yaml")
    write(tmp_path, "extends: a.yaml\n", "b.yaml")
    assert problems(a) == ["a.yaml: `extends` goes round in a circle: a.yaml -> b.yaml -> a.yaml"]
    lost = problems(write(tmp_path, MINIMAL + "extends: nowhere.yaml\n"))[0]
    assert lost.startswith("r.yaml:3: extends: nowhere.yaml: no such file, and unknown recipe 'nowhere'")
    listed = problems(write(tmp_path, MINIMAL + "extends: [a, b]\n"))[0]
    assert listed == 'r.yaml:3: extends: got ["a", "b"], expected one file name'


def test_overrides_that_cannot_work(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "explore: [clip_cov]\n")
    found = problems(
        path, "steps", "=3", "a..b=1", "prompt.template={prompt} x", "explore.4.ratio=1", "optimizer.lrr=1"
    )
    assert found[:3] == [
        f"command line: got {t!r}, expected key=value or key.sub=value" for t in ("steps", "=3", "a..b=1")
    ]
    assert found[3].startswith("command line: prompt.template: '{prompt} x' is not valid YAML")
    assert found[3].endswith("quote text that is not plain: prompt.template='\"...\"'")
    assert found[4] == "command line: explore.4: there are 1 entries, counted from 0"
    assert found[5] == "command line: optimizer.lrr: unknown key, did you mean 'lr'?"


def test_the_tree_is_told_by_the_key_rows(tmp_path: Path) -> None:
    sft = write(tmp_path, MINIMAL + "rows: 8\n", "sft.yaml")
    inherits = write(tmp_path, "extends: sft.yaml\n", "more.yaml")
    rl = write(tmp_path, MINIMAL, "rl.yaml")
    assert [config.tree_of(p, project=tmp_path) for p in (sft, inherits, rl)] == [SftRecipe, SftRecipe, Recipe]
    assert config.load(sft, tree=SftRecipe, project=tmp_path).recipe.rows == 8
    assert problems(sft) == ["sft.yaml: `rows` makes this an SFT recipe: run it with `rlvr sft`"]


def test_a_place_is_found_for_keys_that_were_not_written() -> None:
    sources = {"kl.coef": "default", "kl.where": "a.yaml:3", "group": "a.yaml:1", "explore": "default"}
    assert config.source_of("kl.coef", sources) == "a.yaml:3"
    assert config.source_of("kl", sources) == "a.yaml:3"
    assert config.source_of("explore.0.kind", sources) == "default"
    assert config.source_of("group.nothing", sources) == "a.yaml:1"


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufeff\u2028\u2029\x85\ufffe\uffff"))
FLOATS = st.floats(min_value=1e-300, max_value=1e300, exclude_min=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=30, deadline=None)
@given(
    lr=FLOATS,
    seed=st.integers(-(10**12), 10**12),
    system=TEXT | st.none(),
    block=st.dictionaries(TEXT, JSON, max_size=3),
)
def test_dump_and_load_round_trip(
    tmp_path_factory: pytest.TempPathFactory, lr: float, seed: int, system: str | None, block: dict[str, object]
) -> None:
    data = {"model": {"path": "a/b"}, "data": {"train": [{"name": "gsm8k", "text": system}]}, "seed": seed}
    recipe = Recipe.model_validate(data | {"optimizer": {"lr": lr}, "prompt": {"system": system}, "vllm": block})
    folder = tmp_path_factory.mktemp("dump")
    path = folder / "recipe.yaml"
    path.write_text(config.dump(recipe), encoding="utf-8")
    assert config.load(path, project=folder).recipe == recipe


@settings(max_examples=60, deadline=None)
@given(lr=FLOATS, steps=st.integers(1, 10**9), stop=st.lists(TEXT, max_size=3), tensorboard=st.booleans())
def test_overrides_round_trip(
    tmp_path_factory: pytest.TempPathFactory, lr: float, steps: int, stop: list[str], tensorboard: bool
) -> None:
    folder = tmp_path_factory.mktemp("override")
    path = write(folder, MINIMAL)
    given = [f"optimizer.lr={lr!r}", f"steps={steps}", f"track.tensorboard={str(tensorboard).lower()}"]
    recipe = config.load(
        path, overrides=[*given, f"sampling.stop={json.dumps(stop, ensure_ascii=False)}"], project=folder
    ).recipe
    assert (recipe.optimizer.lr, recipe.steps, list(recipe.sampling.stop)) == (lr, steps, stop)
    assert recipe.track.tensorboard is tensorboard
