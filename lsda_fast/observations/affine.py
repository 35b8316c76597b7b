"""Sparse affine maps from a normalised state x (M, C, H, W) to numbers y (M, P) in physical units.

y_p = offset_p + sum_k weight_pk x[index_pk], with weight_pk = interpolation_pk scale_pk: the interpolation is the share
of a point in its observation, the scale what one unit of the normalised channel is worth in the observation's units
(the channel's standard deviation), and offset_p = sum_k interpolation_pk mean_pk. From this follow the tangent, its
adjoint, Cressman's increment (1959), and the variance that an error of the state brings: of a mean over n cells less
than of one cell, as far as the errors in a block are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.grid import Normalization
from lsda_fast.layout import StateLayout
from lsda_fast.observations.units import Conversion, to_si

__all__ = ["SparseAffine", "moments", "si_moments"]


class SparseAffine:
    """y_p = offset_p + sum_k weight_pk x[index_pk].

    Parameters
    ----------
    index : Tensor of int64, shape (P, K)
        Into the flattened state C*H*W; padding has weight 0.
    weight : Tensor, shape (P, K)
    offset : Tensor, shape (P,)
        Physical units.
    shape : tuple (C, H, W)
    interpolation : Tensor, shape (P, K), optional
        The share in [0, 1] that a point has in its observation; from the weights when not given.
    cells : Tensor, shape (P,), optional
        Over how many cells of the grid an observation is a mean; 1, points, when not given.
    """

    def __init__(
        self,
        index: Tensor,
        weight: Tensor,
        offset: Tensor,
        shape: tuple[int, int, int],
        *,
        interpolation: Tensor | None = None,
        cells: Tensor | None = None,
    ) -> None:
        self.index, self.weight, self.offset, self.shape = index, weight, offset, shape
        self.round_up: Callable[[int], int] | None = None
        self.size = len(index)
        if interpolation is None:
            share = weight.abs()
            interpolation = share / share.sum(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
        self.interpolation = interpolation
        self.cells = torch.ones_like(offset) if cells is None else cells

    @property
    def touched(self) -> Tensor:
        """``index``, with the heaviest point in the places of those without weight: they are not looked at."""
        if not self.weight.numel():
            return self.index
        heaviest = self.index.gather(1, self.weight.abs().argmax(1, keepdim=True))
        return torch.where(self.weight != 0, self.index, heaviest)

    @classmethod
    def of_physical(
        cls,
        index: np.ndarray,
        coefficient: np.ndarray,
        mean_std: tuple[np.ndarray, np.ndarray],
        shape: tuple[int, int, int],
        *,
        interpolation: np.ndarray,
        dtype: torch.dtype,
        **rest: Any,
    ) -> Self:
        """y_p = sum_k coefficient_pk X[index_pk], arrays (P, K), of the physical state X = mean + std x."""
        channel = index // (shape[1] * shape[2])
        mean, std = (values[channel] for values in mean_std)
        return cls(
            torch.from_numpy(index),
            torch.from_numpy(coefficient * std).to(dtype),
            torch.from_numpy((coefficient * mean).sum(1)).to(dtype),
            shape,
            interpolation=torch.from_numpy(interpolation).to(dtype),
            **rest,
        )

    @classmethod
    def concatenated(cls, maps: Sequence[SparseAffine], **rest: Any) -> Self:
        """The rows of several maps of states of one shape, one after the other."""
        K = max(a.index.shape[1] for a in maps)

        def padded(parts: Sequence[Tensor]) -> Tensor:
            return torch.cat([torch.nn.functional.pad(part, (0, K - part.shape[1])) for part in parts])

        return cls(
            padded([a.index for a in maps]),
            padded([a.weight for a in maps]),
            torch.cat([a.offset for a in maps]),
            maps[0].shape,
            interpolation=padded([a.interpolation for a in maps]),
            cells=torch.cat([a.cells for a in maps]),
            **rest,
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same map elsewhere, or in another precision."""
        moved = copy(self)
        moved.index = self.index.to(device)
        moved.weight, moved.offset, moved.interpolation, moved.cells = (
            t.to(device=device, dtype=dtype) for t in (self.weight, self.offset, self.interpolation, self.cells)
        )
        return moved

    def padded(self, round_up: Callable[[int], int]) -> Self:
        """The same map with zeros after its rows, ``round_up(P)`` in all; what is laid out of it is rounded up too."""
        more = round_up(self.size) - self.size
        filled = copy(self)
        filled.round_up, filled.size = round_up, self.size + more
        filled.index = torch.cat([self.index, self.index[:1].expand(more, -1)])
        filled.weight, filled.offset, filled.interpolation = (
            torch.cat([t, t.new_zeros(more, *t.shape[1:])]) for t in (self.weight, self.offset, self.interpolation)
        )
        filled.cells = torch.cat([self.cells, self.cells.new_ones(more)])
        return filled

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What the map is made of."""
        return self.index, self.weight, self.offset, self.interpolation

    @property
    def channel(self) -> Tensor:
        """Channel of each stencil point, (P, K)."""
        return self.index // (self.shape[1] * self.shape[2])

    @property
    def scale(self) -> Tensor:
        """Observed units per normalised unit of the channel, signed, (P, K); 1 where the share is 0."""
        touched = self.interpolation > 0
        return torch.where(touched, self.weight / torch.where(touched, self.interpolation, 1.0), 1.0)

    def __call__(self, x: Tensor) -> Tensor:
        """H(x), (M, P), for x (M, C, H, W)."""
        return self.tangent(x) + self.offset

    def tangent(self, x: Tensor) -> Tensor:
        """The linear part H' of H: (M, C, H, W) -> (M, P)."""
        gathered = x.flatten(1).index_select(1, self.index.flatten())
        return (gathered.reshape(len(x), *self.index.shape) * self.weight).sum(-1)

    def adjoint(self, r: Tensor) -> Tensor:
        """The transpose of the linear part: r (M, P) -> (M, C, H, W)."""
        return self._scatter(r[:, :, None] * self.weight).reshape(len(r), *self.shape)

    def spread(self, residual: Tensor, used: Tensor | None = None) -> Tensor:
        """Cressman increment: at each point the mean of the residuals (M, P) that touch it, by their shares.

        Parameters
        ----------
        residual : Tensor, shape (M, P)
        used : Tensor of bool, shape (P,), optional
            Which observations have a part in it; all when not given.

        Returns
        -------
        Tensor, shape (M, C, H, W)
            Normalised units; 0 where nothing touches. For an observation of one grid point,
            x + spread(y - H(x)) takes its value there.
        """
        share = self.interpolation if used is None else self.interpolation * used[:, None]
        total = self._scatter(share[None])
        increment = self._scatter(residual[:, :, None] * (share / self.scale))
        mean = torch.where(total > 0, increment / torch.where(total > 0, total, 1.0), 0.0)
        return mean.reshape(len(residual), *self.shape)

    def representativeness(self, error: Tensor) -> Tensor:
        """Variance (P,), physical units squared, that a normalised error of the state brings.

        Parameters
        ----------
        error : Tensor, shape (C,) or (B, C)
            RMSE of the channels, in row i of their means over blocks of 2^i x 2^i cells. A mean over n cells takes
            the variance linearly in log n between the rows, and the last row's beyond. From one row alone it takes
            that of a point, an upper bound, as of errors that are the same all over the block. The errors of several
            channels or states in one observation are always taken so.
        """
        rows = torch.atleast_2d(error)
        place = (0.5 * self.cells.log2()).clamp(0, len(rows) - 1)[:, None]
        below = place.floor().long()
        fewer, more = (
            (rows[row, self.channel] * self.scale).square() for row in (below, (below + 1).clamp(max=len(rows) - 1))
        )
        return (self.interpolation * torch.lerp(fewer, more, (place - below).to(fewer))).sum(-1)

    def _scatter(self, points: Tensor) -> Tensor:
        """Sum (M, P, K) into the flattened state (M, C*H*W)."""
        zeros = points.new_zeros(len(points), int(np.prod(self.shape)))
        return zeros.index_add(1, self.index.flatten(), points.flatten(1))


def moments(normalization: Normalization, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (C,) of the channels; InputError when they are not the state's."""
    mean, std = (np.asarray(a, dtype=np.float64) for a in (normalization.mean, normalization.std))
    if mean.shape != (shape[0],) or std.shape != (shape[0],):
        raise InputError(f"normalization of {mean.size} channels given; accepted: {shape[0]}, as the state has")
    return mean, std


def si_moments(normalization: Normalization, layout: StateLayout) -> tuple[np.ndarray, np.ndarray]:
    """`moments` in SI units; a channel whose units are not understood keeps its own."""
    mean, std = moments(normalization, layout.shape)
    # The layout may hold hPa or degC; observations are SI.
    units = [to_si(channel.units) or Conversion(1.0, 0.0, "") for channel in layout.channels]
    scale, shift = (np.array([getattr(u, part) for u in units]) for part in ("scale", "shift"))
    return scale * mean + shift, scale * std
