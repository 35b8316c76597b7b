"""``models.whitening`` of statistics that are the same at every longitude: low rank and a floor per zonal wavenumber.

After a Fourier transform in longitude S is block diagonal, one complex block over (channel, row) per wavenumber m,

    S_m = D^1/2 (V_m (L_m - d_m) V_m^H + d_m) D^1/2,

with D the variance of each (channel, row) and V_m the leading eigenvectors. The root is the symmetric one, so u keeps
the places of z.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.kernels.packed import BLOCK, packed
from lsda_fast.kernels.zonal_product import ZONAL, zonal_adjoint, zonal_product
from lsda_fast.models.whitening import Coloring, Linear, Whitening

__all__ = ["ZonalCovariance", "ZonalWhitening", "row_taper"]

_FEW = 2  # members, for which a product waits for its matrices

Root = tuple[Tensor, Tensor, Tensor, Tensor]


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

    exact = ("std", "variance")

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
        self._fitted: torch.dtype | None = None  # of a copy in float64, what the statistics are in
        waves, n = columns // 2 + 1, channels * rows
        for name, transform in zip(("analysis", "synthesis"), _transforms(columns)):
            self.register_buffer(name, transform.float(), persistent=False)
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
        """See ``Whitening``; S = D^1/2 (V H V^H + d) D^1/2, H = L - d only as far as V is orthonormal to rounding."""
        channels, rows, _ = self.std.shape
        place = self.real.new_empty(1, rows, self.analysis.shape[1], channels)
        likes = [self.analysis, self.synthesis, self.real, self.variance.repeat(1, 2), self.imaginary, self.floor]
        likes += [self.std, self.std]
        if ZONAL.native(place, likes, []):
            return _through_kernels(*self.kept("packed", self._packed))
        V, gain, DV, D_floor, VT, DVT, H, DD_floor = tensors = self.kept("plain", self._plain)
        return Coloring(
            lambda u: self._spectral(u, V, partial(_scaled, gain), DVT, D_floor),
            lambda z: self._spectral(z, DV, partial(_scaled, gain), VT, D_floor),
            lambda z: self._spectral(z, DV, lambda c: c @ H, DVT, DD_floor),
            tensors,
        )

    def _plain(self) -> tuple[Tensor, ...]:
        """What ``coloring`` multiplies with in plain torch."""
        V, gain, DV, D_floor = self._root()
        # Once more as they are multiplied from the left: products of a few rows then take half the time on a CPU.
        VT, DVT = V.mT.contiguous(), DV.mT.contiguous()
        return V, gain, DV, D_floor, VT, DVT, self._squared(V, gain), D_floor.square()

    def _packed(self) -> "tuple[_Matrices, _Matrices, _Matrices]":
        """The matrices of S^1/2, its transpose and S for ``zonal_product``, channels last."""
        channels, rows, _ = self.std.shape
        floor, gain, V = self._blocks(0.5)
        transforms = (self.analysis, self.synthesis.mT.contiguous())
        # As ``packed`` has them, with places before channels.
        split = V.unflatten(1, (channels, rows))
        right = split.unflatten(3, (-1, BLOCK)).permute(0, 3, 2, 1, 4).flatten(2, 3).contiguous()
        left = split.unflatten(1, (-1, BLOCK)).permute(0, 3, 1, 4, 2).flatten(1, 2).contiguous()
        H = packed(self._squared(V, gain))
        gain = torch.cat([gain, gain], dim=-1).flatten(1)
        root, square = (t.flatten(1).expand(-1, channels * rows).contiguous() for t in (floor, self.floor[:, None]))
        D, none = self.std[..., 0].mT.flatten().contiguous(), self.std.new_empty(0)
        # For few members V as it was fitted, the same numbers in half as many bytes.
        few = (right, left) if self._fitted is None else (right.to(self._fitted), left.to(self._fitted))
        both = [
            (
                [*transforms, right, gain, left, root, none, D],
                [*transforms, right, gain, left, root, D, none],
                [*transforms, right, H, left, square, D, D],
            )
            for right, left in (few, (right, left))
        ]
        first, second, third = (_Matrices(*either) for either in zip(*both))
        return first, second, third

    def _widened(self) -> Self:
        wide = super()._widened()
        wide.analysis, wide.synthesis = (t.to(self.std.device) for t in _transforms(self.analysis.shape[1]))
        wide._fitted = self.std.dtype
        return wide

    def _root(self) -> Root:
        """V, L^1/2 - d^1/2, D^1/2 V and D^1/2 d^1/2: D^1/2 goes into V, for it is the same in every column."""
        floor, gain, V = self._blocks(0.5)
        D = self.std.flatten()
        return V, gain, D[:, None] * V, D * floor

    def _squared(self, V: Tensor, gain: Tensor) -> Tensor:
        """H of (V gain V^H + floor)^2 = V H V^H + floor^2, as a real matrix (waves, 2 rank, 2 rank) from the right."""
        rank = gain.shape[-1]
        V = torch.complex(V[..., :rank], V[..., rank:])
        H = gain * (V.mH @ V) * gain.mT + torch.diag_embed(2 * gain * self.floor[:, None, None].sqrt())[:, 0]
        return torch.cat([torch.cat([H.real, -H.imag], dim=-1), torch.cat([H.imag, H.real], dim=-1)], dim=-2)

    def _blocks(self, power: float) -> tuple[Tensor, Tensor, Tensor]:
        """d^power, L^power - d^power, and the eigenvectors' real and imaginary parts side by side."""
        floor = self.floor[:, None, None] ** power
        return floor, self.variance[:, None] ** power - floor, torch.cat([self.real, self.imaginary], dim=-1)

    def _spectral(self, x: Tensor, right: Tensor, middle: Linear, left: Tensor, floor: Tensor) -> Tensor:
        """(left middle right^H + floor) x of every wavenumber's block, in real arithmetic.

        ``left`` comes transposed; ``middle`` takes the coefficients (waves, M, 2 rank), real parts first.
        """
        M, waves = len(x), len(self.floor)
        # (waves, M and real or imaginary part, channels rows): the eigenvectors are read once for both parts.
        modes = (self.analysis @ x.flatten(1, 2).mT).unflatten(1, (2, waves)).permute(2, 0, 1, 3)
        flat = modes.reshape(waves, 2 * M, -1)
        rr, ri, ir, ii = (flat @ right).reshape(waves, M, 4, -1).unbind(2)
        a, b = middle(torch.cat([rr + ii, ir - ri], dim=-1)).chunk(2, dim=-1)
        weights = torch.cat([a, -b, b, a], dim=-1).reshape(waves, 2 * M, -1)
        # In place: baddbmm would copy what it adds to.
        product = (weights @ left).addcmul_(floor, flat)
        modes = product.reshape(modes.shape).permute(1, 2, 0, 3).flatten(1, 2)
        return (modes.mT @ self.synthesis).reshape(x.shape)

    def color(self, u: Tensor) -> Tensor:
        """S^1/2 u."""
        V, gain, DV, D_floor = self._root()
        return self._spectral(u, V, partial(_scaled, gain), DV.mT, D_floor)

    def color_adjoint(self, z: Tensor) -> Tensor:
        """(S^1/2)' z; the spectral part is symmetric."""
        V, gain, DV, D_floor = self._root()
        return self._spectral(z, DV, partial(_scaled, gain), V.mT, D_floor)

    def whiten(self, z: Tensor) -> Tensor:
        """S^-1/2 z."""
        floor, gain, V = self._blocks(-0.5)
        return self._spectral(z / self.std, V, partial(_scaled, gain), V.mT, floor)


class _Matrices(NamedTuple):
    """Of ``zonal_product``, for few members and for many: to the same bits."""

    few: list[Tensor]
    many: list[Tensor]

    def of(self, members: int) -> list[Tensor]:
        """Those that are faster for so many."""
        return self.few if members <= _FEW else self.many


@dataclass(frozen=True, eq=False)
class ZonalCovariance:
    """z -> S z through ``zonal_product``, with its matrices by the number of members."""

    square: Callable[[int], list[Tensor]]

    def __call__(self, z: Tensor) -> Tensor:
        """The product."""
        square = self.square(len(z))
        return _last(lambda z: zonal_product(z, square, square), z)


def _through_kernels(root: _Matrices, transposed: _Matrices, square: _Matrices) -> Coloring:
    def product(operation: Any, u: Tensor) -> Tensor:
        return operation(u, root.of(len(u)), transposed.of(len(u)))

    return Coloring(
        partial(_last, partial(product, zonal_product)),
        lambda z: _last(partial(product, zonal_adjoint), z).contiguous(),
        ZonalCovariance(square.of),
        tuple(dict.fromkeys(t for matrices in (root, transposed, square) for side in matrices for t in side)),
    )


def _last(operation: Linear, x: Tensor) -> Tensor:
    """Of x (M, channels, rows, columns), with channels last."""
    return operation(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)


def _scaled(gain: Tensor, coefficients: Tensor) -> Tensor:
    """Real and imaginary parts (waves, M, 2 rank), times the gain of their mode."""
    return (coefficients.unflatten(-1, (2, -1)) * gain[:, :, None]).flatten(-2)


def _transforms(columns: int) -> tuple[Tensor, Tensor]:
    """The Fourier transform of rows as a matrix (2 waves, columns), real parts first, and its inverse, in float64."""
    waves = columns // 2 + 1
    angle = 2.0 * math.pi * torch.outer(torch.arange(columns), torch.arange(waves)).double() / columns
    fold = torch.full((waves,), 2.0, dtype=torch.float64)
    fold[0] = fold[-1] = 1.0
    transform = columns**-0.5 * torch.stack([angle.cos(), -angle.sin()], dim=1)
    return transform.flatten(1).mT.contiguous(), (transform * fold).flatten(1).mT.contiguous()


def row_taper(rows: int, reach: float) -> "np.ndarray[Any, Any]":
    """Gaspari & Cohn's (1999) compact fifth-order taper over row distance, (rows, rows)."""
    r = np.abs(np.subtract.outer(np.arange(rows), np.arange(rows))) / reach
    near = 1 - 5 / 3 * r**2 + 5 / 8 * r**3 + r**4 / 2 - r**5 / 4
    far = 4 - 5 * r + 5 / 3 * r**2 + 5 / 8 * r**3 - r**4 / 2 + r**5 / 12 - 2 / (3 * np.maximum(r, 1e-9))
    return np.where(r <= 1, near, np.where(r <= 2, far, 0.0))
