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

import torch
from torch import Tensor

from rlvr.objectives.entropy import entropy

Reduction = Callable[[Tensor, Tensor], Tensor]
NUCLEUS = 64  # tokens looked at first; rows whose nucleus is larger look at 16 times as many, and so on

_NAME = re.compile(r"(\w+)\((.+)\)")


def nucleus_entropy(logp: Tensor, *, p: float) -> Tensor:
    """Entropy in nats of the renormalised nucleus, [n,V] -> [n].

    The nucleus is the smallest set of most probable tokens whose mass is at least `p` (the token that crosses `p` is
    in it). Membership carries no gradient; the mass that renormalises does. `p` 1 is the whole distribution.
    No full sort: the largest few are enough for almost every row of a trained model. Where the distribution is near
    uniform over a large vocabulary the nucleus is thousands of tokens, and a row costs about as much as its sort.
    """
    if p >= 1.0:
        return entropy(logp)
    vocab, rows, k = logp.shape[-1], torch.arange(len(logp), device=logp.device), NUCLEUS
    places, values = [], []
    while len(rows):
        k = min(k, vocab)
        flat = logp.detach() if len(rows) == len(logp) else logp.detach()[rows]
        top = flat.topk(k).indices
        chosen = logp[rows[:, None], top]
        prob = chosen.detach().exp()
        below = prob.cumsum(-1) - prob  # mass of the more probable ones
        enough = (below[:, -1] + prob[:, -1] >= p) | (k == vocab)
        places.append(rows[enough])
        values.append(_renormalised_entropy(chosen[enough], below[enough] < p))
        rows, k = rows[~enough], k * 16
    return torch.cat(values)[torch.cat(places).argsort()] if values else logp.sum(-1)


def log_kept_mass(logp: Tensor, *, kappa: float) -> Tensor:
    """log of the mass of the tokens with pi >= kappa max pi, [n,V] -> [n]; the maximum itself is always among them."""
    threshold = logp.detach().amax(-1, keepdim=True) + (math.log(kappa) if kappa > 0 else -math.inf)
    return (logp.exp() * (logp >= threshold)).sum(-1).log()


def _renormalised_entropy(logp: Tensor, kept: Tensor) -> Tensor:
    """H = -sum q log q of q = pi / sum_kept pi; [n,k], bool [n,k] -> [n]."""
    return entropy(_only(logp, kept).log_softmax(-1))


def _only(logp: Tensor, kept: Tensor) -> Tensor:
    return torch.where(kept, logp, torch.full_like(logp, -math.inf))


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
