"""The linear-Gaussian model of a trajectory of latents: a covariance in space and time, stationary in time.

The variable is v = (z - mean) / std, place by place. On grids that wrap in longitude the statistics are the same at
every longitude: after a Fourier transform each zonal wavenumber m has, of its (channel, row) numbers, ``rank`` modes
V_m (the leading eigenvectors of their covariance) and a rest that is alike in every direction. A mode's amplitude has a
complex autocovariance g(l) = E[a(t + l) a(t)*], whose phase is how fast its waves travel, and over T states the
Hermitian Toeplitz covariance G with G[t, s] = g(t - s):

    S = sum_mj  V_mj V_mj^H (x) G_mj  +  sum_m (1 - V_m V_m^H) (x) G_m

That rest is alike in every direction when a number's unit ``std`` is what the modes leave of it: of its variance all
that is not theirs, but at least the share ``floor`` of it all (Gaussian factor analysis, two rounds). In units of the
whole variance, ``floor=1``, numbers that the modes know well would have as much of the rest as those that they do not.

g is estimated from training up to lag p, from the pairs that there are, and continued as the autoregression of order p
that has it, g(l) = sum_j phi_j g(l - j) (Yule-Walker), so that S is positive for every T. Without zonal symmetry the
same holds with all numbers of the latent in one block.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.models.keeping import Keeping
from lsda_fast.models.trajectory_covariance import TrajectoryCovariance, to_waves
from lsda_fast.models.zonal_whitening import row_taper

__all__ = ["StationaryTrajectories"]

_LEAST = 1e-6  # variance of a mode, in units of the numbers' own
_ROUNDS = 2  # of units and modes in turns
_EIGEN = 4  # arrays of the size of the eigenvectors in time that their making holds at once


class StationaryTrajectories(Keeping):
    """Mean, standard deviation, modes and autocovariances of latents; see the module.

    Parameters
    ----------
    latent_shape : (channels, rows, columns)
    zonal : bool
        Whether statistics are the same at every longitude.
    rank : int
        Modes kept per wavenumber.
    lags : int
        p, the largest lag that is estimated.
    reach : float, optional
        Half-width, in rows, of the taper that removes sampling noise between distant rows; zonal statistics alone.
    floor : float
        Above 0; 1 for units of the numbers' own standard deviation, which networks of the published kind expect.

    Raises
    ------
    InputError
        Numbers that are too small.
    """

    mean: Tensor
    std: Tensor
    real: Tensor
    imaginary: Tensor
    lag_real: Tensor
    lag_imaginary: Tensor
    rest_real: Tensor
    rest_imaginary: Tensor

    # A continuation that fits them is far from one that fits what rounding leaves of them.
    exact = ("mean", "std", "lag_real", "lag_imaginary", "rest_real", "rest_imaginary")

    def __init__(
        self,
        latent_shape: Sequence[int],
        zonal: bool = True,
        rank: int = 64,
        lags: int = 4,
        reach: float | None = None,
        floor: float = 1.0,
    ) -> None:
        super().__init__()
        if rank < 1 or lags < 1 or not 0 < floor <= 1:
            raise InputError(
                f"a trajectory covariance of rank {rank}, {lags} lags and floor {floor:g}; "
                "accepted are at least 1, and a floor above 0 of at most 1"
            )
        channels, rows, columns = latent_shape
        self.latent_shape, self.zonal, self.reach, self.floor = (channels, rows, columns), zonal, reach, floor
        waves, n = (columns // 2 + 1, channels * rows) if zonal else (1, channels * rows * columns)
        rank = min(rank, n)
        self.register_buffer("mean", torch.zeros(channels, rows, columns))
        self.register_buffer("std", torch.ones(channels, rows, 1 if zonal else columns))
        modes = torch.eye(n, rank).expand(waves, n, rank).clone()
        white = torch.zeros(lags + 1).index_fill_(0, torch.zeros(1, dtype=torch.long), 1.0)
        for name, value in (
            ("real", modes),
            ("imaginary", torch.zeros_like(modes)),
            ("lag_real", white.expand(waves, rank, -1).clone()),
            ("lag_imaginary", torch.zeros(waves, rank, lags + 1)),
            ("rest_real", white.expand(waves, 1, -1).clone()),
            ("rest_imaginary", torch.zeros(waves, 1, lags + 1)),
        ):
            self.register_buffer(name, value)

    def standardize(self, z: Tensor) -> Tensor:
        """v of latents (..., *latent)."""
        return (z - self.mean) / self.std

    def restore(self, v: Tensor) -> Tensor:
        """Latents of v (..., *latent)."""
        return self.mean + self.std * v

    @property
    def _fold(self) -> Tensor:
        """See ``TrajectoryCovariance``."""
        waves, columns = len(self.real), self.latent_shape[2]
        fold = torch.full((waves,), 2.0, device=self.real.device)
        fold[0] = 1.0
        if not self.zonal or columns % 2 == 0:
            fold[-1] = 1.0
        return fold

    @torch.no_grad()
    def fit(self, z: Tensor, runs: Sequence[Tensor]) -> None:
        """Estimate from latents (N, *latent); ``runs`` are the indices of states that follow each other in time."""
        lags = self.lag_real.shape[-1] - 1
        if max(len(run) for run in runs) <= lags:
            raise InputError(
                f"no {lags + 1} states follow each other in training; accepted are more states or fewer lags"
            )
        z = z[torch.cat(list(runs))]
        bounds = torch.tensor([0] + [len(run) for run in runs]).cumsum(0).tolist()
        spans = list(pairwise(bounds))
        self.mean.copy_(z.mean(0))
        variance = (z - self.mean).square().mean(0)
        whole = (variance.mean(-1, keepdim=True) if self.zonal else variance).clamp_min(1e-12)
        self.std.copy_(whole.sqrt())
        for _ in range(_ROUNDS if self.floor < 1 else 0):
            self.std.copy_((self.std.square() * self._left(z)).maximum(self.floor * whole).sqrt())
        self._fit_autocovariances(z, spans)

    def _fit_modes(self, z: Tensor) -> Iterator[tuple[int, float, Tensor, Tensor]]:
        """Modes in the present units; of each wavenumber m its fold, the modes' amplitudes, and what they leave."""
        rank = self.real.shape[-1]
        x = to_waves(self.standardize(z)[None], self.zonal)[:, 0]
        channels, rows, _ = self.latent_shape
        taper: Tensor | float = 1.0
        if self.zonal and self.reach is not None:
            taper = torch.from_numpy(row_taper(rows, self.reach)).repeat(channels, channels).to(z.device)
        for m, fold in enumerate(self._fold.tolist()):
            mode = x[m].to(torch.complex128)
            if fold == 1.0:
                vectors = torch.linalg.eigh(mode.real.T @ mode.real / len(mode) * taper)[1]
            else:
                vectors = torch.linalg.eigh(mode.T @ mode.conj() / len(mode) * taper)[1]
            vectors = vectors.flip(1)[:, :rank].to(mode)
            self.real[m], self.imaginary[m] = vectors.real.float(), vectors.imag.float()
            a = mode @ vectors.conj()
            yield m, fold, a, mode - a @ vectors.T

    def _left(self, z: Tensor) -> Tensor:
        """What the modes in the present units leave of every number's variance, as ``std``."""
        channels, rows, columns = self.latent_shape
        left = z.new_zeros(self.real.shape[1])
        for _, fold, _, rest in self._fit_modes(z):
            left += fold * rest.abs().square().mean(0).to(left)
        return left.reshape(channels, rows, 1) / columns if self.zonal else left.reshape(self.latent_shape)

    def _fit_autocovariances(self, z: Tensor, spans: Sequence[tuple[int, int]]) -> None:
        """Modes in the present units, and the autocovariances of their amplitudes and of what they leave."""
        lags, (n, rank) = self.lag_real.shape[-1] - 1, self.real.shape[1:]
        for m, fold, a, rest in self._fit_modes(z):
            g = _autocovariance(a, spans, lags)
            g_rest = _autocovariance(rest, spans, lags).sum(0, keepdim=True) / max(n - rank, 1)
            # A little white noise, so that rounding the numbers leaves a covariance.
            g[:, 0] += _LEAST + 1e-5 * g[:, 0]
            g_rest[:, 0] += _LEAST + 1e-5 * g_rest[:, 0]
            if fold == 1.0:
                g, g_rest = g.real + 0j, g_rest.real + 0j
            self.lag_real[m], self.lag_imaginary[m] = g.real.float(), g.imag.float()
            self.rest_real[m], self.rest_imaginary[m] = g_rest.real.float(), g_rest.imag.float()

    def variance(self) -> Tensor:
        """Of v at every place, (*latent)."""
        channels, rows, columns = self.latent_shape
        power = self.real.square() + self.imaginary.square()
        g, rest = self.lag_real[..., 0], self.rest_real[..., 0]
        each = (power * (g - rest)[:, None]).sum(-1) + rest
        if not self.zonal:
            return each.reshape(self.latent_shape)
        total = (self._fold[:, None] * each).sum(0) / columns
        return total.reshape(channels, rows, 1).expand(self.latent_shape).contiguous()

    @torch.no_grad()
    def covariance(self, length: int) -> TrajectoryCovariance:
        """S of ``length`` states.

        Raises
        ------
        InputError
            More states than there is memory for: it grows with their square, and the time with their cube.
        """
        bytes_ = _EIGEN * 16 * self.real.shape[0] * self.real.shape[2] * length**2
        there = _memory(self.real.device)
        if bytes_ > there:
            raise InputError(
                f"a window of {length} states takes about {bytes_ / 2**30:.1f} GiB for its covariance in time, more "
                f"than the {there / 2**30:.1f} that there are; accepted are shorter windows, one after the other"
            )
        return self.kept(f"covariance of {length}", lambda: self._covariance(length))

    def _covariance(self, length: int) -> TrajectoryCovariance:
        time, values = _toeplitz_eigen(self.lag_real, self.lag_imaginary, length)
        rest, rest_values = _toeplitz_eigen(self.rest_real, self.rest_imaginary, length)
        modes = torch.complex(self.real, self.imaginary)
        dtype, kind = self.real.dtype, modes.dtype
        return TrajectoryCovariance(
            modes,
            time.to(kind),
            rest.to(kind),
            values.to(dtype),
            rest_values.to(dtype),
            self._fold.to(dtype),
            self.zonal,
        )


def _memory(device: torch.device) -> int:
    """Bytes that a device has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _autocovariance(a: Tensor, spans: Sequence[tuple[int, int]], lags: int) -> Tensor:
    """g (k, lags + 1) of amplitudes (N, k), from all pairs within the runs.

    A lag's sum is divided by N, which is never indefinite, times the share of its N - lag pairs that gaps between the
    runs have left: without that gaps would weaken what lies apart. Where this is indefinite the share is left out.
    """
    g = a.new_zeros(a.shape[1], lags + 1)
    pairs = torch.zeros(lags + 1, dtype=torch.float64)
    for first, stop in spans:
        run = a[first:stop]
        for lag in range(min(lags + 1, len(run))):
            g[:, lag] += (run[lag:] * run[: len(run) - lag].conj()).sum(0)
            pairs[lag] += len(run) - lag
    g = g / len(a)
    share = pairs / (len(a) - torch.arange(lags + 1))
    if bool((share == 1).all()):
        return g
    full = g / share.to(a.device)
    definite = torch.linalg.eigvalsh(_toeplitz(full, lags + 1))[:, 0] > 0
    return torch.where(definite[:, None], full, g)


def _toeplitz_eigen(real: Tensor, imaginary: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Eigenvectors (..., T, T) and eigenvalues (..., T) of the Toeplitz covariances of autocovariances (..., p + 1)."""
    g = torch.complex(real.double(), imaginary.double())
    p = g.shape[-1] - 1
    phi = torch.linalg.solve(_toeplitz(g, p), g[..., 1:, None])[..., 0]
    known = list(g.unbind(-1))
    while len(known) < length:
        known.append(sum(phi[..., j] * known[-1 - j] for j in range(p)))
    values, vectors = torch.linalg.eigh(_toeplitz(torch.stack(known, dim=-1), length))
    return vectors, values.clamp_min(_LEAST**2)


def _toeplitz(g: Tensor, size: int) -> Tensor:
    """G[t, s] = g(t - s), with g(-l) = g(l)*."""
    lag = torch.arange(size, device=g.device)
    lag = lag[:, None] - lag
    G = g[..., lag.abs()]
    return torch.where(lag < 0, G.conj(), G)
