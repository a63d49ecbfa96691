"""One DeepSpeed rank: forward passes, optimizer updates and state, ZeRO 0 to 3, float32 and bfloat16, CPU and GPU.

All methods are synchronous, and collective: every rank calls them in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from rlvr.engine import deepspeed_state as state
from rlvr.engine.deepspeed_env import environment
from rlvr.engine.deepspeed_loss import Losses, MicroBatch, Totals, filler, pick
from rlvr.engine.deepspeed_reference import ReferenceModel
from rlvr.engine.deepspeed_setup import PolicySpec, join, leave, make_engine
from rlvr.engine.deepspeed_unlearn import Gradient, descend, total
from rlvr.engine.forward import TokenStreams, forward, own_part, pad_values
from rlvr.errors import EngineError
from rlvr.methods import build_addons, build_objective
from rlvr.objectives.reduce import scaled_sum
from rlvr.objectives.unlearning import complementary_loss
from rlvr.types import F32, Metrics, Plan, Row

__all__ = ["PolicySpec", "RankPolicy", "environment", "leave"]

LOGIT_BYTES = 2**29  # float32 logits that may exist at once
ByPosition = Mapping[int, float] | Sequence[float]


class RankPolicy:
    """The policy (and, when asked for, the reference) on one rank."""

    def __init__(self, spec: PolicySpec) -> None:
        join(spec)
        self.spec, self.rank, self.zero_stage = spec, spec.rank, spec.zero_stage
        torch.manual_seed(spec.seed + spec.rank)
        self.engine = make_engine(spec)
        self.device = torch.device(self.engine.device)
        self.reference = ReferenceModel(spec, self.device) if spec.reference else None
        project = Path(spec.project)
        surrogate, correction = build_objective(spec.objective, seed=spec.seed, project=project)
        addons = build_addons(spec.addons, seed=spec.seed, project=project)
        self._token_needs = frozenset[str]().union(*(a.token_needs for a in (surrogate, *addons)))
        self._token_reads = frozenset[str]({"entropy"}).union(*(a.token_reads for a in (surrogate, *addons)))
        extras = frozenset[str]().union(*(a.needs | a.measures for a in (surrogate, *addons)))
        looked_at = frozenset[str]().union(*(a.token_needs | a.token_reads for a in (surrogate, *addons)))
        self._losses = Losses(surrogate, correction, spec.kl, addons, extras, looked_at)
        self._guard = state.FiniteStep(self.engine, spec.optimizer.max_norm) if spec.zero_stage == 0 else None
        self._before: list[torch.Tensor] | None = None  # the weights that `perturb` changed
        self.chunk = max(64, LOGIT_BYTES // (4 * self._model.lm.config.vocab_size))  # tokens projected at once

    @property
    def module(self) -> nn.Module:
        """The Hugging Face model (its parameters are shards under ZeRO-3)."""
        return self._model.lm

    @property
    def _moves(self) -> bool:
        return self.reference is not None and self.spec.reference_update != "never"

    @property
    def _model(self) -> TokenStreams:
        return self.engine.module

    def measure(
        self,
        rows: Sequence[Row],
        micro: Sequence[Sequence[int]],
        needs: frozenset[str],
        model: Literal["policy", "reference"] = "policy",
    ) -> dict[int, dict[str, F32]]:
        """Streams, [L] each (or [d] of a sequence stream), of this rank's rows, by position; no gradient.

        An empty micro-batch is a filler. Raises EngineError for the reference where none was loaded.
        """
        net = self.engine if model == "policy" else self._reference().net
        net.eval()
        found: dict[int, dict[str, F32]] = {}
        for index in micro:
            picked = [rows[i] for i in index] or [filler(rows[0])]
            out = self._forward(net, picked, needs=needs)
            streams = {name: values.cpu().numpy() for name, values in out.items()}
            for b, i in enumerate(index):
                found[i] = {name: own_part(name, values[b], len(rows[i].tokens)) for name, values in streams.items()}
        return found

    def step(
        self,
        rows: Sequence[Row],
        micro: Sequence[Sequence[int]],
        scale: ByPosition,
        sft_scale: ByPosition,
        plan: Plan,
    ) -> Metrics:
        """One optimizer update from this rank's micro-batches (an empty one is a filler).

        `scale`, `sft_scale` and `plan.marks[name]` are indexed by position in `rows`. The metrics are those of
        the whole update, the same on every rank. A gradient that is not finite changes nothing and counts as
        `skipped_updates`; one that is exactly 0 is stepped like any other and counts as `zero_updates`.
        """
        self.engine.train()
        grad = frozenset({"logp"}) | self._token_needs
        totals = Totals()
        for index in micro:
            batch = pick(rows, index, scale=scale, sft_scale=sft_scale, marks=plan.marks)
            out = self._forward(self.engine, batch.rows, needs=grad | self._token_reads, grad=grad)
            loss, values = self._losses(out, batch, plan)
            totals.add(values)
            self.engine.backward(loss * self.spec.world_size)  # DeepSpeed averages over ranks
        for group in self.engine.optimizer.param_groups:
            group["lr"] = plan.lr
        self.engine.step()
        return totals.reduce(self.device) | self._outcome() | {"lr": plan.lr}

    def _outcome(self) -> Metrics:
        norm = self._guard.norm if self._guard else float(self.engine.get_global_grad_norm())
        finite = math.isfinite(norm) and norm >= 0
        counts = {"skipped_updates": float(not finite), "zero_updates": float(norm == 0.0)}
        return counts | ({"grad_norm": norm} if finite else {})

    def _reference(self) -> ReferenceModel:
        if self.reference is None:
            raise EngineError("the reference model was asked for, but the recipe loads none (`kl.coef` is 0)")
        return self.reference

    def move_reference(self, alpha: float, reset_optimizer: bool) -> None:
        """See `protocols.Policy`."""
        self._reference().follow(self.module, alpha=alpha)
        if reset_optimizer:
            state.forget(self.engine.basic_optimizer)

    def _forward(
        self, net: nn.Module, rows: Sequence[Row], *, needs: frozenset[str], grad: frozenset[str] = frozenset()
    ) -> Mapping[str, torch.Tensor]:
        agree = self._agree if self.zero_stage == 3 and self.spec.world_size > 1 else None
        return forward(net, rows, needs=needs, grad=grad, chunk=self.chunk, device=self.device, agree=agree)

    def _agree(self, pieces: int) -> int:
        count = torch.tensor(pieces, device=self.device)
        torch.distributed.all_reduce(count, op=torch.distributed.ReduceOp.MAX)
        return int(count)

    def save(self, path: str | Path) -> None:
        """Write the whole state below `path`, and `path/model`: the weights as a Hugging Face folder.

        The latter adds a seventh (bfloat16) to the size and makes `rlvr export` a copy on one process. A reference
        that moves is written as well; one that does not is the model of the recipe.
        """
        state.save(self.engine, Path(path), self._identity())
        self.export(Path(path) / state.MODEL)
        if self._moves:
            self._reference().save(Path(path))

    def restore(self, path: str | Path) -> None:
        """Read what `save` wrote, bit for bit; raises CheckpointError where it does not fit this rank."""
        state.restore(self.engine, Path(path), self._identity())
        if self._moves:
            self._reference().restore(Path(path))

    def export(self, path: str | Path) -> None:
        """Write a Hugging Face folder (safetensors and config, no tokenizer); rank 0 writes."""
        state.export(self.module, Path(path), rank=self.rank)

    def perturb(self, scale: float, seed: int) -> None:
        """Add seeded noise of `scale` times its root mean square to every weight of the module.

        The same on every rank and for every ZeRO stage; the optimizer's own copy is not touched.
        """
        if self._before is None:
            self._before = state.weights(self.module)
        state.perturb(self.module, scale=scale, seed=seed)

    def unperturb(self) -> None:
        """Restore the weights bit for bit."""
        if self._before is not None:
            state.put_back(self.module, self._before)
            self._before = None

    def unlearn(
        self, rows: Sequence[Row], micro: Sequence[Sequence[int]], scale: ByPosition, *, eta: float, eps: float
    ) -> Metrics:
        """One plain gradient step of rate `eta` that makes these rows less likely; `unperturb` takes it back.

        The gradient is that of `complementary_loss`, summed with `scale` as in `step`. The optimizer, its copy of the
        weights and its gradients are not touched. Returns the mean probability of the rows' tokens, weighed in the
        same way, before and after the step: the same on every rank.
        """
        if self._before is None:
            self._before = state.weights(self.module)
        self.engine.train()
        gradient, before, after = Gradient(self.module), 0.0, 0.0
        for index in micro:
            batch = pick(rows, index, scale=scale, sft_scale=scale, marks={})
            logp = self._forward(self._model, batch.rows, needs=frozenset(), grad=frozenset({"logp"}))["logp"]
            gradient.add(self._scaled(complementary_loss(logp, eps=eps), batch))
            before += float(self._scaled(logp.detach().exp(), batch))
            self.engine.empty_partition_cache()  # ZeRO-3 lets go of what it gathered in a backward of its own alone
        descend(gradient.params, gradient.parts(), eta=eta)
        for index in micro:
            batch = pick(rows, index, scale=scale, sft_scale=scale, marks={})
            logp = self._forward(self.engine, batch.rows, needs=frozenset({"logp"}))["logp"]
            after += float(self._scaled(logp.exp(), batch))
        return dict(zip(("p_before", "p_after"), total([before, after], self.device), strict=True))

    def _scaled(self, values: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        weight = pad_values([row.weight for row in batch.rows], device=self.device)
        return scaled_sum(values, weight=weight, scale=torch.from_numpy(batch.scale).to(self.device))

    def offload(self) -> None:
        """Move weights and optimizer state to the host (colocation); no-op on a CPU."""
        if self.device.type != "cpu":
            state.offload(self.engine, self.zero_stage)
            if self.reference is not None:
                self.reference.to("cpu")

    def reload(self) -> None:
        """Inverse of `offload`."""
        if self.device.type != "cpu":
            state.reload(self.engine, self.zero_stage)
            if self.reference is not None:
                self.reference.to(self.device)

    def close(self) -> None:
        """Free the engine. The process group lives on: see `leave`."""
        self.engine.destroy()

    def _identity(self) -> dict[str, Any]:
        return {"world_size": self.spec.world_size, "zero_stage": self.zero_stage, "dtype": self.spec.dtype}
