"""The loss of one micro-batch on one rank, and the numbers that all ranks report together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from rlvr.engine.forward import is_sequence, pad_values
from rlvr.errors import EngineError
from rlvr.objectives.loss import LossTerm, PolicyLoss, Weights, compose, means, shaped, sums, token_losses
from rlvr.objectives.reduce import scaled_sum
from rlvr.objectives.view import TokenView
from rlvr.recipe import KL
from rlvr.types import F32, Metrics, Plan, Row

WHOLE = frozenset({"loss", "sft_loss", "sft_tokens"})  # totals that are not divided by the tokens
Marks = Mapping[str, Mapping[int, F32] | Sequence[F32]]  # add-on name -> position of a row -> [L]


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one micro-batch with their global scales."""

    rows: Sequence[Row]
    scale: F32  # [B]
    sft_scale: F32  # [B]
    marks: Mapping[str, Sequence[F32]] = field(default_factory=dict)


def pick(
    rows: Sequence[Row],
    index: Sequence[int],
    *,
    scale: Mapping[int, float] | Sequence[float],
    sft_scale: Mapping[int, float] | Sequence[float],
    marks: Marks,
) -> MicroBatch:
    """The micro-batch of these positions; an empty one is a filler with zero weight (ranks run in lockstep)."""
    if not index:
        one = filler(rows[0])
        nothing = np.zeros(1, np.float32)
        return MicroBatch([one], nothing, nothing, {name: [np.zeros_like(one.weight)] for name in marks})
    return MicroBatch(
        rows=[rows[i] for i in index],
        scale=np.array([scale[i] for i in index], np.float32),
        sft_scale=np.array([sft_scale[i] for i in index], np.float32),
        marks={name: [values[i] for i in index] for name, values in marks.items()},
    )


def filler(row: Row, length: int = 2) -> Row:
    """The head of a row with zero weight: it takes part in every collective and adds nothing."""

    def head(values: np.ndarray) -> np.ndarray:
        return values[:length]

    return replace(
        row,
        tokens=head(row.tokens),
        weight=np.zeros_like(head(row.weight)),
        logprobs=head(row.logprobs),
        version=np.full_like(head(row.version), -1),
        temperature=np.ones_like(head(row.temperature)),
        advantages=head(row.advantages),
        streams={name: head(values) for name, values in row.streams.items()},
        sft_weight=None,
    )


def make_view(out: Mapping[str, Tensor], rows: Sequence[Row], *, extras: Iterable[str]) -> TokenView:
    """Rows and forward streams as the objectives see them.

    Without an "old_logp" stream the current log-probs are the old ones (the first update of a step). An unknown
    behaviour log-prob becomes the old one, with `known` 0. `extras` are streams of the rows that add-ons need.
    """
    logp = out["logp"]
    device = logp.device

    def stream(name: str) -> Tensor | None:
        have = sum(name in r.streams for r in rows)
        if 0 < have < len(rows):  # a fallback for some rows would depend on which micro-batch they are in
            raise EngineError(f"stream {name!r} is there for {have} of {len(rows)} rows: measure it for all or none")
        if have == 0:
            return None
        return pad_values([r.streams[name] for r in rows], device=device)

    old = stream("old_logp")
    old = logp.detach() if old is None else old
    known = pad_values([np.isfinite(r.logprobs) for r in rows], device=device)
    behaviour = pad_values([np.nan_to_num(r.logprobs, nan=0.0, posinf=0.0, neginf=0.0) for r in rows], device=device)
    measured = {name: value for name in extras if not is_sequence(name) and (value := stream(name)) is not None}
    return TokenView(
        logp=logp,
        old_logp=old,
        behaviour_logp=torch.where(known > 0, behaviour, old),
        known=known,
        advantages=pad_values([r.advantages for r in rows], device=device),
        weight=pad_values([r.weight for r in rows], device=device),
        ref_logp=stream("ref_logp"),
        streams=measured | {name: value for name, value in out.items() if name != "logp"},
    )


@dataclass(frozen=True)
class Losses:
    """What turns a micro-batch into a scalar."""

    surrogate: PolicyLoss
    correction: Weights
    kl: KL
    addons: Sequence[LossTerm]
    extras: frozenset[str]  # streams of the rows that add-ons look at
    token_streams: frozenset[str] = frozenset()  # streams of the forward that they look at

    def __call__(self, out: Mapping[str, Tensor], batch: MicroBatch, plan: Plan) -> tuple[Tensor, dict[str, float]]:
        """The scalar loss of a micro-batch (a summand of the update's) and its totals; see `Totals`."""
        device = out["logp"].device
        if not plan.first and any("old_logp" not in r.streams and r.weight.any() for r in batch.rows):
            raise EngineError(f"update {plan.update} is not the first of its step and its rows have no old log-probs")
        asked = {name: values for name, values in out.items() if name in self.token_streams | {"logp"}}
        view = make_view(asked, batch.rows, extras=self.extras)
        marks = {name: pad_values(values, device=device) for name, values in batch.marks.items()}
        view = shaped(view, self.addons, knobs=plan.knobs, marks=marks)
        name = self.surrogate.name
        own = replace(view, knobs=plan.knobs.get(name, {}), mark=marks.get(name))
        loss, metrics = token_losses(own, self.surrogate, self.correction, self.kl)
        loss = compose(view, loss, self.addons, knobs=plan.knobs, marks=marks)
        policy = scaled_sum(loss, weight=view.weight, scale=torch.from_numpy(batch.scale).to(device))
        metrics |= {"entropy": out["entropy"].detach()} | (_gap(view, batch.rows, plan) if plan.first else {})
        supervised, sft_tokens = _supervised(out["logp"], batch)
        totals = sums(metrics, view.mask)
        totals |= {"loss": policy.detach(), "sft_loss": supervised.detach(), "sft_tokens": sft_tokens}
        values = torch.stack([v.detach().double() for v in totals.values()]).tolist()  # one transfer
        return policy + supervised, dict(zip(totals, values, strict=True))


def _supervised(logp: Tensor, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Cross-entropy on `sft_weight`, and how many tokens it is over."""
    weights = [np.zeros_like(r.weight) if r.sft_weight is None else r.sft_weight for r in batch.rows]
    weight = pad_values(weights, device=logp.device)
    scale = torch.from_numpy(batch.sft_scale).to(logp.device)
    token = torch.where(weight != 0, weight * logp, torch.zeros_like(logp))
    return -(scale * token.sum(-1)).sum(), (weight != 0).sum()


def _gap(view: TokenView, rows: Sequence[Row], plan: Plan) -> dict[str, Tensor]:
    """|trainer - sampler| log-probs at tokens that the weights at the start of the step sampled."""
    current = pad_values([r.version == plan.version for r in rows], device=view.logp.device) * view.known * view.mask
    gap = torch.where(current > 0, (view.logp.detach() - view.behaviour_logp).abs(), torch.zeros_like(current))
    return {"gap_max": gap, "gap_mean": gap, "gap_tokens": current}


class Totals:
    """Sums of an update over micro-batches and ranks; names ending in `_max` are maxima."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """Merge one micro-batch."""
        for name, value in values.items():
            old = self.values.get(name)
            self.values[name] = value if old is None else _merge(name, old, value)

    def reduce(self, device: torch.device) -> Metrics:
        """The metrics of the update over all ranks, the same on each: one collective."""
        names = sorted(self.values)
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            mine = torch.tensor([self.values[n] for n in names], dtype=torch.float64, device=device)
            parts = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather(parts, mine)
            merged = Totals()
            for part in parts:
                merged.add(dict(zip(names, part.tolist(), strict=True)))
            return merged._report()
        return self._report()

    def _report(self) -> Metrics:
        counts = {name: self.values.get(name, 0.0) for name in ("gap_tokens", "sft_tokens")}
        hidden = {"gap_tokens"} | ({"gap_max", "gap_mean"} if not counts["gap_tokens"] else set())
        hidden |= {"sft_loss", "sft_tokens"} if not counts["sft_tokens"] else set()
        shown = {name: value for name, value in self.values.items() if name not in hidden}
        report = means(shown) | {name: shown[name] for name in WHOLE & shown.keys()}
        if "gap_mean" in shown:
            report["gap_mean"] = shown["gap_mean"] / counts["gap_tokens"]
        return report


def _merge(name: str, a: float, b: float) -> float:
    return max(a, b) if name.endswith("_max") else a + b
