"""Scalars of a next-token distribution, by name: what a forward may reduce a [n,V] chunk of log-probabilities to.

A stream with parameters carries them in its name, `top_p_entropy(0.8)`, as `rlvr.types.stream` writes it, so that two
add-ons may ask for it with different ones. Every reduction is differentiable; a caller decides what carries gradient.
Index t describes token t: the distribution is the one that token t was drawn from, at its temperature.

    logp                  log pi(y)                                          y the token that was taken
    entropy               -sum_v pi log pi                                   nats
    top_p_entropy(p)      entropy of pi restricted to its nucleus and renormalised; p in (0, 1]
    sum_sq                sum_v pi^2
    mean_logp             1/V sum_v log pi
    max_prob              max_v pi
    certainty(t)          1 + log(max_v q) / log V, q = pi at t times the temperature; 0 uniform, 1 one-hot
    log_kept(kappa)       log sum_{v: pi_v >= kappa max pi} pi_v             min-p; kappa in [0, 1]
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlvr.objectives.entropy import FLOOR, entropy

Reduction = Callable[[Tensor, Tensor], Tensor]
NUCLEUS = 64  # tokens looked at first
BLOCK = 16  # rows at a time where the nucleus is wider
HALVINGS = 9  # of about 12 nats, where the nucleus is wider: what is left to sort is within 0.03 nats

_NAME = re.compile(r"(\w+)\((.+)\)")


def nucleus_entropy(logp: Tensor, *, p: float) -> Tensor:
    """Entropy in nats of the renormalised nucleus, [n,V] -> [n].

    The nucleus is the smallest set of most probable tokens whose mass is at least `p` (the token that crosses `p` is
    in it). Membership carries no gradient; the mass that renormalises does. `p` 1 is the whole distribution.
    No full sort: the largest few are enough for almost every row of a trained model; where they are not, the threshold
    is halved in on (`_wide_nucleus`).
    """
    if p >= 1.0:
        return entropy(logp)
    top = logp.detach().topk(min(NUCLEUS, logp.shape[-1])).indices
    chosen = logp.gather(-1, top)
    prob = chosen.detach().exp()
    below = prob.cumsum(-1) - prob  # mass of the more probable ones
    wide = (below[:, -1] + prob[:, -1] < p) & (logp.shape[-1] > NUCLEUS)
    if not wide.any():
        return _Renormalised.apply(chosen, below < p)
    rows, others = wide.nonzero()[:, 0], (~wide).nonzero()[:, 0]
    spread = logp if not len(others) else logp.index_select(0, rows)
    values = [_Renormalised.apply(chosen[others], below[others] < p)]
    nucleus = torch.cat([_wide_nucleus(part, p=p) for part in spread.detach().split(BLOCK)])
    values += [_Renormalised.apply(spread, nucleus)]
    return torch.cat(values)[torch.cat([others, rows]).argsort()]


def _wide_nucleus(logp: Tensor, *, p: float) -> Tensor:
    """Which tokens are in the nucleus, [n,V] -> bool [n,V]: exact, in a few passes instead of a sort.

    Halving finds an interval in which the last token's log-prob is; only tokens inside it (a few hundred of 32k) are
    put in order. Tokens below (1 - p) / V have less than 1 - p together, so the search begins a little under that.
    """
    prob, vocab, room = logp.exp(), logp.shape[-1], torch.empty_like(logp)

    def mass(threshold: Tensor) -> Tensor:  # [n,1]; in one piece of memory: new ones cost more than the numbers
        return torch.ge(logp, threshold, out=room).mul_(prob).sum(-1, keepdim=True)

    high = logp.amax(-1, keepdim=True) + 1e-3
    low = torch.full_like(high, math.log((1.0 - p) / vocab) - 1.0).minimum(high - 1e-3)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        enough = mass(middle) >= p
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    kept = logp >= high
    row, column = ((logp >= low) & ~kept).nonzero(as_tuple=True)
    count = torch.bincount(row, minlength=len(logp))
    place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    found = prob.new_zeros(len(logp), int(count.max())).index_put((row, place), prob[row, column])
    sorted_prob, order = found.sort(-1, descending=True)
    before = mass(high) + sorted_prob.cumsum(-1) - sorted_prob
    inside = torch.zeros_like(found, dtype=torch.bool).scatter(-1, order, before < p)
    return kept.index_put((row, column), inside[row, place])


def log_kept_mass(logp: Tensor, *, kappa: float) -> Tensor:
    """log of the mass of the tokens with pi >= kappa max pi, [n,V] -> [n]; the maximum itself is always among them."""
    threshold = logp.detach().amax(-1, keepdim=True) + (math.log(kappa) if kappa > 0 else -math.inf)
    return (logp.exp() * (logp >= threshold)).sum(-1).log()


class _Renormalised(torch.autograd.Function):
    """H = -sum q log q of q = pi / sum_kept pi over the kept tokens, [n,k], bool [n,k] -> [n].

    With a backward of its own, as `entropy` has: dH / dlogp_v = -q_v (log q_v + H), 0 where not kept.
    """

    @staticmethod
    def forward(ctx: Any, logp: Tensor, kept: Tensor) -> Tensor:
        part = logp.exp().mul_(kept)
        mass = part.sum(-1)
        h = mass.log() - part.mul_(logp.clamp(min=FLOOR)).sum(-1) / mass
        ctx.save_for_backward(logp, kept, mass, h)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logp, kept, mass, h = ctx.saved_tensors
        slope = logp.clamp(min=FLOOR).add_((h - mass.log())[:, None])
        return slope.mul_(logp.exp()).mul_(kept).mul_((-grads[0] / mass)[:, None]), None


def _logp(logp: Tensor, token: Tensor) -> Tensor:
    return logp.gather(-1, token[:, None]).squeeze(-1)


def _entropy(logp: Tensor, token: Tensor) -> Tensor:
    return entropy(logp)


def _sum_sq(logp: Tensor, token: Tensor) -> Tensor:
    p = logp.exp()
    return torch.linalg.vecdot(p, p)


def _mean_logp(logp: Tensor, token: Tensor) -> Tensor:
    return logp.mean(-1)


def _max_prob(logp: Tensor, token: Tensor) -> Tensor:
    return logp.amax(-1).exp()


def _top_p_entropy(p: float, logp: Tensor, token: Tensor) -> Tensor:
    return nucleus_entropy(logp, p=p)


def _certainty(t: float, logp: Tensor, token: Tensor) -> Tensor:
    tempered = logp / t
    highest = tempered.amax(-1) - tempered.logsumexp(-1)
    return (1.0 + highest / math.log(logp.shape[-1])).clamp(0.0, 1.0)


def _log_kept(kappa: float, logp: Tensor, token: Tensor) -> Tensor:
    return log_kept_mass(logp, kappa=kappa)


PLAIN: dict[str, Reduction] = {
    "logp": _logp,
    "entropy": _entropy,
    "sum_sq": _sum_sq,
    "mean_logp": _mean_logp,
    "max_prob": _max_prob,
}
# name -> (reduction whose first argument is the parameter, the parameter's name, its domain in words, and as a test)
PARAMETRISED: dict[str, tuple[Callable[[float, Tensor, Tensor], Tensor], str, str, Callable[[float], bool]]] = {
    "top_p_entropy": (_top_p_entropy, "p", "above 0 and up to 1", lambda p: 0 < p <= 1),
    "certainty": (_certainty, "t", "above 0", lambda t: t > 0),
    "log_kept": (_log_kept, "kappa", "from 0 to 1", lambda kappa: 0 <= kappa <= 1),
}


@lru_cache(maxsize=64)
def reduction(name: str) -> Reduction:
    """The reduction of ([n,V] float32 log-probabilities, [n] token ids) to [n] that `name` stands for.

    Raises ValueError for a name that does not exist, or a parameter that is missing or outside its domain.
    """
    stem, value = parse(name)
    if stem in PLAIN and value is None:
        return PLAIN[stem]
    if stem not in PARAMETRISED:
        names = [*PLAIN, *(f"{stem}({spec[1]})" for stem, spec in PARAMETRISED.items())]
        raise ValueError(f"unknown token stream {name}: expected one of {', '.join(sorted(names))}")
    reduce, called, domain, inside = PARAMETRISED[stem]
    if value is None or not inside(value):
        raise ValueError(f"token stream {name}: expected {stem}({called}) with {called} {domain}")
    return partial(reduce, value)


def parse(name: str) -> tuple[str, float | None]:
    """`top_p_entropy(0.8)` -> ("top_p_entropy", 0.8), `logp` -> ("logp", None); inverse of `rlvr.types.stream`."""
    found = _NAME.fullmatch(name)
    if found is None:
        return name, None
    try:
        return found[1], float(found[2])
    except ValueError:
        return name, None
