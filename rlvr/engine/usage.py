"""What a sampler did between two readings: how many requests were in flight, tokens decoded, prefix-cache hits.

    running = sum over intervals (requests in flight * seconds) / (seconds with any in flight)

Seconds without a request do not count in `running`; how many there were is told by `sampling` beside `time/generate`.
Everything that was asked of the sampler counts, evaluations too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rlvr.types import Metrics

Counts = Mapping[str, float]


@dataclass
class Usage:
    """Counts of one replica since its start."""

    clock: Callable[[], float] = time.perf_counter
    running: int = 0  # requests in flight
    queries: int = 0  # prompt tokens looked up in the prefix cache
    hits: int = 0  # and found there
    decoded: int = 0
    _busy: float = 0.0  # seconds with any request in flight
    _area: float = 0.0  # request seconds
    _since: float = 0.0

    def begin(self) -> None:
        """A request is in flight."""
        self._advance()
        self.running += 1

    def end(self) -> None:
        """A request is no longer in flight."""
        self._advance()
        self.running -= 1

    def counts(self) -> dict[str, float]:
        """All of them up to now; but for `running` they only grow."""
        self._advance()
        return {
            "running": float(self.running),
            "prefix_queries": float(self.queries),
            "prefix_hits": float(self.hits),
            "decoded": float(self.decoded),
            "busy_seconds": self._busy,
            "request_seconds": self._area,
        }

    def _advance(self) -> None:
        now = self.clock()
        if self.running:
            self._busy += now - self._since
            self._area += self.running * (now - self._since)
        self._since = now


def usage_metrics(before: Sequence[Counts], after: Sequence[Counts]) -> Metrics:
    """What replicas did between two readings; `before` is empty for a replica that is new.

    `running`: mean requests in flight at a replica that has any; `sampling`: seconds with any, mean over replicas;
    `decoded`: tokens; `prefix_hits`: prompt tokens read from the prefix cache, `prefix_share`: of all prompt tokens.
    """

    def total(key: str) -> float:
        return sum(b[key] - a.get(key, 0.0) for a, b in zip(before, after, strict=True))

    busy, queries = total("busy_seconds"), total("prefix_queries")
    return {
        "time/running": total("request_seconds") / busy if busy else 0.0,
        "time/sampling": busy / len(after) if after else 0.0,
        "time/decoded": total("decoded"),
        "time/prefix_hits": total("prefix_hits"),
        "time/prefix_share": total("prefix_hits") / queries if queries else 0.0,
    }
