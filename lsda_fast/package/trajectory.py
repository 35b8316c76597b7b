"""The prior over trajectories of T states, from a package with a network of windows: what the sampler sees of it.

The sampler's variable is v (T, c, h, w), the latents standardised place by place (``models.stationary``; the latents
themselves where a package has no such module). Its noise is white, state by state, so that a window of a noised
trajectory is a noised window. The clean estimate is

    E[v | v_t] = D_G(v_t) + sum of the windows' corrections,

D_G that of the linear-Gaussian model on the whole trajectory, each correction one to the same model in a window
(``models.window_input``), composed by ``trajectory.Composed``. Above the noise that the network was trained with there
is no correction: what is missed is below a hundredth of the noise, while the covariance of the clean estimate,
sigma^2 / alpha dv/dv_t, would be the derivative of an extrapolation times rho. Nor is there any below it. Networks of
the published predictions (``eps`` and the like) give the whole estimate, composed in the same way.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lsda_fast.diffusion.noise import normal
from lsda_fast.diffusion.prediction import TRAINED, to_clean
from lsda_fast.diffusion.schedule import Level
from lsda_fast.errors import InputError
from lsda_fast.models import TrajectoryCovariance
from lsda_fast.models.decoder_derivatives import has_derivatives
from lsda_fast.models.fused import fused as fused_network
from lsda_fast.models.observed import headed_decode
from lsda_fast.models.tangent import Increments, PatchTangent, once, tangent_samples
from lsda_fast.models.window_input import window_input
from lsda_fast.package.external import External
from lsda_fast.package.network_path import NetworkPath
from lsda_fast.package.trajectory_decoder import TrajectoryDecoder
from lsda_fast.prior import Derivative, Prior
from lsda_fast.trajectory import Composed

if TYPE_CHECKING:
    from lsda_fast.package.package import Package

__all__ = ["trajectory_prior"]


@torch.no_grad()
def trajectory_prior(
    package: "Package",
    length: int,
    *,
    origin: Tensor | None = None,
    season: Tensor | None = None,
    correction: bool = True,
    chunk: int = 64,
    fused: bool = False,
    precision: torch.dtype | None = None,
) -> Prior:
    """The prior over trajectories; see ``Package.trajectory``."""
    if package.window is None:
        raise InputError("the package has no prior over trajectories; accepted is one that was trained with a window")
    package.window.check(length)
    shape = (length, *package.latent_shape)
    for name, value, accepted in (("origin", origin, shape), ("season", season, (length, 4))):
        if value is not None and tuple(value.shape) != accepted:
            raise InputError(f"{name} has shape {tuple(value.shape)}; accepted is {accepted}")
    path = NetworkPath.of(package.dtype, fused, precision)
    model: Any = package.modules.get("trajectory")
    if model is None and (not correction or package.prediction == "wiener"):
        raise InputError(
            "the package holds no linear-Gaussian model of trajectories; "
            "accepted without one are correction=True and a prediction other than wiener"
        )
    place = lambda t: t if t is None else t.to(package.device, package.dtype, copy=True)  # noqa: E731
    origin, season = place(origin), place(season)
    if origin is not None and model is not None:
        origin = model.standardize(origin)
    if package.prediction == "wiener" and isinstance(package.modules["window"], External):
        raise InputError(
            "a network from outside came with the prediction wiener; accepted of such are eps, x0, v and score, whose "
            "estimate is the whole"
        )
    covariance = None if model is None else model.covariance(length)
    base = model.covariance(package.window.size) if package.prediction == "wiener" else None
    decode = TrajectoryDecoder(
        package.autoencoder,
        model,
        package.layout.shape,
        length,
        chunk,
        headed=fused and has_derivatives(package.autoencoder),
        network=path.low(package.autoencoder),
    )
    windows = _windows(package, base, season, chunk, path) if correction else None
    read = (covariance.tensors if covariance else ()) + (base.tensors if base else ())
    return Prior(
        package.schedule,
        shape,
        _Denoiser(covariance if base or not correction else None, windows),
        decode,
        encode=decode.encode,
        tangent=_tangent(package, decode, covariance, origin),
        variance=None if model is None else model.variance().expand(shape).contiguous(),
        covariance=covariance,
        origin=origin,
        inputs=(*read, *(t for t in (season, origin) if t is not None)),
        dtype=package.dtype,
        device=package.device,
    )


@dataclass(frozen=True, eq=False)
class _Denoiser:
    """(z_t, level) -> E[v | v_t]: the linear-Gaussian estimate, what the windows say, or the sum of the two."""

    covariance: TrajectoryCovariance | None
    windows: Callable[[Level], Composed] | None

    def __call__(self, z_t: Tensor, level: Level) -> Tensor:
        return _total(part(z_t) for part in self._parts(level))

    def derivative(self, z_t: Tensor, level: Level) -> Derivative:
        """Value and products; the linear-Gaussian part is symmetric."""
        parts = [
            part.derivative(z_t) if isinstance(part, Composed) else Derivative(part(z_t), part, part)
            for part in self._parts(level)
        ]
        return Derivative(
            _total(part.value for part in parts),
            lambda v: _total(part.jvp(v) for part in parts),
            lambda u: _total(part.vjp(u) for part in parts),
        )

    def _parts(self, level: Level) -> list[Callable[[Tensor], Tensor]]:
        parts: list[Callable[[Tensor], Tensor]] = []
        if self.covariance is not None:
            parts.append(partial(self.covariance.wiener, alpha=level.alpha, sigma=level.sigma))
        if self.windows is not None and (self.covariance is None or TRAINED[0] <= level.rho <= TRAINED[1]):
            parts.append(self.windows(level))
        return parts


def _total(parts: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, parts)


def _windows(
    package: "Package", base: TrajectoryCovariance | None, season: Tensor | None, chunk: int, path: NetworkPath
) -> Callable[[Level], Composed]:
    window, network = package.window, package.modules["window"]
    assert window is not None
    if path.fused and not isinstance(network, External):
        network = fused_network(path.low(network))
    return lambda level: Composed(_Estimate(package.prediction, network, base, season, level), window.size, chunk)


@dataclass(frozen=True)
class _Spread:
    """The linear part of ``StationaryTrajectories.restore``."""

    std: Tensor

    def restore(self, v: Tensor) -> Tensor:
        """Increments of latents, from those of v."""
        return self.std * v


def _tangent(
    package: "Package", decoder: TrajectoryDecoder, covariance: TrajectoryCovariance | None, origin: Tensor | None
) -> Callable[[Counter[str]], Callable[[Tensor], Tensor]] | None:
    """The decoder's stand-in, for all times: fitted to draws of the prior around its mean, or the origin's middle."""
    model, count = decoder.model, tangent_samples(package.latent_shape, package.layout.shape)
    if not count:
        return None
    spread = None if model is None else _Spread(model.std)

    def make(evaluations: Counter[str]) -> Callable[[Tensor], Tensor]:
        grid, own = package.layout.grid, package.autoencoder
        decode = headed_decode(own, decoder.network) if decoder.headed else own.decode
        draws = range(-(-count // decoder.length))
        v = normal(
            (decoder.length, *package.latent_shape), seed=0, members=draws, dtype=package.dtype, device=package.device
        )
        if covariance is not None:
            v = covariance.apply(v, torch.sqrt)
        center = v.new_zeros(1, *package.latent_shape) if origin is None else origin[[decoder.length // 2]]
        z, dz = (t if part is None else part.restore(t) for t, part in ((center, model), (v, spread)))
        increments = Increments(dz.flatten(0, 1)[:count], periodic=grid.periodic, poles=grid.poles)
        fitted = PatchTangent(decode, z, increments, evaluations)
        return replace(decoder, autoencoder=fitted, network=fitted, model=spread)

    return once(make)


@dataclass(frozen=True, eq=False)
class _Estimate:
    """What the network says of n windows: corrections, or whole estimates."""

    prediction: str
    network: Any
    covariance: TrajectoryCovariance | None
    season: Tensor | None
    level: Level

    def __call__(self, windows: Tensor, first: int) -> Tensor:
        """Windows (M, n, size, *latent), ``first`` the number of the first, to the like."""
        level, (M, n, size) = self.level, windows.shape[:3]
        z_t = windows.flatten(0, 1)
        if isinstance(self.network, External):
            return self._clean(self.network(z_t, z_t.new_full((M * n,), level.t)), z_t).unflatten(0, (M, n))
        season = self.season
        if season is not None:
            season = season[first + size // 2 :][:n].repeat(M, 1)
        # One number for all: broadcasting serves every window.
        alpha, sigma = z_t.new_full((1,), level.alpha), z_t.new_full((1,), level.sigma)
        given = window_input(z_t, alpha, sigma, self.covariance)
        F = self.network.predict(given.scaled, z_t.new_full((1,), math.log(level.rho)), season)
        return (given.spread * F if self.covariance else self._clean(F, z_t)).unflatten(0, (M, n))

    def _clean(self, F: Tensor, z_t: Tensor) -> Tensor:
        return to_clean(self.prediction, F, z_t, self.level)
