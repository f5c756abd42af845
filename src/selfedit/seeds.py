"""The one place that draws seeds: any worker computes the same one, so a retry is safe."""

from __future__ import annotations

import hashlib


def derive(*parts: int | str) -> int:
    """A seed in [0, 2**63) from its parts, such as (run seed, context id, "candidate", index, "repeat", repeat)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
