"""From one grid to another, with what is missing left out: bilinear where the target is finer, means where coarser.

A coarser target takes the mean of the linear interpolant over its cell, per direction,

    y_i = 1 / (2 r) integral over |t - t_i| < r of sum_j x_j phi_j(t) dt,   phi_j the hat functions of the source,

with r half the target's spacing; r = 0 is linear interpolation. Either gives a linear field back exactly. Cells are
symmetric about their point and end where the source does, half a spacing beyond its last points, or at a pole. What is
missing has no weight: a value is the mean over what is known, and known where that is half of its weight or more.
"""

import numpy as np
import torch
from torch import Tensor, nn

from lsda_fast.errors import InputError
from lsda_fast.grid import Grid

__all__ = ["Regrid"]


class Regrid(nn.Module):
    """Fields on the grid ``source`` to ``target``; NaN is missing, on either.

    Parameters
    ----------
    source, target : Grid

    Raises
    ------
    InputError
        A source of one row or one column.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, source: Grid, target: Grid) -> None:
        super().__init__()
        if min(source.shape) < 2:
            raise InputError(f"a grid of {source.shape} points came; accepted to regrid from are two rows and columns")
        self.shape = source.shape
        to_poles = 90 - float(source.latitude[0]), 90 + float(source.latitude[-1])
        rows = _weights(-source.latitude, -target.latitude, ends=to_poles)
        # Not among the weights on disk: both grids are in the settings, and these follow.
        self.register_buffer("rows", torch.from_numpy(rows).float(), persistent=False)
        columns = torch.from_numpy(_longitude_weights(source, target)).float()
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(M, C, H_source, W_source) -> (M, C, H_target, W_target)."""
        if tuple(x.shape[2:]) != self.shape:
            raise InputError(f"fields of {tuple(x.shape[2:])} points came; accepted are {self.shape}")
        known = ~x.isnan()
        total, weight = self._weighted(torch.where(known, x, 0)), self._weighted(known.to(x.dtype))
        enough = weight > 0.5 - 1e-6
        return torch.where(enough, total / torch.where(enough, weight, 1), torch.nan)

    def _weighted(self, x: Tensor) -> Tensor:
        return self.rows.to(x) @ x @ self.columns.to(x).mT


def _longitude_weights(source: Grid, target: Grid) -> np.ndarray:
    """(W_target, W_source), round the globe where the source goes round it."""
    longitude, wanted = source.longitude, target.longitude
    if not source.periodic:
        middle = (longitude[0] + longitude[-1]) / 2
        return _weights(longitude, (wanted - middle + 180) % 360 - 180 + middle, spacing=_spacing(wanted))
    thrice = np.concatenate([longitude - 360, longitude, longitude + 360])
    weights = _weights(thrice, (wanted - longitude[0]) % 360 + longitude[0], spacing=_spacing(wanted))
    return weights.reshape(len(wanted), 3, -1).sum(1)


def _weights(
    source: np.ndarray,
    target: np.ndarray,
    spacing: float | None = None,
    ends: tuple[float, float] = (np.inf, np.inf),
) -> np.ndarray:
    """Weights (target, source) of ascending coordinates; none where the target lies beyond the source's outer cells.

    ``ends``: how far the axis goes on before the first and behind the last point of the source; what is no more than
    a spacing belongs to its outer cells.
    """
    own, spacing = _spacing(source), _spacing(target) if spacing is None else spacing
    half = spacing / 2 if spacing > 1.001 * own else 0.0
    low, high = source[0], source[-1]
    before, after = (end if end <= 1.001 * own else own / 2 + 1e-6 * own for end in ends)
    weights = np.zeros((len(target), len(source)))
    for row, point in zip(weights, target):
        if low - before <= point <= high + after:
            t = min(max(point, low), high)
            reach = min(half, t - low, high - t)
            inside = source[(source > t - reach) & (source < t + reach)]
            nodes = np.concatenate([[t - reach], inside, [t + reach]])
            # The interpolant is linear between nodes, so that the trapezium rule is exact.
            steps = np.diff(nodes) / 2 if reach > 0 else np.full(1, 0.5)
            share = np.append(steps, 0) + np.append(0, steps)
            row += share / share.sum() @ _hats(source, nodes)
    return weights


def _hats(source: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The hat functions of the source at points inside it, (at, source)."""
    upper = np.clip(np.searchsorted(source, at), 1, len(source) - 1)
    share = (at - source[upper - 1]) / (source[upper] - source[upper - 1])
    values, each = np.zeros((len(at), len(source))), np.arange(len(at))
    values[each, upper - 1], values[each, upper] = 1 - share, share
    return values


def _spacing(axis: np.ndarray) -> float:
    return float(np.median(np.abs(np.diff(axis)))) if len(axis) > 1 else 0.0
