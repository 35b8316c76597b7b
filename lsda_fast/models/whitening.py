"""The control-variable transform: u = S^-1/2 (z - z_b), S the covariance of the background's latent error.

Variational assimilation's change of variable (Bannister 2008, doi:10.1002/qj.339): in ``u`` the prior is close to
N(0, I), so an isotropic latent covariance is the full stationary one.

- ``FullWhitening``: S = V diag(s) V' in full, for latents without a grid (a few hundred numbers). u are the coordinates
  along the eigenvectors, leading ones first.
- ``zonal_whitening.ZonalWhitening``: statistics that are the same at every longitude.
- ``DiagonalWhitening``: one variance per latent, for latents of any shape.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple, Self

import torch
from torch import Tensor

from lsda_fast.models.keeping import Keeping

__all__ = ["Coloring", "DiagonalWhitening", "FullWhitening", "Linear", "Whitening"]


Linear = Callable[[Tensor], Tensor]


class Coloring(NamedTuple):
    """S^1/2, its adjoint, S, and what is computed once for all of them beyond the whitening's own buffers."""

    color: Linear
    adjoint: Linear
    covariance: Linear
    tensors: tuple[Tensor, ...] = ()


class Whitening(Keeping):
    """Base: ``color`` is S^1/2, ``whiten`` its inverse, both linear on (M, *latent)."""

    def coloring(self) -> Coloring:
        """``color``, ``color_adjoint`` and S, what they share computed once: for the many products of an analysis."""
        return Coloring(self.color, self.color_adjoint, lambda z: self.color(self.color_adjoint(z)))

    def wide_coloring(self) -> Coloring:
        """``coloring`` in float64; all that it reads is among its tensors."""
        wide = self.kept("wide", self._widened)
        coloring = wide.coloring()
        return coloring._replace(tensors=(*wide.buffers(), *coloring.tensors))

    def _widened(self) -> Self:
        """A copy in float64; what follows from the settings alone is so to the last digit."""
        return deepcopy(self).double()

    def color(self, u: Tensor) -> Tensor:
        """S^1/2 u."""
        raise NotImplementedError  # pragma: no cover - every subclass has its own

    def color_adjoint(self, z: Tensor) -> Tensor:
        """(S^1/2)' z."""
        raise NotImplementedError  # pragma: no cover - every subclass has its own

    def inflate(self, factor: float) -> None:
        """Multiply S by a factor."""
        raise NotImplementedError  # pragma: no cover - every subclass has its own

    def whiten(self, z: Tensor) -> Tensor:
        """S^-1/2 z."""
        raise NotImplementedError  # pragma: no cover - every subclass has its own


class DiagonalWhitening(Whitening):
    """One standard deviation per latent."""

    std: Tensor

    def __init__(self, latent_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("std", torch.ones(tuple(latent_shape)))

    @torch.no_grad()
    def fit(self, errors: Tensor) -> None:
        """Estimate from background errors (T, *latent)."""
        self.std.copy_(errors.square().mean(0).sqrt().clamp_min(1e-6))

    def inflate(self, factor: float) -> None:
        """Multiply S by a factor."""
        self.std.mul_(factor**0.5)

    def color(self, u: Tensor) -> Tensor:
        """S^1/2 u."""
        return u * self.std

    def color_adjoint(self, z: Tensor) -> Tensor:
        """(S^1/2)' z."""
        return z * self.std

    def whiten(self, z: Tensor) -> Tensor:
        """S^-1/2 z."""
        return z / self.std


class FullWhitening(Whitening):
    """Eigenvectors of the full covariance; latents (k, 1, 1) or any shape, flattened."""

    vectors: Tensor
    variance: Tensor

    def __init__(self, latent_shape: tuple[int, ...]) -> None:
        super().__init__()
        k = math.prod(latent_shape)
        self.register_buffer("vectors", torch.eye(k))
        self.register_buffer("variance", torch.ones(k))

    @torch.no_grad()
    def fit(self, errors: Tensor) -> None:
        """Estimate from background errors (T, *latent), about zero."""
        flat = errors.flatten(1).double()
        variance, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
        self.variance.copy_(variance.flip(0).clamp_min(1e-9 * variance[-1]))
        self.vectors.copy_(vectors.flip(1))

    def inflate(self, factor: float) -> None:
        """Multiply S by a factor."""
        self.variance.mul_(factor)

    def color(self, u: Tensor) -> Tensor:
        """S^1/2 u."""
        return ((u.flatten(1) * self.variance.sqrt()) @ self.vectors.T).reshape(u.shape)

    def color_adjoint(self, z: Tensor) -> Tensor:
        """(S^1/2)' z."""
        return ((z.flatten(1) @ self.vectors) * self.variance.sqrt()).reshape(z.shape)

    def whiten(self, z: Tensor) -> Tensor:
        """S^-1/2 z."""
        return ((z.flatten(1) @ self.vectors) * self.variance.rsqrt()).reshape(z.shape)
