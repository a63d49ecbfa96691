"""Every random choice of a run derives from named parts: (run seed, purpose, draw, sample ...)."""

from __future__ import annotations

import hashlib

Part = str | int


def stable_seed(*parts: Part) -> int:
    """A 63-bit seed from `parts`; the same on every machine, process and Python version.

    Each part enters with its type and length, so `(1, "2")`, `("1", 2)` and `("12",)` differ.
    """
    digest = hashlib.sha256()
    for part in parts:
        text = f"i{int(part)}" if not isinstance(part, str) else f"s{part}"
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return int.from_bytes(digest.digest()[:8], "little") >> 1
