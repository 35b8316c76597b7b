"""Observation operators H: normalised state x (M, C, H, W) -> what would be observed (M, P), physical units.

A stencil operator is a sparse affine map, y_p = offset_p + sum_k weight_pk x[index_pk], with
weight_pk = interpolation_pk scale_pk, where scale_pk is what one unit of the normalised channel is worth in
the observation's units (the channel's standard deviation), and offset_p = sum_k interpolation_pk mean_pk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.grid import Normalization
from lsda_fast.layout import StateLayout
from lsda_fast.observations.stencil import build_stencil, matrix_stencil
from lsda_fast.observations.table import Observations
from lsda_fast.observations.units import to_si

__all__ = ["FunctionOperator", "ObservationOperator", "StackedOperator", "StencilOperator"]


class ObservationOperator:
    """Anything that maps a normalised state (M, C, H, W) to observations (M, P)."""

    size: int

    def __call__(self, x: Tensor) -> Tensor:
        """H(x), shape (M, P), physical units, for x (M, C, H, W) normalised."""
        raise NotImplementedError

    @staticmethod
    def stations(
        observations: Observations,
        layout: StateLayout,
        normalization: Normalization,
        *,
        horizontal: str = "bilinear",
        vertical: str = "log_pressure",
        dtype: torch.dtype = torch.float32,
    ) -> StencilOperator:
        """Interpolation to points; P counts the rows of ``observations.frame`` that the model sees, in order.

        Returns
        -------
        StencilOperator
            K = 8, or 4 where no observation lies between levels. ``used``, ``reasons``: per row of the frame;
            ``observation``, ``values``, ``std``: per used one.

        Raises
        ------
        InputError
            Another interpolation than those accepted, or a normalization for other channels.
        """
        if horizontal != "bilinear" or vertical != "log_pressure":
            raise InputError(f"interpolation {horizontal!r}, {vertical!r} given; accepted: 'bilinear', 'log_pressure'")
        mean, std = _moments(normalization, layout.shape)
        # The layout may hold hPa or degC; observations are SI.
        si = [(1.0, 0.0) if c is None else (c.scale, c.shift) for c in (to_si(ch.units) for ch in layout.channels)]
        factor, shift = (np.array(column) for column in zip(*si))
        mean, std = factor * mean + shift, factor * std
        s = build_stencil(observations.frame, layout)
        signed = s.interpolation * s.sign
        H, W = layout.grid.shape
        used = s.reasons == ""
        frame = observations.frame[used]
        return StencilOperator(
            torch.from_numpy(s.channel * (H * W) + s.cell),
            torch.from_numpy(signed * std[s.channel]).to(dtype),
            torch.from_numpy((signed * mean[s.channel]).sum(1)).to(dtype),
            layout.shape,
            interpolation=torch.from_numpy(s.interpolation).to(dtype),
            used=used,
            reasons=s.reasons,
            observation=frame["observation"].to_numpy(dtype=np.int64),
            values=frame["value"].to_numpy(dtype=np.float64),
            std=frame["std"].to_numpy(dtype=np.float64),
        )

    @staticmethod
    def mask(
        mask: Any,
        layout_or_shape: StateLayout | tuple[int, int, int],
        normalization: Normalization,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> StencilOperator:
        """The state itself where ``mask``, bool (C, H, W) or (H, W) for every channel, is true; K = 1.

        The observations are in the order of the flattened state.

        Raises
        ------
        InputError
            A mask that is not bool, or of another shape.
        """
        shape = _shape(layout_or_shape)
        mean, std = _moments(normalization, shape)
        given = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
        if given.dtype != bool or given.shape not in (shape, shape[1:]):
            raise InputError(f"mask {given.dtype} {given.shape} given; accepted: bool {shape} or {shape[1:]}")
        index = np.flatnonzero(np.broadcast_to(given, shape))[:, None]
        channel = index // (shape[1] * shape[2])
        return StencilOperator(
            torch.from_numpy(index),
            torch.from_numpy(std[channel]).to(dtype),
            torch.from_numpy(mean[channel[:, 0]]).to(dtype),
            shape,
            interpolation=torch.ones(index.shape, dtype=dtype),
        )

    @staticmethod
    def linear(
        matrix: Any,
        layout_or_shape: StateLayout | tuple[int, int, int],
        normalization: Normalization,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> StencilOperator:
        """A matrix (P, C*H*W) on the flattened physical state; scipy.sparse, torch sparse, or dense.

        K is the longest row's number of non-zeros: torch's sparse products lack forward derivatives, stencils
        have them.

        Raises
        ------
        InputError
            A matrix of another width, or with numbers that are not finite.
        """
        shape = _shape(layout_or_shape)
        mean, std = _moments(normalization, shape)
        size = tuple(int(n) for n in matrix.shape)
        if len(size) != 2 or size[1] != np.prod(shape):
            raise InputError(f"matrix {size} given; accepted: (P, {np.prod(shape)}) for a state {shape}")
        index, coefficient = matrix_stencil(matrix)
        channel = index // (shape[1] * shape[2])
        total = np.abs(coefficient).sum(1, keepdims=True)
        return StencilOperator(
            torch.from_numpy(index),
            torch.from_numpy(coefficient * std[channel]).to(dtype),
            torch.from_numpy((coefficient * mean[channel]).sum(1)).to(dtype),
            shape,
            interpolation=torch.from_numpy(np.abs(coefficient) / np.where(total > 0, total, 1.0)).to(dtype),
        )

    @staticmethod
    def function(f: Callable[[Tensor], Tensor], size: int, normalization: Normalization) -> FunctionOperator:
        """Any differentiable ``f``: physical state (M, C, H, W) -> (M, size)."""
        return FunctionOperator(f, size, normalization)

    @staticmethod
    def stack(*operators: ObservationOperator) -> ObservationOperator:
        """All observations of ``operators``, one after the other; a StencilOperator where all of them are.

        Raises
        ------
        InputError
            None given, or stencils on states of different shapes.
        """
        if not operators:
            raise InputError("no operator given to stack; accepted: one or more")
        stencils = [o for o in operators if isinstance(o, StencilOperator)]
        if len(stencils) < len(operators):
            return StackedOperator(operators)
        if len({o.shape for o in stencils}) > 1:
            raise InputError(f"operators on states {sorted({o.shape for o in stencils})} given; accepted: one shape")
        K = max(o.index.shape[1] for o in stencils)

        def padded(name: str) -> Tensor:
            parts = [getattr(o, name) for o in stencils]
            return torch.cat([torch.nn.functional.pad(part, (0, K - part.shape[1])) for part in parts])

        return StencilOperator(
            padded("index"),
            padded("weight"),
            torch.cat([o.offset for o in stencils]),
            stencils[0].shape,
            interpolation=padded("interpolation"),
            **{
                name: np.concatenate([getattr(o, name) for o in stencils])
                for name in ("used", "reasons", "observation", "values", "std")
            },
        )


class StencilOperator(ObservationOperator):
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
    used, reasons : numpy.ndarray, shape (rows,), optional
        Which rows of the table are here, and why not, "" when used.
    observation, values, std : numpy.ndarray, shape (P,), optional
        Number in the table, observed value (NaN where there is none), standard deviation (NaN where unknown).
    """

    def __init__(
        self,
        index: Tensor,
        weight: Tensor,
        offset: Tensor,
        shape: tuple[int, int, int],
        *,
        interpolation: Tensor | None = None,
        used: np.ndarray | None = None,
        reasons: np.ndarray | None = None,
        observation: np.ndarray | None = None,
        values: np.ndarray | None = None,
        std: np.ndarray | None = None,
    ) -> None:
        self.index, self.weight, self.offset, self.shape = index, weight, offset, shape
        self.size = P = len(index)
        if interpolation is None:
            share = weight.abs()
            interpolation = share / share.sum(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
        self.interpolation = interpolation
        self.used = np.ones(P, dtype=bool) if used is None else used
        self.reasons = np.full(P, "", dtype=object) if reasons is None else reasons
        self.observation = np.arange(P) if observation is None else observation
        self.values = np.full(P, np.nan) if values is None else values
        self.std = np.full(P, np.nan) if std is None else std

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

    def spread(self, residual: Tensor) -> Tensor:
        """Cressman increment: at each point the mean of the residuals (M, P) that touch it, by their shares.

        Returns
        -------
        Tensor, shape (M, C, H, W)
            Normalised units; 0 where nothing touches. For an observation of one grid point,
            x + spread(y - H(x)) takes its value there.
        """
        total = self._scatter(self.interpolation[None])
        increment = self._scatter(residual[:, :, None] * (self.interpolation / self.scale))
        mean = torch.where(total > 0, increment / torch.where(total > 0, total, 1.0), 0.0)
        return mean.reshape(len(residual), *self.shape)

    def representativeness(self, error: Tensor) -> Tensor:
        """Variance (P,), physical units squared, of a normalised state error of RMSE ``error`` (C,)."""
        return (self.interpolation * (error[self.channel] * self.scale).square()).sum(-1)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> StencilOperator:
        """The same operator elsewhere, or in another precision."""
        weight, offset, interpolation = (
            t.to(device=device, dtype=dtype) for t in (self.weight, self.offset, self.interpolation)
        )
        return StencilOperator(
            self.index.to(device),
            weight,
            offset,
            self.shape,
            interpolation=interpolation,
            used=self.used,
            reasons=self.reasons,
            observation=self.observation,
            values=self.values,
            std=self.std,
        )

    def _scatter(self, points: Tensor) -> Tensor:
        """Sum (M, P, K) into the flattened state (M, C*H*W)."""
        zeros = points.new_zeros(len(points), int(np.prod(self.shape)))
        return zeros.index_add(1, self.index.flatten(), points.flatten(1))


class FunctionOperator(ObservationOperator):
    """A user's function of the physical state.

    Parameters
    ----------
    f : callable (M, C, H, W) -> (M, P)
    size : int
        P.
    normalization : Normalization
    """

    def __init__(self, f: Callable[[Tensor], Tensor], size: int, normalization: Normalization) -> None:
        self._f, self.size, self._normalization = f, size, normalization

    def __call__(self, x: Tensor) -> Tensor:
        """f(mean + std x), (M, P); InputError when f returns another shape."""
        y = self._f(self._normalization.denormalize(x))
        if y.shape != (len(x), self.size):
            raise InputError(f"the function returned {tuple(y.shape)}; accepted: ({len(x)}, {self.size})")
        return y


class StackedOperator(ObservationOperator):
    """Operators of any kind, one after the other."""

    def __init__(self, operators: tuple[ObservationOperator, ...]) -> None:
        self.operators = operators
        self.size = sum(o.size for o in operators)

    def __call__(self, x: Tensor) -> Tensor:
        """(M, P) with P the sum of the parts."""
        return torch.cat([o(x) for o in self.operators], dim=1)


def _shape(layout_or_shape: StateLayout | tuple[int, int, int]) -> tuple[int, int, int]:
    C, H, W = layout_or_shape if isinstance(layout_or_shape, tuple) else layout_or_shape.shape
    return int(C), int(H), int(W)


def _moments(normalization: Normalization, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    mean, std = (np.asarray(a, dtype=np.float64) for a in (normalization.mean, normalization.std))
    if mean.shape != (shape[0],) or std.shape != (shape[0],):
        raise InputError(f"normalization of {mean.size} channels given; accepted: {shape[0]}, as the state has")
    return mean, std
