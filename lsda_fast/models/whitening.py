"""The control-variable transform: u = S^-1/2 (z - z_b), S the covariance of the background's latent error.

Variational assimilation's change of variable (Bannister 2008, doi:10.1002/qj.339): in ``u`` the prior is close to
N(0, I), so an isotropic latent covariance is the full stationary one.

- ``FullWhitening``: S = V diag(s) V' in full, for latents without a grid (a few hundred numbers). u are the coordinates
  along the eigenvectors, leading ones first.
- ``ZonalWhitening``: statistics that are the same at every longitude. After a Fourier transform in longitude S is block
  diagonal, one complex block over (channel, row) per wavenumber m: S_m = D^1/2 (V_m (L_m - d_m) V_m^H + d_m) D^1/2,
  with D the variance of each (channel, row) and V_m the leading eigenvectors. The root is the symmetric one, so u keeps
  the places of z.
- ``DiagonalWhitening``: one variance per latent, for latents of any shape.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lsda_fast.errors import InputError

__all__ = ["Coloring", "DiagonalWhitening", "FullWhitening", "Whitening", "ZonalWhitening", "row_taper"]


Linear = Callable[[Tensor], Tensor]


class Coloring(NamedTuple):
    """S^1/2, its adjoint, and what is computed once for both beyond the whitening's own buffers."""

    color: Linear
    adjoint: Linear
    tensors: tuple[Tensor, ...] = ()


class Whitening(nn.Module):
    """Base: ``color`` is S^1/2, ``whiten`` its inverse, both linear on (M, *latent)."""

    def coloring(self) -> Coloring:
        """``color`` and ``color_adjoint``, what they share computed once: for the many products of an analysis."""
        return Coloring(self.color, self.color_adjoint)

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


class ZonalWhitening(Whitening):
    """Low-rank plus scaled identity per zonal wavenumber.

    Parameters
    ----------
    latent_shape : (channels, rows, columns)
        On a grid that wraps in longitude; an even number of columns.
    rank : int
        Eigenvectors kept per wavenumber.
    reach : float
        Half-width, in rows, of the taper that removes sampling noise between distant rows.

    Raises
    ------
    InputError
        An odd number of columns.
    """

    analysis: Tensor
    synthesis: Tensor
    std: Tensor
    real: Tensor
    imaginary: Tensor
    variance: Tensor
    floor: Tensor

    def __init__(self, latent_shape: tuple[int, int, int], rank: int = 64, reach: float = 6.0) -> None:
        super().__init__()
        channels, rows, columns = latent_shape
        if columns % 2:
            raise InputError(f"zonal whitening of {columns} columns; accepted is an even number of columns")
        self.reach = reach
        waves, n = columns // 2 + 1, channels * rows
        angle = 2.0 * math.pi * torch.outer(torch.arange(columns), torch.arange(waves)).double() / columns
        scale = columns**-0.5
        fold = torch.full((waves,), 2.0, dtype=torch.float64)
        fold[0] = fold[-1] = 1.0
        transform = scale * torch.stack([angle.cos(), -angle.sin()], dim=1)
        self.register_buffer("analysis", transform.flatten(1).mT.float().contiguous(), persistent=False)
        self.register_buffer("synthesis", (transform * fold).flatten(1).mT.float().contiguous(), persistent=False)
        self.register_buffer("std", torch.ones(channels, rows, 1))
        self.register_buffer("real", torch.zeros(waves, n, min(rank, n)))
        self.register_buffer("imaginary", torch.zeros(waves, n, min(rank, n)))
        self.register_buffer("variance", torch.ones(waves, min(rank, n)))
        self.register_buffer("floor", torch.ones(waves))

    @torch.no_grad()
    def fit(self, errors: Tensor) -> None:
        """Estimate from background errors (T, channels, rows, columns), about zero."""
        channels, rows, _ = errors.shape[1:]
        self.std.copy_(errors.square().mean((0, 3)).sqrt().clamp_min(1e-6)[..., None])
        taper = torch.from_numpy(row_taper(rows, self.reach)).repeat(channels, channels).to(errors.device)
        rank = self.variance.shape[1]
        modes = ((errors / self.std) @ self.analysis.mT).unflatten(3, (2, -1))
        for m in range(len(self.floor)):
            mode = torch.complex(modes[..., 0, m], modes[..., 1, m]).flatten(1)
            covariance = (mode.T @ mode.conj() / len(mode)).to(torch.complex128) * taper
            values, vectors = torch.linalg.eigh(covariance)
            values, vectors = values.flip(0).clamp_min(1e-6), vectors.flip(1)[:, :rank]
            rest = values[rank:].mean() if len(values) > rank else values[-1]
            self.floor[m] = rest
            self.variance[m] = values[:rank]
            self.real[m], self.imaginary[m] = vectors.real.float(), vectors.imag.float()

    def inflate(self, factor: float) -> None:
        """Multiply S by a factor."""
        self.std.mul_(factor**0.5)

    def coloring(self) -> Coloring:
        """See ``Whitening``: D^1/2 goes into the eigenvectors, for it is the same in every column."""
        floor, gain, V = self._blocks(0.5)
        D = self.std.flatten()
        DV, D_floor = D[:, None] * V, D * floor
        color = lambda u: self._spectral(u, V, gain, DV, D_floor)  # noqa: E731
        return Coloring(color, lambda z: self._spectral(z, DV, gain, V, D_floor), (V, gain, DV, D_floor))

    def _blocks(self, power: float) -> tuple[Tensor, Tensor, Tensor]:
        """d^power, L^power - d^power, and the eigenvectors' real and imaginary parts side by side."""
        floor = self.floor[:, None, None] ** power
        return floor, self.variance[:, None] ** power - floor, torch.cat([self.real, self.imaginary], dim=-1)

    def _spectral(self, x: Tensor, right: Tensor, gain: Tensor, left: Tensor, floor: Tensor) -> Tensor:
        """(left gain right^H + floor) x of every wavenumber's block, in real arithmetic."""
        M, waves, rank = len(x), len(self.floor), gain.shape[-1]
        # (waves, real or imaginary part and M, channels rows): the eigenvectors are read once for both parts.
        modes = (self.analysis @ x.flatten(1, 2).mT).unflatten(1, (2, waves)).permute(2, 1, 0, 3)
        flat = modes.reshape(waves, 2 * M, -1)
        down = flat @ right
        a = gain * (down[:, :M, :rank] + down[:, M:, rank:])
        b = gain * (down[:, M:, :rank] - down[:, :M, rank:])
        weights = torch.cat([torch.cat([a, -b], dim=-1), torch.cat([b, a], dim=-1)], dim=1)
        modes = torch.baddbmm(floor * flat, weights, left.mT).reshape(modes.shape).permute(2, 1, 0, 3).flatten(1, 2)
        return (modes.mT @ self.synthesis).reshape(x.shape)

    def color(self, u: Tensor) -> Tensor:
        """S^1/2 u."""
        return self.coloring().color(u)

    def color_adjoint(self, z: Tensor) -> Tensor:
        """(S^1/2)' z; the spectral part is symmetric."""
        return self.coloring().adjoint(z)

    def whiten(self, z: Tensor) -> Tensor:
        """S^-1/2 z."""
        floor, gain, V = self._blocks(-0.5)
        return self._spectral(z / self.std, V, gain, V, floor)


def row_taper(rows: int, reach: float) -> "np.ndarray[Any, Any]":
    """Gaspari & Cohn's (1999) compact fifth-order taper over row distance, (rows, rows)."""
    r = np.abs(np.subtract.outer(np.arange(rows), np.arange(rows))) / reach
    near = 1 - 5 / 3 * r**2 + 5 / 8 * r**3 + r**4 / 2 - r**5 / 4
    far = 4 - 5 * r + 5 / 3 * r**2 + 5 / 8 * r**3 - r**4 / 2 + r**5 / 12 - 2 / (3 * np.maximum(r, 1e-9))
    return np.where(r <= 1, near, np.where(r <= 2, far, 0.0))
