"""Settings of a sampler under the name of the publication that they are from.

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
from lsda_fast.guidance import DPS

__all__ = ["PRESETS", "sampler_preset"]

PRESETS = MappingProxyType(
    {
        "slams_published": MappingProxyType(
            {
                "guidance": DPS(gamma=1e-2, limit=False),
                "solver": "ddim",
                "spacing": "time",
                "steps": 512,
                "corrector": Langevin(rounds=1, tau=0.5),
            }
        )
    }
)


def sampler_preset(name: str) -> dict[str, Any]:
    """The arguments of ``Sampler`` and ``Assimilator`` of that name; InputError where there is none."""
    if name not in PRESETS:
        raise InputError(f"preset {name!r} is unknown; accepted: {', '.join(PRESETS)}")
    return dict(PRESETS[name])
