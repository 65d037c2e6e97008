"""Numbers of the report as JSON: packed arrays, and single values with five digits."""

import base64
from typing import Any

import numpy as np

LARGEST = 32767
MISSING = -32768
"""What stands for NaN among packed values."""


def pack(values: np.ndarray) -> dict[str, Any]:
    """Values as base64 of little-endian 16-bit integers ``v`` times the step ``s``; -32768 is NaN.

    The error is at most half a step, a 65,534th of the largest absolute value.

    >>> pack(np.array([1.0, np.nan]))
    {'v': '/38AgA==', 's': 3.051850947599719e-05}
    """
    known = np.isfinite(values)
    peak = float(np.abs(values[known]).max(initial=0.0))
    step = peak / LARGEST if peak > 0 else 1.0
    whole = np.where(known, np.rint(np.where(known, values, 0.0) / step), MISSING).astype("<i2")
    return {"v": base64.b64encode(whole.tobytes()).decode("ascii"), "s": step}


def mean(values: np.ndarray) -> float:
    """Mean of the finite values; NaN where there are none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else np.nan


def number(value: float) -> float | None:
    """Five digits; None, which JSON has, for NaN, which it has not."""
    return float(f"{value:.5g}") if np.isfinite(value) else None


def numbers(values: np.ndarray) -> Any:
    """An array as nested lists of `number`."""
    if values.ndim == 1:
        return [number(value) for value in values.tolist()]
    return [numbers(part) for part in values]
