"""One rank of the DeepSpeed tests: `python -m tests.engines.deepspeed_ranks RANK WORLD PORT FOLDER SECTION...`.

A process runs many checks (importing the engine costs more than all of them) and writes what it saw to
`FOLDER/<world>-<rank>.json`; the weights that tests compare are in the same file, as lists.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

VOCAB, STEPS = 128, 3
ZERO3 = {"stage": 3, "stage3_param_persistence_threshold": 0}  # gather everything: the tests' models are small
STAGES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "zero0": ("float32", {"stage": 0}),
    "zero1": ("float32", {"stage": 1}),
    "zero2": ("float32", {"stage": 2}),
    "zero3": ("float32", ZERO3),
    "zero2_offload": ("float32", {"stage": 2, "offload_optimizer": {"device": "cpu"}}),
    "zero3_offload": ("float32", {**ZERO3, "offload_optimizer": {"device": "cpu"}}),
    "bf16_zero0": ("bfloat16", {"stage": 0}),
    "bf16_zero2": ("bfloat16", {"stage": 2}),
    "bf16_zero3": ("bfloat16", ZERO3),
    "zero3_kept": ("float32", {"stage": 3}),  # small parameters stay whole between uses
}
Out = dict[str, Any]


def spec(place: Mapping[str, Any], stage: str, **changes: Any) -> Any:
    """A `PolicySpec` of one of the STAGES."""
    from rlvr.engine.deepspeed_policy import PolicySpec
    from rlvr.recipe import Optimizer

    dtype, zero = STAGES[stage]
    own = {k: place[k] for k in ("rank", "world_size", "master_port", "model_path")}
    # eps: Adam divides by the size of a gradient, and where that is nearly 0 rounding alone would steer the weights
    adam = Optimizer(max_norm=2.0, eps=1e-4, weight_decay=0.1)
    base = PolicySpec(**own, dtype=dtype, deepspeed={"zero_optimization": dict(zero)}, optimizer=adam)
    return replace(base, **changes)


def rows(count: int = 11, *, seed: int = 0, longest: int = 30) -> list[Any]:
    """Random rows; old log-probs as if the policy had moved, so that ratios and clips are at work."""
    import numpy as np

    from rlvr.types import Row

    rng = np.random.default_rng(seed)

    def one(i: int) -> Any:
        length, prompt = int(rng.integers(8, longest)), 4
        weight = (np.arange(length) >= prompt).astype(np.float32)
        old = -np.abs(rng.normal(4.8, 0.3, length)).astype(np.float32)
        return Row(
            key=f"{i}/0", group=i, tokens=rng.integers(0, VOCAB, length).astype(np.int32), weight=weight,
            logprobs=old + rng.normal(0, 0.01, length).astype(np.float32), version=np.zeros(length, np.int32),
            temperature=np.full(length, 0.9, np.float32),
            advantages=np.full(length, rng.normal(), np.float32), streams={"old_logp": old},
            sft_weight=weight if i % 3 == 0 else None,
        )  # fmt: skip

    return [one(i) for i in range(count)]


def update(policy: Any, table: Sequence[Any], number: int = 0, *, budget: int = 10_000, scale: float = 1.0) -> Out:
    """One optimizer update with global normalisers, as the controller would ask for it."""
    from rlvr.batching import micro_batches
    from rlvr.types import Plan

    tokens = sum(float(r.weight.sum()) for r in table)
    world = policy.spec.world_size
    micro = micro_batches([len(r.tokens) for r in table], ranks=world, token_budget=budget)[policy.rank]
    scales = dict.fromkeys(range(len(table)), scale / tokens)
    plan = Plan(update=number, lr=1e-3 / (1 + number), version=0, first=number == 0)
    return policy.step(table, micro, scales, scales, plan)


def measured(policy: Any, table: Sequence[Any], model: str = "policy") -> list[float]:
    """Log-probs of the rows, one after the other (each rank measures all)."""
    found = policy.measure(table, [tuple(range(len(table)))], frozenset({"logp"}), model)
    return [float(x) for i in range(len(table)) for x in found[i]["logp"]]


def parameters(policy: Any) -> list[float]:
    """All weights, gathered."""
    from rlvr.engine.deepspeed_state import whole

    flat: list[float] = []
    for p in policy.module.parameters():
        with whole(p):
            flat += p.detach().float().flatten().tolist()
    return flat


def training(place: Mapping[str, Any], stage: str) -> Out:
    """Three updates in one micro-batch a rank, then the same from the same start in many, fillers included."""
    from rlvr.engine.deepspeed_policy import RankPolicy

    out: Out = {}
    for split, budget in (("whole", 10_000), ("split", 60)):
        policy = RankPolicy(spec(place, stage))
        out[split] = {"metrics": [update(policy, rows(), n, budget=budget) for n in range(STEPS)]}
        out[split]["metrics"].append(update(policy, rows(1, seed=5), STEPS, budget=budget))  # a filler on rank 1
        out[split]["weights"] = parameters(policy)
        policy.close()
    return out


def plain(place: Mapping[str, Any], stage: str) -> Out:
    """The same updates by hand: one row at a time, whole logits, torch's own clipping and AdamW."""
    import torch
    from transformers import AutoModelForCausalLM

    from rlvr.engine.deepspeed_loss import Losses, pick
    from rlvr.engine.deepspeed_policy import RankPolicy
    from rlvr.methods import build_objective
    from rlvr.types import Plan

    asked = spec(place, stage)
    o = asked.optimizer
    losses = Losses(*build_objective(asked.objective, seed=0, project=Path()), asked.kl, (), frozenset())
    lm = AutoModelForCausalLM.from_pretrained(asked.model_path, dtype=torch.float32)
    adam = torch.optim.AdamW(lm.parameters(), betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)
    table, norms = rows(), []
    scale = dict.fromkeys(range(len(table)), 1.0 / sum(float(r.weight.sum()) for r in table))
    for number in range(STEPS):
        adam.zero_grad()
        adam.param_groups[0]["lr"] = 1e-3 / (1 + number)
        for i, row in enumerate(table):
            tokens = torch.from_numpy(row.tokens).long()[None]
            logits = lm(input_ids=tokens).logits[:, :-1] / torch.from_numpy(row.temperature[1:])[:, None]
            logp = torch.log_softmax(logits, -1).gather(-1, tokens[:, 1:, None])[..., 0]
            out = {"logp": torch.nn.functional.pad(logp, (1, 0))}
            batch = pick(table, [i], scale=scale, sft_scale=scale, marks={})
            plan = Plan(update=number, lr=0.0, version=0, first=True)
            losses(out | {"entropy": out["logp"].detach()}, batch, plan)[0].backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(lm.parameters(), o.max_norm)))
        adam.step()
    policy = RankPolicy(asked)
    metrics = [update(policy, table, number) for number in range(STEPS)]
    expected = [x for p in lm.parameters() for x in p.detach().flatten().tolist()]
    seen = {"norms": norms, "expected": expected, "metrics": metrics, "weights": parameters(policy)}
    policy.close()
    return seen


def state(place: Mapping[str, Any], stage: str) -> Out:
    """Save, go on, restore (same engine, and a new one), go on again; a gradient that is not finite; export."""
    from rlvr.engine.deepspeed_policy import RankPolicy

    folder = Path(place["folder"]) / f"{stage}-{place['world_size']}"
    policy = RankPolicy(spec(place, stage))
    update(policy, rows())
    policy.save(folder)
    out: Out = {"first": update(policy, rows(), 1), "weights": parameters(policy)}
    policy.restore(folder)
    out |= {"again": update(policy, rows(), 1), "weights_again": parameters(policy)}
    fresh = RankPolicy(spec(place, stage, seed=7))
    fresh.restore(folder)
    out |= {"fresh": update(fresh, rows(), 1), "weights_fresh": parameters(fresh)}
    fresh.close()
    policy.restore(folder)
    before = parameters(policy)
    out |= {"poison": update(policy, rows(), 1, scale=float("inf")), "unpoisoned": parameters(policy) == before}
    out |= {"after_poison": update(policy, rows(), 1), "weights_after_poison": parameters(policy)}
    policy.export(folder / "export")
    policy.close()
    return out


def noise(place: Mapping[str, Any], stage: str) -> Out:
    """Perturb, and back."""
    from rlvr.engine.deepspeed_policy import RankPolicy

    policy = RankPolicy(spec(place, stage))
    update(policy, rows())
    before, scores = parameters(policy), measured(policy, rows(3))
    policy.perturb(0.05, 11)
    out: Out = {"perturbed": parameters(policy), "moved": measured(policy, rows(3)), "scores": scores}
    policy.unperturb()
    out |= {"exact": parameters(policy) == before, "scores_exact": measured(policy, rows(3)) == scores}
    update(policy, rows(), 1)
    out["weights"] = parameters(policy)
    policy.close()
    undisturbed = RankPolicy(spec(place, stage))
    for number in range(2):
        update(undisturbed, rows(), number)
    out["undisturbed"] = parameters(undisturbed) == out["weights"]
    undisturbed.close()
    return out


def unlearning(place: Mapping[str, Any], stage: str) -> Out:
    """A step on the served weights and back, in one micro-batch a rank and in many; then updates as if nothing was."""
    from rlvr.batching import micro_batches
    from rlvr.engine.deepspeed_policy import RankPolicy

    policy, table, out = RankPolicy(spec(place, stage)), rows(7), {}
    update(policy, rows())
    start, kept = parameters(policy), optimizer_state(policy)
    scale = {i: 1.0 / (len(table) * float(r.weight.sum())) for i, r in enumerate(table)}
    for split, budget in (("whole", 10_000), ("split", 40)):
        micro = micro_batches([len(r.tokens) for r in table], ranks=place["world_size"], token_budget=budget)
        out[split] = policy.unlearn(table, micro[policy.rank], scale, eta=0.5, eps=1e-6)
        out[split] |= {"weights": parameters(policy), "moved": measured(policy, table)}
        policy.unperturb()
        out[split] |= {"exact": parameters(policy) == start, "untouched": optimizer_state(policy) == kept}
    out |= {"start": start, "scores": measured(policy, table), "after": [update(policy, rows(), n) for n in (1, 2)]}
    out["weights"] = parameters(policy)
    policy.close()
    undisturbed = RankPolicy(spec(place, stage))
    update(undisturbed, rows())
    out["undisturbed"] = [update(undisturbed, rows(), n) for n in (1, 2)] == out["after"]
    out["undisturbed"] = out["undisturbed"] and parameters(undisturbed) == out["weights"]
    undisturbed.close()
    return out


def optimizer_state(policy: Any) -> list[float]:
    """All that this rank's optimizer holds: its copy of the weights, moments, step counts."""
    held = [p for group in policy.engine.basic_optimizer.param_groups for p in group["params"]]
    held += [v for values in policy.engine.basic_optimizer.state.values() for v in values.values() if hasattr(v, "abs")]
    return [float(x) for tensor in held for x in tensor.detach().float().flatten().tolist()]


def reference(place: Mapping[str, Any], stage: str) -> Out:
    """The reference stays where the policy began."""
    from rlvr.engine.deepspeed_policy import RankPolicy

    policy = RankPolicy(spec(place, stage, reference=True))
    start = measured(policy, rows(4))
    update(policy, rows())
    out = {"start": start, "policy": measured(policy, rows(4)), "reference": measured(policy, rows(4), "reference")}
    policy.close()
    return out


def with_reference(policy: Any, table: Sequence[Any]) -> list[Any]:
    """The rows with the reference's log-probs, measured as the loop would."""
    found = policy.measure(table, [tuple(range(len(table)))], frozenset({"logp"}), "reference")
    return [replace(row, streams={**row.streams, "ref_logp": found[i]["logp"]}) for i, row in enumerate(table)]


def only_kl(table: Sequence[Any]) -> list[Any]:
    """The rows with advantages that are all 0 and without a supervised channel."""
    return [replace(row, advantages=0 * row.advantages, sft_weight=None) for row in table]


def moments(policy: Any) -> list[float]:
    """The largest size of each tensor of the optimizer's state, step counts included."""
    states = policy.engine.basic_optimizer.state.values()
    return [float(v.abs().max()) for values in states for v in values.values() if hasattr(v, "abs")]


def moving(place: Mapping[str, Any], stage: str) -> Out:
    """A reference that is reset or averaged: KL, gradient, moments; saved, changed, and read back."""
    from rlvr.engine.deepspeed_policy import RankPolicy
    from rlvr.recipe import KL

    folder = Path(place["folder"]) / f"moving-{stage}-{place['world_size']}"
    kl = KL(coef=1.0, estimator="k3", gradient="k2")
    out: Out = {}
    policy = RankPolicy(spec(place, stage, reference=True, reference_update="average", kl=kl))
    out["start"] = parameters(policy)
    for number in range(2):
        update(policy, with_reference(policy, rows()), number)
    out["apart"] = update(policy, only_kl(with_reference(policy, rows())), 2)
    out["theta"] = parameters(policy)
    policy.move_reference(0.25, False)
    out["averaged"] = whole_reference(policy)
    out["moments_kept"] = moments(policy)
    policy.save(folder)
    policy.move_reference(0.25, False)
    out["averaged_twice"] = whole_reference(policy)
    policy.restore(folder)
    out["restored"] = whole_reference(policy)
    policy.move_reference(0.25, False)
    out["restored_and_averaged"] = whole_reference(policy)
    fresh = RankPolicy(spec(place, stage, reference=True, reference_update="average", kl=kl))
    fresh.restore(folder)
    out["fresh"] = whole_reference(fresh)
    fresh.move_reference(0.25, False)
    out["fresh_and_averaged"] = whole_reference(fresh)
    fresh.close()
    policy.move_reference(1.0, True)
    out |= {"reset": whole_reference(policy), "moments": moments(policy)}
    out["scores"] = [measured(policy, rows(4)), measured(policy, rows(4), "reference")]
    out["together"] = update(policy, only_kl(with_reference(policy, rows())), 3)
    policy.close()
    return out


def whole_reference(policy: Any) -> list[float]:
    """All weights of the reference, gathered."""
    from rlvr.engine.deepspeed_state import whole

    flat: list[float] = []
    for p in policy.reference.model.parameters():
        with whole(p):
            flat += p.detach().float().flatten().tolist()
    return flat


def memory(place: Mapping[str, Any], stage: str) -> Out:
    """The largest tensors that forward and backward make, tied and untied, with ranks that need unequal chunks."""
    from rlvr.engine.deepspeed_policy import RankPolicy
    from tests.engines.biggest import Biggest

    out: Out = {}
    for kind in ("tied", "untied"):
        zero = {**STAGES[stage][1], "reduce_bucket_size": 1000, "stage3_prefetch_bucket_size": 0}
        wide = spec(place, stage, model_path=place[kind], deepspeed={"zero_optimization": zero})
        policy = RankPolicy(wide)
        policy.chunk = 16
        table = rows(12, longest=60)
        size = policy.module.config.vocab_size
        with Biggest(vocab=size) as seen:
            update(policy, table)
        asked = sum(int((r.weight != 0).sum()) for r in table) // policy.spec.world_size
        out[kind] = {"rows_of_logits": seen.rows, "kept": seen.kept, "asked": asked, "chunk": policy.chunk}
        policy.chunk = 10_000
        with Biggest(vocab=size) as seen:
            update(policy, table, 1)
        out[kind] |= {"rows_unchunked": seen.rows, "kept_unchunked": seen.kept}
        policy.close()
    return out


SECTIONS: dict[str, Callable[[Mapping[str, Any], str], Out]] = {
    "training": training, "plain": plain, "state": state, "noise": noise, "reference": reference, "memory": memory,
    "moving": moving, "unlearning": unlearning,
}  # fmt: skip


def main() -> None:
    """Run the sections `name:stage` and write what they saw."""
    rank, world, port, folder, *wanted = sys.argv[1:]
    from rlvr.engine.deepspeed_env import environment

    os.environ.update(environment("cpu", threads=1))
    from rlvr.engine.deepspeed_policy import leave

    place = {"rank": int(rank), "world_size": int(world), "master_port": int(port), "folder": folder}
    place |= {key: str(Path(folder) / key.removesuffix("_path")) for key in ("tied", "untied", "model_path")}
    out = {}
    for section in wanted:
        name, stage = section.split(":")
        out[section] = SECTIONS[name](place, stage)
    (Path(folder) / f"{world}-{rank}.json").write_text(json.dumps(out))
    leave()


if __name__ == "__main__":
    main()
