"""The prior p(z | z_b) of one analysis, from a package and a background: what the sampler sees of the model.

Of a whitened package the sampler's variable is u = S^-1/2 (z - z_b): the state is D(z_b + S^1/2 u), and the covariance
of u is the identity. Of a plain one it is z itself, around z_b, with the variance and covariance of S where there is
one. The denoiser's prediction becomes E[z | z_t, z_b] here.
"""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lsda_fast.diffusion.noise import normal
from lsda_fast.diffusion.prediction import to_clean
from lsda_fast.diffusion.schedule import Level
from lsda_fast.errors import InputError
from lsda_fast.models import FullWhitening, Whitening
from lsda_fast.models.decoder_derivatives import has_derivatives
from lsda_fast.models.fused import fused as fused_network
from lsda_fast.models.observed import HeadedDecoder, headed_decode
from lsda_fast.models.tangent import Increments, PatchTangent, once, tangent_samples
from lsda_fast.models.whitening import Coloring
from lsda_fast.package.external import External
from lsda_fast.package.network_path import NetworkPath
from lsda_fast.prior import Derivative, Differentiable, EigenCovariance, Prior

if TYPE_CHECKING:
    from lsda_fast.package.package import Package

__all__ = ["analysis_prior", "from_latent", "to_latent"]


@torch.no_grad()
def analysis_prior(
    package: "Package",
    background: Tensor,
    *,
    calendar: Tensor | None = None,
    correction: bool = True,
    fused: bool = False,
    precision: torch.dtype | None = None,
) -> Prior:
    """The prior of one analysis; see ``Package.prior``."""
    if "denoiser" not in package.modules:
        raise InputError(
            "the package has no prior around a background; accepted is a window of states (--window FIRST/LAST)"
        )
    z_b = _background_latent(package, background)
    calendar = None if calendar is None else torch.atleast_2d(calendar).to(z_b)
    if package.whitened and "whitening" not in package.modules:
        raise InputError("the package says that it is whitened but holds no whitening")
    if not correction and not package.whitened:
        raise InputError("correction=False needs a whitened package: only there is the linear-Gaussian part a prior")
    path = NetworkPath.of(package.dtype, fused, precision)
    denoise, prepared = _denoise(package, z_b, calendar, path) if correction else (_linear_gaussian, ())
    whitening = package.modules.get("whitening")
    coloring = whitening.coloring() if package.whitened and isinstance(whitening, Whitening) else None
    latent = _latent(package, z_b, coloring)
    common: dict[str, Any] = {
        "schedule": package.schedule,
        "latent_shape": package.latent_shape,
        "denoise": denoise,
        "decode": _decoder(package.autoencoder, latent, path),
        "tangent": _tangent(package, z_b, path),
        "tangent_dtype": _tangent_dtype(package, path),
        "inputs": (z_b, *prepared, *latent.tensors),
        "dtype": package.dtype,
        "device": package.device,
    }
    return (_whitened if package.whitened else _plain)(package, z_b, common)


def to_latent(package: "Package", u: Tensor, z_b: Tensor) -> Tensor:
    """The autoencoder's latents (M, *latent) of the sampler's variable, around the background's (M or 1, *latent)."""
    return _latent(package, z_b)(u)


def from_latent(package: "Package", z: Tensor, z_b: Tensor) -> Tensor:
    """The inverse of ``to_latent``: what the denoiser is trained on."""
    if not package.whitened:
        return z
    whitening = package.modules["whitening"]
    assert isinstance(whitening, Whitening)
    return whitening.whiten(z - z_b)


def _background_latent(package: "Package", background: Tensor) -> Tensor:
    """The background's latent (1, *latent_shape), from the latent itself or from the state."""
    background = background.to(package.device, package.dtype)  # a graph may later write where the latent lies
    if tuple(background.shape) == package.layout.shape:
        return package.autoencoder.encode(background[None])
    if tuple(background.shape) == package.latent_shape:
        return background[None].clone()
    raise InputError(
        f"background has shape {tuple(background.shape)}; accepted is the state's {package.layout.shape} "
        f"or the latent's {package.latent_shape}"
    )


def _decoder(model: Any, latent: Differentiable, path: NetworkPath) -> Callable[[Tensor], Tensor]:
    """The model's decoder after the map from the sampler's variable to its latent; with its heads if asked."""
    if not path.fused or not hasattr(model, "heads"):
        return lambda u: model.decode(latent(u))
    return HeadedDecoder(model, latent, has_derivatives(model), path.low(model))


def _latent(package: "Package", z_b: Tensor | None = None, coloring: Coloring | None = None) -> Differentiable:
    """The map from the sampler's variable to the latent, around ``z_b``; its linear part when that is not given."""
    whitening = package.modules.get("whitening")
    if not package.whitened:
        return Differentiable(lambda z: z, lambda z: Derivative(z, lambda v: v, lambda u: u, lambda u: u))
    assert isinstance(whitening, Whitening)
    center = 0.0 if z_b is None else z_b
    color, adjoint, covariance, tensors = whitening.coloring() if coloring is None else coloring
    forward = lambda u: center + color(u)  # noqa: E731
    return Differentiable(forward, lambda u: Derivative(forward(u), color, adjoint, covariance), tensors)


def _whitened(package: "Package", z_b: Tensor, common: dict[str, Any]) -> Prior:
    autoencoder, whitening = package.autoencoder, package.modules["whitening"]
    assert isinstance(whitening, Whitening)
    return Prior(
        encode=lambda x: whitening.whiten(autoencoder.encode(x) - z_b),
        variance=torch.ones(package.latent_shape, dtype=package.dtype, device=package.device),
        **common,
    )


def _plain(package: "Package", z_b: Tensor, common: dict[str, Any]) -> Prior:
    autoencoder, whitening = package.autoencoder, package.modules.get("whitening")
    covariance = None
    if isinstance(whitening, FullWhitening):
        covariance = EigenCovariance(whitening.vectors, whitening.variance)
    return Prior(
        encode=autoencoder.encode,
        covariance=covariance,
        variance=_variance(whitening, package.latent_shape),
        origin=z_b[0],
        **common,
    )


def _variance(whitening: nn.Module | None, latent_shape: tuple[int, ...]) -> Tensor | None:
    """Variance per latent of the background's error."""
    if whitening is None:
        return None
    if isinstance(whitening, FullWhitening):
        return (whitening.vectors.square() @ whitening.variance).reshape(latent_shape)
    std = getattr(whitening, "std", None)
    return std.square().expand(latent_shape).clone() if isinstance(std, Tensor) else None


def _denoise(
    package: "Package", z_b: Tensor, calendar: Tensor | None, path: NetworkPath
) -> tuple[Callable[[Tensor, Level], Tensor], tuple[Tensor, ...]]:
    """E[z | z_t, z_b] by the package's denoiser, and what it has prepared."""
    network: Any = package.modules["denoiser"]
    if isinstance(network, External):
        own: Any = network
        return lambda z_t, level: to_clean(package.prediction, _external(own, z_t, level, z_b), z_t, level), ()
    if path.fused:
        network = fused_network(path.low(network))
    given = network.condition(z_b, calendar)
    denoise = lambda z_t, level: to_clean(package.prediction, network.given(z_t, level, given), z_t, level)  # noqa: E731
    return denoise, tuple(t for part in (given if isinstance(given, list) else [given]) for t in part.tensors)


def _external(denoiser: External, z_t: Tensor, level: Level, z_b: Tensor) -> Tensor:
    t = torch.full((len(z_t),), level.t, dtype=z_t.dtype, device=z_t.device)
    return denoiser(z_t, t, z_b.expand(len(z_t), *z_b.shape[1:]))


def _linear_gaussian(z_t: Tensor, level: Level) -> Tensor:
    """E[u | u_t] of u ~ N(0, I): the whitened prior without the learned correction."""
    return to_clean("wiener", torch.zeros_like(z_t), z_t, level)


def _tangent_dtype(package: "Package", path: NetworkPath) -> torch.dtype:
    """Of the products with the decoder's stand-in: float64 where no other covariance stands between them.

    Beside networks in a lower precision the package's own does: its rounding is then the smaller one.
    """
    return torch.float64 if package.whitened and path.precision == package.dtype else package.dtype


def _tangent(
    package: "Package", z_b: Tensor, path: NetworkPath
) -> Callable[[Counter[str]], Callable[[Tensor], Tensor]] | None:
    """The decoder's stand-in around a background latent, fitted when first asked for."""
    count, whitening = tangent_samples(package.latent_shape, package.layout.shape), package.modules.get("whitening")
    if not count:
        return None
    color = whitening.color if isinstance(whitening, Whitening) else lambda u: u
    dtype, grid, model = _tangent_dtype(package, path), package.layout.grid, package.autoencoder

    def increments() -> Increments:
        u = normal(package.latent_shape, seed=0, members=range(count), dtype=package.dtype, device=package.device)
        return Increments(color(u), periodic=grid.periodic, poles=grid.poles)

    def make(evaluations: Counter[str]) -> Callable[[Tensor], Tensor]:
        decode = headed_decode(model, path.low(model)) if path.fused and has_derivatives(model) else model.decode
        made = whitening.kept("increments", increments) if isinstance(whitening, Whitening) else increments()
        fitted = PatchTangent(decode, z_b, made, evaluations, dtype=dtype)
        wide = None
        if package.whitened and isinstance(whitening, Whitening) and dtype == torch.float64:
            wide = whitening.wide_coloring()
        return _decoder(fitted, _latent(package, None, wide), path)

    return once(make)
