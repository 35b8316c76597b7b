"""Whole analyses to measure: a truth, a background, and columns of the truth observed with error.

``demo`` is the built-in demonstration, from its states. ``drawn`` needs nothing but a package: the truth is a draw of
the package's own prior about the background.
"""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lsda_fast.assimilator import Assimilator
from lsda_fast.demo import built_in_package, demo_case
from lsda_fast.diffusion.noise import normal
from lsda_fast.guidance import DPS, LBFGS, MMPS, Adam, GaussNewton, LatentOptimization, Likelihood, ObsFree, Repaint
from lsda_fast.observations import Observations
from lsda_fast.package import Package
from lsda_fast.prior import Prior
from lsda_fast.twin import column_observations

__all__ = ["GUIDANCES", "Twin", "demo", "drawn"]

# Every guidance and inner solver, as short as can be: for comparisons.
GUIDANCES = {
    "gauss_newton": LatentOptimization(GaussNewton(outer=1, cg=2, halvings=0)),
    "preconditioned": LatentOptimization(GaussNewton(outer=1, cg=1, halvings=0, precondition=6)),
    "adam": LatentOptimization(Adam(steps=3)),
    "lbfgs": LatentOptimization(LBFGS(steps=2)),
    "tweedie": LatentOptimization(GaussNewton(outer=1, cg=2), prior_covariance="tweedie", lanczos=2),
    "mmps": MMPS(iterations=2),
    "dps": DPS(),
    "repaint": Repaint(),
    "none": ObsFree(),
}


@dataclass(frozen=True, eq=False)
class Twin:
    """A package with a truth and a background in physical units, each (C, H, W)."""

    package: Package
    truth: np.ndarray
    background: np.ndarray

    def normalized(self) -> Tensor:
        """The background, normalised, on the package's device."""
        return self.package.normalize(self.background)

    def double(self) -> "Twin":
        """The same with networks in float64; weights, and matrices that are stored, keep the digits of float32."""
        modules = {name: deepcopy(module).double() for name, module in self.package.modules.items()}
        return replace(self, package=replace(self.package, modules=modules))

    def prior(self, *, fused: bool = False, precision: torch.dtype | None = None) -> Prior:
        """The prior about the background."""
        return self.package.prior(self.normalized(), fused=fused, precision=precision)

    def dataset(self) -> xr.Dataset:
        """The background as users have it."""
        return self.package.layout.to_dataset(self.background)

    def observations(self, fraction: float) -> Observations:
        """Every channel at this share of the columns, with the package's errors."""
        layout, std = self.package.layout, self.package.observation_std
        return column_observations(self.truth, layout, fraction=fraction, std=std, seed=0)

    def likelihood(self, fraction: float) -> Likelihood:
        """Of those observations, in the package's precision."""
        found, dtype = Assimilator(self.package).likelihood(self.observations(fraction))[1], self.package.dtype
        y, variance, scale = (t.to(dtype) for t in (found.y, found.variance, found.scale))
        operator: Any = found.operator
        return replace(found, operator=operator.to(dtype=dtype), y=y, variance=variance, scale=scale)


def demo() -> Twin:
    """The first case of the built-in demonstration."""
    package = built_in_package()
    truth, background = demo_case(package, 0)
    return Twin(package, package.layout.to_array(truth), package.layout.to_array(background))


@torch.no_grad()
def drawn(package: Package) -> Twin:
    """The background: the package's mean state. The truth: a draw about it, of the spread S where that is known."""
    x_b = package.normalize(np.broadcast_to(package.normalization.mean[:, None, None], package.layout.shape))
    prior = package.prior(x_b)
    u = normal(package.latent_shape, seed=0, members=[0], dtype=package.dtype, device=package.device)
    if prior.origin is not None:
        u = prior.origin + 0.3 * u
    return Twin(package, package.denormalize(prior.decode(u)[0]), package.denormalize(x_b))
