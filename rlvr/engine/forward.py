"""From ragged rows to per-token streams: the only place where padding exists, and where no [B,T,V] tensor does.

The backbone gives hidden states [B,T,d]; the asked-for positions are gathered and projected to the vocabulary
in chunks of tokens. With gradient each chunk is recomputed in backward (non-reentrant checkpointing), so that
at most one chunk of logits exists at any time. The head is always *called*, never read: under ZeRO-3 its
weight is an empty shard outside the call, and a tied head is gathered the same way.

Alignment: index t describes token t, so the logits at t-1 are divided by the temperature of token t.

What can be asked for by name: the token streams of `rlvr/objectives/streams.py`, and the sequence streams below, a
few numbers per row made from its hidden states, never with gradient:

    effective_rank(stride)   (ER, ERV, ERA) of the states that predict the asked-for tokens, see
                             `rlvr/objectives/effective_rank.py`
    pooled_state(d)          mean of the same states, projected to d dimensions: `rlvr/objectives/pooling.py`
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlvr.errors import EngineError
from rlvr.objectives.effective_rank import rank_dynamics
from rlvr.objectives.pooling import pooled_state
from rlvr.objectives.streams import parse, reduction
from rlvr.types import Row

SEQUENCES = {"effective_rank": "a stride of 1 token", "pooled_state": "a width d of 1"}  # their parameter
UNSUPPORTED_HEADS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier_scale")


def is_sequence(name: str) -> bool:
    """Whether a stream is one vector per row rather than one number per token, of whichever model."""
    return parse(name)[0].removeprefix("old_").removeprefix("ref_") in SEQUENCES


def sequence(name: str, states: Tensor) -> Tensor:
    """A sequence stream of one row, from the states [n,h] that predict its asked-for tokens."""
    kind, parameter = parse(name)
    number = int(parameter or 0)
    return pooled_state(states, d=number) if kind == "pooled_state" else rank_dynamics(states, stride=number)


@dataclass(frozen=True)
class Padded:
    """One micro-batch on a device, right-padded; what is padding is known from lengths, never from token values."""

    tokens: Tensor  # [B,T] int64, 0 on padding
    temperature: Tensor  # [B,T] float32, 1 on padding
    asked: Tensor  # [B,T] bool, tokens whose streams are wanted; False at t=0 and on padding


class TokenStreams(nn.Module):
    """A causal language model whose forward returns per-token scalars.

    One module around backbone and head, so that a whole forward is one call of the DeepSpeed engine (ZeRO-3
    follows module calls). Raises EngineError for a head that does more than one projection.
    """

    lm: Any  # a transformers model

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.lm = lm
        config = lm.config.to_dict()
        odd = [k for k in UNSUPPORTED_HEADS if config.get(k) not in (None, 1, 1.0)]
        if odd:
            raise EngineError(
                f"model of type {config.get('model_type')!r}: its config sets {', '.join(odd)}, so its logits are more "
                "than lm_head(hidden). Expected a plain output projection; choose another model."
            )

    def forward(
        self, batch: Padded, needs: Sequence[str], sequences: Sequence[str], grad: frozenset[str], pieces: int
    ) -> tuple[Tensor, list[Tensor]]:
        """[len(needs),B,T] float32, 0 where not asked, and [B,d] for each of `sequences`.

        Names outside `grad` carry no gradient; sequences never do.
        """
        # No attention mask: padding is on the right, where causal attention never looks.
        hidden = self.lm.base_model(input_ids=batch.tokens, use_cache=False).last_hidden_state
        vectors = [_sequence(name, hidden.detach(), batch.asked) for name in sequences]
        return self._tokens(batch, hidden, needs, grad, pieces), vectors

    def _tokens(self, batch: Padded, hidden: Tensor, needs: Sequence[str], grad: frozenset[str], pieces: int) -> Tensor:
        if not needs:
            return hidden.new_zeros(0, *batch.tokens.shape)
        where, sources, targets, temperature = _positions(batch, pieces)
        hidden = hidden.flatten(0, 1)[sources]
        head, n = self.lm.get_output_embeddings(), len(sources)
        parts = []
        for piece in torch.arange(n, device=hidden.device).tensor_split(pieces):
            args = (head, hidden[piece], targets[piece], temperature[piece], tuple(needs), grad)
            recompute = pieces > 1 and torch.is_grad_enabled()
            parts.append(checkpoint(_project, *args, use_reentrant=False) if recompute else _project(*args))
        values = torch.cat(parts, dim=1)
        # Dummies (index -1 in `where`) fall into a slot beyond the last token, which is cut off.
        flat = values.new_zeros(len(needs), batch.tokens.numel() + 1).index_copy(1, where, values)
        return flat[:, :-1].unflatten(1, batch.tokens.shape)


def _positions(batch: Padded, pieces: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Flat targets' slots, the hidden states that predict them, target ids, temperatures; at least one per piece."""
    size = batch.tokens.numel()
    where = batch.asked.flatten().nonzero().squeeze(-1)
    targets, temperature = batch.tokens.flatten()[where], batch.temperature.flatten()[where]
    lack = max(0, pieces - len(where))
    if lack:
        where = torch.cat([where, where.new_full((lack,), size)])
        targets = torch.cat([targets, targets.new_zeros(lack)])
        temperature = torch.cat([temperature, temperature.new_ones(lack)])
    sources = torch.where(where == size, 0, where - 1)  # asked is False at t=0: t-1 is in the same row
    return where, sources, targets, temperature


def _project(
    head: nn.Module, hidden: Tensor, targets: Tensor, temperature: Tensor, needs: Sequence[str], grad: frozenset[str]
) -> Tensor:
    """[len(needs), n] reductions of the log-probabilities of one chunk."""
    logp = torch.log_softmax(head(hidden).float() / temperature[:, None], dim=-1)
    flat = logp.detach()
    return torch.stack([reduction(name)(logp if name in grad else flat, targets) for name in needs])


@torch.no_grad()
def _sequence(name: str, hidden: Tensor, asked: Tensor) -> Tensor:
    """[B,d] of a sequence stream, from the states that predict each row's asked-for tokens."""
    return torch.stack([sequence(name, h[:-1][a[1:]]) for h, a in zip(hidden, asked, strict=True)])


def pad(rows: Sequence[Row], *, asked: Sequence[np.ndarray] | None, device: torch.device | str) -> Padded:
    """Rows as one padded micro-batch; without `asked` the tokens with a weight in either channel are wanted."""
    shape = (len(rows), max(len(r.tokens) for r in rows))
    tokens, wanted = np.zeros(shape, np.int64), np.zeros(shape, bool)
    temperature = np.ones(shape, np.float32)
    for b, row in enumerate(rows):
        n = len(row.tokens)
        tokens[b, :n], temperature[b, :n] = row.tokens, row.temperature
        wanted[b, :n] = weighted(row) if asked is None else asked[b]
    wanted[:, 0] = False
    return Padded(*(torch.from_numpy(a).to(device) for a in (tokens, temperature, wanted)))


def weighted(row: Row) -> np.ndarray:
    """[L] bool: tokens that enter a loss."""
    mask = row.weight != 0
    return mask if row.sft_weight is None else mask | (row.sft_weight != 0)


def pad_values(values: Sequence[np.ndarray], *, device: torch.device | str) -> Tensor:
    """Ragged [L] arrays as [B,T] float32, 0 on padding."""
    out = np.zeros((len(values), max(len(v) for v in values)), np.float32)
    for b, v in enumerate(values):
        out[b, : len(v)] = v
    return torch.from_numpy(out).to(device)


def own_part(name: str, values: np.ndarray, length: int) -> np.ndarray:
    """One row of a stream without its padding: [L] of [T], all of a sequence stream's [d]."""
    return values.copy() if is_sequence(name) else values[:length].copy()


def forward(
    model: nn.Module,
    rows: Sequence[Row],
    *,
    needs: frozenset[str],
    grad: frozenset[str] = frozenset(),
    chunk: int,
    device: torch.device | str,
    asked: Sequence[np.ndarray] | None = None,
    agree: Callable[[int], int] | None = None,
) -> Mapping[str, Tensor]:
    """Streams of one micro-batch: name -> [B,T] float32, or [B,d] of a sequence stream.

    `model` is a `TokenStreams` (or an engine around one). `chunk` is the number of tokens whose logits may
    exist at once. `asked` (one [L] mask a row) replaces the default, the tokens with a weight. `agree` makes
    the number of chunks equal on all ranks: under ZeRO-3 every call of the head is a collective. Raises
    EngineError for a stream that does not exist.
    """
    names = sorted(needs | grad)
    _check(names, grad)
    tokens, sequences = ([n for n in names if is_sequence(n) is whole] for whole in (False, True))
    batch = pad(rows, asked=asked, device=device)
    pieces = max(1, math.ceil(int(batch.asked.sum()) / chunk))
    pieces = agree(pieces) if agree else pieces
    with torch.set_grad_enabled(bool(grad)):
        values, vectors = model(batch, tokens, sequences, grad, pieces)
    return dict(zip([*tokens, *sequences], [*values, *vectors], strict=True))


def _check(names: Sequence[str], grad: frozenset[str]) -> None:
    for name in names:
        if is_sequence(name):
            kind, value = parse(name)
            if kind not in SEQUENCES or value is None or value < 1 or value % 1 or name in grad:
                parameter = SEQUENCES.get(kind, "a parameter").split()[1]
                why = f"expected {kind}({parameter}) with {SEQUENCES.get(kind)} or more, and not with gradient"
                raise EngineError(f"sequence stream {name}: {why}")
            continue
        try:
            reduction(name)
        except ValueError as error:
            raise EngineError(str(error)) from None
