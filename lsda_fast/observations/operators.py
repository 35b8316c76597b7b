"""Observation operators H: normalised state x (M, C, H, W) -> what would be observed (M, P), physical units.

Made from a table of stations, a mask, a matrix or any differentiable function of the state, and stacked. All but
functions are stencils: sparse affine maps (``affine``).
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
from lsda_fast.observations.affine import SparseAffine, moments, si_moments
from lsda_fast.observations.stencil import build_stencil, matrix_stencil
from lsda_fast.observations.table import Observations

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
        mean, std = si_moments(normalization, layout)
        s = build_stencil(observations.frame, layout)
        H, W = layout.grid.shape
        used = s.reasons == ""
        frame = observations.frame[used]
        return StencilOperator.of_physical(
            s.channel * (H * W) + s.cell,
            s.interpolation * s.sign,
            (mean, std),
            layout.shape,
            interpolation=s.interpolation,
            dtype=dtype,
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
        mean_std = moments(normalization, shape)
        given = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
        if given.dtype != bool or given.shape not in (shape, shape[1:]):
            raise InputError(f"mask {given.dtype} {given.shape} given; accepted: bool {shape} or {shape[1:]}")
        index = np.flatnonzero(np.broadcast_to(given, shape))[:, None]
        ones = np.ones(index.shape)
        return StencilOperator.of_physical(index, ones, mean_std, shape, interpolation=ones, dtype=dtype)

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
        mean_std = moments(normalization, shape)
        matrix = np.asarray(matrix, dtype=np.float64) if isinstance(matrix, (list, tuple)) else matrix
        size = tuple(int(n) for n in matrix.shape)
        if len(size) != 2 or size[1] != np.prod(shape):
            raise InputError(f"matrix {size} given; accepted: (P, {np.prod(shape)}) for a state {shape}")
        index, coefficient = matrix_stencil(matrix)
        magnitude = np.abs(coefficient)
        total = magnitude.sum(1, keepdims=True)
        share = magnitude / np.where(total > 0, total, 1.0)
        return StencilOperator.of_physical(index, coefficient, mean_std, shape, interpolation=share, dtype=dtype)

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
        table = ("used", "reasons", "observation", "values", "std")
        return StencilOperator.concatenated(
            stencils, **{name: np.concatenate([getattr(o, name) for o in stencils]) for name in table}
        )


class StencilOperator(SparseAffine, ObservationOperator):
    """A sparse affine map, y_p = offset_p + sum_k weight_pk x[index_pk], and the rows of the table that it observes.

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
        cells: Tensor | None = None,
        used: np.ndarray | None = None,
        reasons: np.ndarray | None = None,
        observation: np.ndarray | None = None,
        values: np.ndarray | None = None,
        std: np.ndarray | None = None,
    ) -> None:
        super().__init__(index, weight, offset, shape, interpolation=interpolation, cells=cells)
        P = self.size
        self.used = np.ones(P, dtype=bool) if used is None else used
        self.reasons = np.full(P, "", dtype=object) if reasons is None else reasons
        self.observation = np.arange(P) if observation is None else observation
        self.values = np.full(P, np.nan) if values is None else values
        self.std = np.full(P, np.nan) if std is None else std


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
