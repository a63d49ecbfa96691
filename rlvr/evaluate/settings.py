"""How each benchmark is sampled unless the recipe or the command says otherwise, and who samples it so.

A published score belongs to its settings: temperature, top-p, the limit on tokens and the number of samples move a
small benchmark by points. A base model and what was trained from it are to be evaluated with the same ones; for claims
about pass@k at large k use temperature 1 and top-p 1, since a lower temperature hides what the model can do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rlvr.config import DEFAULT
from rlvr.recipe import Recipe

R1 = "DeepSeek-R1 (arXiv 2501.12948, section 3: T 0.6, top-p 0.95, 32768 tokens)"
LENGTHS = ("evaluate.max_tokens", "sampling.max_tokens")
OWN = "the recipe's `evaluate` and `sampling`, or their defaults"


@dataclass(frozen=True)
class Setting:
    """n samples a task for pass@k, drawn so; `source` is where the settings come from."""

    n: int
    k: tuple[int, ...]
    temperature: float
    top_p: float
    max_tokens: int
    source: str


_COMPETITION = Setting(32, (1, 4, 16), 0.6, 0.95, 32768, f"{R1}; n = 32 as DAPO's avg@32 (arXiv 2503.14476)")
_LARGE = Setting(4, (1, 2), 0.6, 0.95, 32768, f"{R1}; n = 4: hundreds of questions need fewer samples each")
BENCHMARKS: Mapping[str, Setting] = {
    **dict.fromkeys(("aime24", "aime25", "amc23", "hmmt"), _COMPETITION),
    **dict.fromkeys(("math500", "minerva", "olympiadbench"), _LARGE),
}


def is_written(key: str, written: Mapping[str, str]) -> bool:
    """Whether somebody wrote this very key, and not only another one of its block."""
    return any(place != DEFAULT for leaf, place in written.items() if leaf == key or leaf.startswith(f"{key}."))


def setting(dataset: str, recipe: Recipe, written: Mapping[str, str]) -> Setting:
    """What `recipe` says of a dataset: keys that somebody wrote, then the benchmark's, then the recipe's defaults.

    `written` says where each key of the recipe came from (`config.Resolved.sources`). Of a benchmark's own k those
    beyond n are left out.
    """
    asked, training = recipe.evaluate, recipe.sampling
    own = Setting(asked.n, asked.k, asked.temperature, asked.top_p, asked.max_tokens or training.max_tokens, OWN)
    known = BENCHMARKS.get(dataset.partition("#")[0])
    if known is None:
        return own
    keys = {"n": "evaluate.n", "k": "evaluate.k", "temperature": "evaluate.temperature", "top_p": "evaluate.top_p"}
    changed = {name: vars(own)[name] for name, key in keys.items() if is_written(key, written)}
    if any(is_written(key, written) for key in LENGTHS):
        changed["max_tokens"] = own.max_tokens
    source = f"{known.source}; changed by the recipe or the command: {', '.join(sorted(changed))}" if changed else None
    made = replace(known, **changed, source=source or known.source)
    return made if "k" in changed else replace(made, k=tuple(k for k in known.k if k <= made.n) or (1,))
