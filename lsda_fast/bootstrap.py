"""Confidence intervals of skill: the circular block bootstrap (Kunsch 1989) of cases that follow each other in time."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lsda_fast.errors import InputError
from lsda_fast.scores import safe_ratio

__all__ = ["Ratio", "paired_bootstrap"]


class Ratio(NamedTuple):
    """A ratio and its confidence interval."""

    ratio: float
    low: float
    high: float


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    *,
    block: int | None = None,
    level: float = 0.9,
    samples: int = 2000,
    seed: int = 0,
) -> Ratio:
    """Ratio of two RMSE series over the same dates, sqrt(mean a^2 / mean b^2), with its interval.

    Parameters
    ----------
    a, b : (T,) RMSE per date, in time order; the same dates are drawn for both.
    block : dates per (circular) block, long enough to hold their correlation; None takes T^(1/3), rounded.
    level : probability of the interval.
    samples : number of resamples.

    Raises
    ------
    InputError
        Series of different length, shorter than 2 or not finite; b all zero; block or level out of range.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or a.size < 2:
        raise InputError(
            f"series of shapes {a.shape} and {b.shape} came, two of the same length (at least 2) are accepted"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all() and b.any()):
        raise InputError("the series must be finite, and the second one must not be zero at every date")
    T = a.size
    block = max(1, round(T ** (1 / 3))) if block is None else block
    if not (1 <= block <= T and 0 < level < 1 and samples >= 1):
        raise InputError(f"block={block}, level={level}, samples={samples} came; accepted are 1..{T}, (0, 1), above 0")
    random = np.random.default_rng(seed)
    start = random.integers(T, size=(samples, -(-T // block), 1))
    dates = ((start + np.arange(block)) % T).reshape(samples, -1)[:, :T]
    ratios = np.sqrt(safe_ratio((a**2)[dates].mean(1), (b**2)[dates].mean(1)))
    low, high = np.nanquantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return Ratio(float(np.sqrt(np.mean(a**2) / np.mean(b**2))), float(low), float(high))
