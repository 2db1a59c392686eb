"""Scalar functions for compiled loops, written so that a loop over them becomes vector instructions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.extending import overload

FASTMATH = {"contract", "reassoc"}
"""Sums may be regrouped and products fused; NaN and infinities keep their meaning."""


def exp(x: Any) -> Any:
    """e^x for x <= 88 in the type of ``x``: float32 to about one unit in the last place, 0 below -87; float64 exactly.

    The library's exp is a call per number; this one is Cephes' polynomial (Moshier 1992) on the reduced argument and a
    power of two put together from bits, twelve instructions that run on as many numbers at once as a register holds.
    """
    return math.exp(x)


@overload(exp)
def _exp(x: Any) -> Callable[[Any], Any]:
    if x == numba.float32:

        def single(x: Any) -> Any:
            y = np.float32(-87.0) if x < np.float32(-87.0) else x  # NaN stays NaN
            n = np.floor(y * np.float32(1.4426950408889634) + np.float32(0.5))
            r = (y - n * np.float32(0.693359375)) + n * np.float32(2.12194440e-4)
            p = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
            p = p * r + np.float32(8.3334519073e-3)
            p = p * r + np.float32(4.1665795894e-2)
            p = p * r + np.float32(1.6666665459e-1)
            p = p * r + np.float32(5.0000001201e-1)
            power = np.int32((np.int32(n) + 127) << 23).view(np.float32)
            return (p * r * r + r + np.float32(1.0)) * power

        return single
    return lambda x: math.exp(x)
