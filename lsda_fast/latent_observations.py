"""The published way of SLAMS to observe: latents, not states.

    y_z = A(E(x)) + N(0, R),    guidance on |R^-1/2 (y_z - A(z))|^2

A acts on the encoded trajectory, so that no physical operator and no decoder takes part. To likelihood, guidance and
sampler this is a prior whose "state" is its latent, (M, T*c, h, w), and A a stencil operator on that.

The encoder sees the fields before A takes from them: with the truth for x, as published, this is an experiment, and not
an analysis of what was measured. With an encoder that takes missing values (NaN), x may be what is there.
"""

from dataclasses import replace

import numpy as np
from torch import Tensor

from lsda_fast.degradations import Degradation
from lsda_fast.grid import Normalization
from lsda_fast.observations import StencilOperator
from lsda_fast.prior import Prior

__all__ = ["degraded_latents", "in_latent"]


def in_latent(prior: Prior) -> Prior:
    """The prior of a trajectory, latent_shape (T, c, h, w), observed in its latents: x = z as (M, T*c, h, w)."""
    return replace(
        prior,
        decode=lambda z: z.flatten(1, 2),
        encode=lambda x: x.reshape(len(x), *prior.latent_shape),
        tangent=None,
    )


def degraded_latents(z: Tensor, degradation: Degradation, *, seed: int) -> StencilOperator:
    """A(z) with noise, in the units of z: on the states of ``in_latent``.

    Parameters
    ----------
    z : Tensor, shape (T, c, h, w)
        What is encoded, in the sampler's variable.
    degradation : Degradation
        A, with blocks of latents instead of cells, all of one weight.
    seed : int
    """
    unit = Normalization(np.zeros(z.shape[1]), np.ones(z.shape[1]))
    return degradation(z.double().cpu().numpy(), unit, seed=seed)
