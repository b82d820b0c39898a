"""Many-dimensional entries in two dimensions, for the eye.

>>> own, mapped = plane([entries, translated])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def plane(clouds: Sequence[Tensor]) -> list[Any]:
    """The clouds, (T, p) each, on the first two principal axes of all of them together: numpy arrays (T, 2)."""
    import numpy as np

    arrays = [c.double().cpu().numpy() for c in clouds]
    centre = np.concatenate(arrays).mean(0)
    _, _, axes = np.linalg.svd(np.concatenate(arrays) - centre, full_matrices=False)
    signs = np.where(
        np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1) < 0, -1.0, 1.0
    )  # SVD leaves the sign open
    return [(a - centre) @ (axes * signs)[:2].T for a in arrays]
