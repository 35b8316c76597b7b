"""A covariance S of trajectories in space and time as its eigenvectors: functions of it, and what follows from them.

Space modes V_mj of the zonal wavenumbers m, each with the eigenvectors of its own T x T covariance in time, and a rest
outside the modes of a wavenumber that is alike in every direction (``models.stationary``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

__all__ = ["CovarianceFunction", "TrajectoryCovariance", "from_waves", "to_waves"]

Number = float | Tensor


@dataclass(frozen=True, eq=False)
class TrajectoryCovariance:
    """S of T states, by its eigenvectors: space modes times those of their T x T covariances in time.

    Parameters
    ----------
    modes : Tensor, complex, shape (waves, n, rank)
        V_m, of the n numbers of one wavenumber.
    time, rest : Tensor, complex, shape (waves, rank, T, T) and (waves, 1, T, T)
        Eigenvectors of G_mj and of G_m, in columns.
    values, rest_values : Tensor, shape (waves, rank, T) and (waves, 1, T)
        Their eigenvalues.
    fold : Tensor, shape (waves,)
        How many wavenumbers of the real transform each stands for: itself and its conjugate, or itself alone.
    zonal : bool
        Whether the last axis of the latent is transformed; else all its numbers are one block.
    """

    modes: Tensor
    time: Tensor
    rest: Tensor
    values: Tensor
    rest_values: Tensor
    fold: Tensor
    zonal: bool

    def apply(self, v: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """f(S) v for v (M, T, *latent); ``function`` is of eigenvalues (1 or M, waves, modes, T), to the like."""
        f = function(self.rest_values[None]).permute(1, 0, 2, 3)
        g = function(self.values[None]).permute(1, 2, 3, 0)
        time = lambda a: self.time @ ((self._adjoint[0] @ a) * g)  # noqa: E731
        return self.product(v, time, (self.rest * f) @ self._adjoint[1])

    def product(self, v: Tensor, time: Callable[[Tensor], Tensor], rest: Tensor) -> Tensor:
        """(sum_j V_j V_j^H (F_j - F) + F) v, with ``time`` the F_j of coefficients, and ``rest`` F, of whole times."""
        M = len(v)
        x = to_waves(v, self.zonal)
        a = (x.flatten(1, 2) @ self.conjugate_modes).unflatten(1, (M, -1))
        # The modes are gone through once on the way back.
        change = time(a.permute(0, 3, 2, 1)).permute(0, 3, 2, 1) - rest @ a
        y = rest @ x + (change.flatten(1, 2) @ self.modes.mT).unflatten(1, (M, -1))
        return from_waves(y, (M, y.shape[2], *v.shape[2:]), self.zonal)

    def of(self, function: Callable[[Tensor], Tensor]) -> "CovarianceFunction":
        """f(S) for many products; ``function`` is one for all members."""
        return CovarianceFunction(self, function)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it is made of."""
        return (
            self.modes,
            self.time,
            self.rest,
            self.values,
            self.rest_values,
            self.fold,
            *self._adjoint,
            self.conjugate_modes,
        )

    @cached_property
    def conjugate_modes(self) -> Tensor:
        """The conjugate of ``modes``."""
        return self.modes.conj().resolve_conj()

    @cached_property
    def _adjoint(self) -> tuple[Tensor, Tensor]:
        """The adjoints of ``time`` and ``rest``."""
        return self.time.mH.resolve_conj(), self.rest.mH.resolve_conj()

    def wiener(self, v_t: Tensor, alpha: Number, sigma: Number) -> Tensor:
        """E[v | v_t] = alpha S (alpha^2 S + sigma^2)^-1 v_t; the level's numbers are floats or (M, 1, 1, 1)."""
        return self.apply(v_t, lambda s: alpha * s / (alpha**2 * s + sigma**2))

    def spread(self, rho2: Tensor) -> Tensor:
        """Root mean variance of v given v_t, over all its numbers, at noise-to-signal ratios squared (M,)."""
        rho2 = rho2[:, None, None, None]
        left = lambda s: (s * rho2 / (s + rho2)).sum((2, 3))  # noqa: E731
        n, rank = self.modes.shape[1:]
        each = left(self.values[None]) + (n - rank) * left(self.rest_values[None])
        return ((each * self.fold).sum(1) / (n * self.fold.sum() * self.values.shape[-1])).sqrt()


@dataclass(frozen=True, eq=False)
class CovarianceFunction:
    """v -> f(S) v, also from some times to some: what others there are costs nothing."""

    covariance: TrajectoryCovariance
    function: Callable[[Tensor], Tensor]
    _made: dict[tuple[int, int], tuple[Any, ...]] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, v: Tensor) -> Tensor:
        """f(S) v for v (M, T, *latent)."""
        return self.between(v)

    def between(self, v: Tensor, given: Tensor | None = None, wanted: Tensor | None = None) -> Tensor:
        """The states of ``wanted`` of f(S) u, where u is v (M, given, *latent) and 0 at other times; None is all."""
        time, rest = self._matrices(given, wanted)
        return self.covariance.product(v, lambda a: time @ a, rest)

    def _matrices(self, given: Tensor | None, wanted: Tensor | None) -> tuple[Tensor, Tensor]:
        """f of the covariances in time of every mode and of the rest, (waves, modes or 1, wanted, given)."""
        key = id(given), id(wanted)
        if key not in self._made:
            S, both = self.covariance, []
            for vectors, values in ((S.time, S.values), (S.rest, S.rest_values)):
                left = vectors if wanted is None else vectors[..., wanted, :]
                right = (vectors if given is None else vectors[..., given, :]).mH
                both.append(left @ (self.function(values[None])[0][..., None] * right))
            self._made[key] = given, wanted, *both  # the times are kept, so that no others have their number
        return self._made[key][2:]


def to_waves(v: Tensor, zonal: bool) -> Tensor:
    """v (M, T, c, h, w) -> complex (waves, M, T, n)."""
    x = (
        torch.fft.rfft(v, norm="ortho")
        if zonal
        else torch.complex(v, torch.zeros_like(v)).flatten(2, 4)[..., None, None]
    )
    return x.flatten(2, 3).permute(3, 0, 1, 2).contiguous()


def from_waves(x: Tensor, shape: Sequence[int], zonal: bool) -> Tensor:
    """The inverse, to ``shape``."""
    if not zonal:
        return x[0].real.reshape(tuple(shape))
    x = x.permute(1, 2, 3, 0).unflatten(2, tuple(shape[2:4]))
    return torch.fft.irfft(x, n=shape[4], norm="ortho")
