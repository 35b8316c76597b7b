"""Settings of a sampler by name.

``lo_sda`` and ``slams``: latent optimisation as the measurements of this package have it, of a state and of a window of
states (docs/results.md, docs/slams.md): one linearisation a level, few exact iterations, each preconditioned by ten
with a linear stand-in for the decoder. The decoder has to have one (``models.tangent``), and to be close to linear at
the size of the background's errors, for no line search looks after the step.

``slams_published``: SLAMS (arXiv:2404.06665) as its code samples, which is SDA's (Rozet & Louppe 2023,
arXiv:2306.10574). Predictor and corrector of a step t -> s, with eps' = eps - sigma_t s_y and
s_y = grad_{z_t} log N(y | A(z0(z_t)), R + gamma rho_t^2):

    z <- alpha_s / alpha_t z + (sigma_s - alpha_s / alpha_t sigma_t) eps'          (DDIM without noise), 512 of them
    z <- z - sigma_s (delta eps' + sqrt(2 delta) noise),  delta = tau / mean(eps'^2)           tau = 0.5, once a step

gamma = 0.01, and no bound on the gradient's step. The corrector at the clean end, where sigma is 0.001, is left out.
"""

from types import MappingProxyType
from typing import Any

from lsda_fast.diffusion.solvers import Langevin
from lsda_fast.errors import InputError
from lsda_fast.guidance import DPS, GaussNewton, LatentOptimization

__all__ = ["PRESETS", "sampler_preset"]

PRESETS = MappingProxyType(
    {
        "lo_sda": MappingProxyType(
            {"guidance": LatentOptimization(GaussNewton(outer=1, cg=3, halvings=0, precondition=10)), "steps": 2}
        ),
        "slams": MappingProxyType(
            {
                "guidance": LatentOptimization(
                    GaussNewton(outer=1, cg=1, halvings=0, precondition=10), prior_covariance="stationary"
                ),
                "steps": 3,
            }
        ),
        "slams_published": MappingProxyType(
            {
                "guidance": DPS(gamma=1e-2, limit=False),
                "solver": "ddim",
                "spacing": "time",
                "steps": 512,
                "corrector": Langevin(rounds=1, tau=0.5),
            }
        ),
    }
)


def sampler_preset(name: str) -> dict[str, Any]:
    """The arguments of ``Sampler`` and ``Assimilator`` of that name; InputError where there is none."""
    if name not in PRESETS:
        raise InputError(f"preset {name!r} is unknown; accepted: {', '.join(PRESETS)}")
    return dict(PRESETS[name])
