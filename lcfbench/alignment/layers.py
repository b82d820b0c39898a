"""The sharer layers that each receiver layer reads.

>>> layer_map("terminal", 6, 4)
[0, 0, 0, 1, 2, 3]
"""

from __future__ import annotations

from lcfbench.errors import unknown

MAPS = ("terminal", "proportional", "nearest")


def layer_sources(
    scheme: str, receiver_layers: int, sharer_layers: int, count: int = 1
) -> list[list[int] | None]:
    """Returns for every receiver layer the `count` sharer layers nearest to its counterpart.

    Best first; None where there is no sharer layer. terminal: the last layers meet; surplus
    receiver layers read sharer layer 0; further sources lie below, then above. proportional: same
    relative depth, rounded half to even. nearest: C2C's other map (arXiv 2510.03215v2), same
    relative depth; ties go as its floating-point distances fall, then to the lower layer. Raises
    UserError for another name.
    """
    L, S = receiver_layers, sharer_layers
    if scheme not in MAPS:
        raise unknown("layer map", scheme, MAPS, "lcfbench train --help")

    def order(t: int, s: int) -> tuple[bool, float]:
        if scheme == "nearest":
            return False, abs((t / (L - 1) if L > 1 else 0.0) - (s / (S - 1) if S > 1 else 0.0))
        if scheme == "proportional":
            return False, abs(s - (round(t * (S - 1) / (L - 1)) if L > 1 else S - 1))
        meets = min(max(S - L + t, 0), S - 1)
        return s > meets, abs(s - meets)

    return [sorted(range(S), key=lambda s, t=t: order(t, s))[:count] or None for t in range(L)]  # type: ignore[misc]


def layer_map(scheme: str, receiver_layers: int, sharer_layers: int) -> list[int]:
    """Returns the sharer layer that each receiver layer reads, see `layer_sources`."""
    sources = layer_sources(scheme, receiver_layers, sharer_layers)
    assert all(sources), f"a sharer of {sharer_layers} layers has nothing to read"
    return [s[0] for s in sources if s]
