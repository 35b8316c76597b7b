"""Operators on whole fields of one state (C, H, W): averages over blocks of cells and over layers; missing pixels.

A row is a weighted mean over channels times a weighted mean over cells,

    y_(r, q) = sum_c V_rc sum_k B_qk x[c, cell_qk],        sum_k B_qk = 1

Coarse averages: V the identity, B the area-weighted mean over a block of f x f cells; where f does not divide the grid,
the last block of a row or column is what is left, and smaller.

Layer averages, what a sounder of a broad layer sees: the mean over mass between two pressures,

    V = 1 / (p_b - p_t) integral_(p_t)^(p_b) x dp

of the profile that is linear in log pressure (as stations interpolate; or in pressure) between the levels: exact for
any such profile.

A row is a mean over n_q = 1 / sum_k B_qk^2 cells, by which an error of the state counts less (``representativeness``).
Over the channels of V nothing is taken off: errors of neighbouring levels are alike.

NaN in an observed field is not observed, and counted with a reason (``observing``).
"""

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch

from lsda_fast.errors import InputError
from lsda_fast.grid import Normalization
from lsda_fast.layout import StateLayout
from lsda_fast.observations.affine import moments
from lsda_fast.observations.columns import is_fill, reject
from lsda_fast.observations.operators import StencilOperator

__all__ = ["Blocks", "blocks", "field_averages", "layer_weights", "observing", "without"]

MISSING = "missing in the observed field"


@dataclass(frozen=True)
class Blocks:
    """Means over cells.

    Parameters
    ----------
    cells : numpy.ndarray of int64, shape (Q, k)
        Flat index into H*W.
    weights : numpy.ndarray, shape (Q, k)
        1 in sum; padding has 0.
    shape : tuple
        Rows and columns of the blocks, Q in all.
    """

    cells: np.ndarray
    weights: np.ndarray
    shape: tuple[int, int]


def blocks(shape: tuple[int, int], factor: int, area: np.ndarray | None = None) -> Blocks:
    """Blocks of ``factor`` x ``factor`` cells of a grid (H, W), the last ones smaller where it does not divide it.

    Parameters
    ----------
    shape : (H, W)
    factor : int
        1 is every cell by itself.
    area : numpy.ndarray, shape (H,), optional
        Area of a cell by row (``Grid.area_weights``); equal when not given.

    Raises
    ------
    InputError
        A factor below 1 or beyond the grid.
    """
    H, W = shape
    if not isinstance(factor, Integral) or not 1 <= factor <= max(H, W):
        raise InputError(f"averages over {factor} x {factor} cells given; accepted: 1 .. {max(H, W)} on {H} x {W}")
    area = np.ones(H) if area is None else np.asarray(area, dtype=np.float64).clip(min=1e-12)  # none at a pole's row
    rows, cols = -(-H // factor), -(-W // factor)
    step = np.arange(factor)
    y = (np.arange(rows)[:, None] * factor + step)[:, None, :, None]
    x = (np.arange(cols)[:, None] * factor + step)[None, :, None, :]
    inside = (y < H) & (x < W)
    y, x = np.minimum(y, H - 1), np.minimum(x, W - 1)
    weights = np.where(inside, area[y], 0.0).reshape(rows * cols, -1)
    # Padding points to the block's first cell, so that nothing else is touched.
    cells = np.where(inside, y * W + x, (y * W + x)[:, :, :1, :1]).reshape(rows * cols, -1)
    used = weights.any(axis=0)
    return Blocks(cells[:, used], (weights / weights.sum(1, keepdims=True))[:, used], (rows, cols))


def layer_weights(levels: Any, top: float, bottom: float, *, profile: str = "log_pressure") -> np.ndarray:
    """Weights (L,) of the levels in the mean over mass between the pressures ``top`` and ``bottom``, 1 in sum.

    Parameters
    ----------
    levels : array (L,)
        Pressures in any order, hPa.
    top, bottom : float
        hPa, top < bottom, within the levels.
    profile : {"log_pressure", "pressure"}
        In what the profile is linear between two levels.

    Raises
    ------
    InputError
        A layer without thickness or beyond the levels, or another profile.
    """
    p = np.asarray(levels, dtype=np.float64)
    order = np.argsort(p)
    p = p[order]
    if profile not in ("log_pressure", "pressure"):
        raise InputError(f"profile {profile!r} given; accepted: log_pressure, pressure")
    if not (len(p) > 1 and p[0] <= top < bottom <= p[-1]):
        raise InputError(f"layer {top:g}..{bottom:g} hPa given; accepted: top < bottom, of the levels {p.tolist()} hPa")
    a, b = np.clip(top, p[:-1], p[1:]), np.clip(bottom, p[:-1], p[1:])
    # Integral over dp of the way s from the upper level to the lower one, 0 to 1.
    if profile == "pressure":
        way = ((b - p[:-1]) ** 2 - (a - p[:-1]) ** 2) / (2.0 * np.diff(p))
    else:
        inner = lambda q: q * (np.log(q / p[:-1]) - 1.0)  # noqa: E731
        way = (inner(b) - inner(a)) / np.diff(np.log(p))
    sorted_weights = np.zeros(len(p))
    sorted_weights[1:] += way
    sorted_weights[:-1] += (b - a) - way
    weights = np.empty(len(p))
    weights[order] = sorted_weights / (bottom - top)
    return weights


def layer_rows(layout: StateLayout, variable: str, top: float, bottom: float, **options: Any) -> np.ndarray:
    """A row (1, C) of V: the mean of ``variable`` over a layer; InputError where it has no levels."""
    where = [i for i, c in enumerate(layout.channels) if c.variable == variable and c.level is not None]
    if len(where) < 2:
        raise InputError(f"variable {variable!r} has {len(where)} levels; accepted for a layer: two or more")
    row = np.zeros((1, len(layout.channels)))
    row[0, where] = layer_weights([layout.channels[i].level for i in where], top, bottom, **options)
    return row


def field_averages(
    shape: tuple[int, int, int],
    normalization: Normalization,
    cells: Blocks,
    channels: Any = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> StencilOperator:
    """The module's equation, in the channels' own units, row r by row r over all blocks.

    Parameters
    ----------
    shape : (C, H, W)
    normalization : Normalization
    cells : Blocks
    channels : array (R, C) of float, or sequence of int, optional
        V, or the channels that are seen each by itself; all of them when not given.

    Raises
    ------
    InputError
        Rows of another length, channels that are not there, or a normalization for other channels.
    """
    C, H, W = shape
    V = np.eye(C)[_positions(channels, C)] if channels is None or np.ndim(channels) == 1 else np.asarray(channels)
    if V.ndim != 2 or V.shape[1] != C or not len(V):
        raise InputError(f"channel weights {V.shape} given; accepted: (R, {C}), R of 1 or more")
    taps = max(int((V != 0).sum(1).max()), 1)
    channel = np.argsort(V == 0, axis=1, kind="stable")[:, :taps]
    vertical = np.take_along_axis(V, channel, axis=1)
    R, Q = len(V), len(cells.cells)
    index = channel[:, None, :, None] * (H * W) + cells.cells[None, :, None, :]
    coefficient = (vertical[:, None, :, None] * cells.weights[None, :, None, :]).reshape(R * Q, -1)
    total = np.abs(coefficient).sum(1, keepdims=True)
    return StencilOperator.of_physical(
        index.reshape(R * Q, -1),
        coefficient,
        moments(normalization, shape),
        shape,
        interpolation=np.abs(coefficient) / np.where(total > 0, total, 1.0),
        cells=torch.from_numpy(np.tile(1.0 / np.square(cells.weights).sum(1), R)).to(dtype),
        dtype=dtype,
    )


def observing(operator: StencilOperator, values: Any, std: Any) -> StencilOperator:
    """The operator with what it observed; rows of NaN and of fill values are left out, and their reason says so.

    Parameters
    ----------
    operator : StencilOperator
    values : array of P numbers, of any shape
        In the operator's units; NaN, or masked, where missing.
    std : array (P,), or one number
        Standard deviation of their errors.

    Raises
    ------
    InputError
        Another number of values, or a standard deviation that is not positive.
    """
    given, error = np.ma.filled(np.ma.asarray(values, np.float64), np.nan).ravel(), np.asarray(std, np.float64)
    if len(given) != operator.size or error.shape not in ((), (operator.size,)):
        raise InputError(f"{given.size} values and std {error.shape} given; accepted: {operator.size} of each")
    if not (np.isfinite(error) & (error > 0)).all():
        raise InputError("a standard deviation that is not positive given; accepted: finite numbers above zero")
    reasons = np.where(np.isfinite(given), "", MISSING).astype(object)
    reject(reasons, is_fill(given), lambda x: f"value {x:g} is a fill value", given)
    used = reasons == ""
    found = {"values": given[used], "std": np.broadcast_to(error, given.shape)[used]}
    return _rows(operator, used, used=used, reasons=reasons, observation=np.flatnonzero(used), **found)


def without(operator: StencilOperator, rows: np.ndarray, reason: str) -> StencilOperator:
    """The operator less some of its used rows, by position among them, whose reason is this one."""
    keep = np.ones(operator.size, bool)
    keep[rows] = False
    used, reasons = operator.used.copy(), operator.reasons.copy()
    gone = np.flatnonzero(used)[~keep]
    used[gone], reasons[gone] = False, reason
    found = {name: getattr(operator, name)[keep] for name in ("observation", "values", "std")}
    return _rows(operator, keep, used=used, reasons=reasons, **found)


def _rows(operator: StencilOperator, keep: np.ndarray, **table: np.ndarray) -> StencilOperator:
    """Some of the rows, with what is told of them."""
    where = torch.from_numpy(np.flatnonzero(keep)).to(operator.index.device)
    index, weight, offset, interpolation, cells = (
        getattr(operator, name)[where] for name in ("index", "weight", "offset", "interpolation", "cells")
    )
    return StencilOperator(index, weight, offset, operator.shape, interpolation=interpolation, cells=cells, **table)


def _positions(channels: Any, C: int) -> np.ndarray:
    where = np.arange(C) if channels is None else np.asarray(channels)
    if not np.issubdtype(where.dtype, np.integer) or not len(where) or where.min() < 0 or where.max() >= C:
        raise InputError(f"channels {where.tolist()} given; accepted: positions 0 .. {C - 1}, at least one")
    return where
