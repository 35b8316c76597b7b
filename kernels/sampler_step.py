"""A transition of the sampler in one pass over memory, its noise drawn where it is added:

    z_s[m] = sum_j coefficient_j term_j[m] + noise eps(seed, member_m, step, stream)

Every transition that is linear in what it is given has this form (lsda_fast/diffusion/solvers.py):

- renoise:  z_s = alpha_s z0 + sigma_s eps
- DDIM:     z_s = (alpha_s - k alpha_t) z0 + k z_t + tau eps, k = sqrt(sigma_s^2 - tau^2) / sigma_t,
            tau^2 = eta^2 sigma_s^2 (1 - (rho_s / rho_t)^2); ancestral with eta = 1

and a prediction type or an increment only adds to the terms and coefficients. The generator is that of ``noise``. Reads
each term once and writes z_s once. Nothing here is differentiated: the transitions lie outside every gradient.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.kernels import native, triton
from lsda_fast.kernels.implementations import Native
from lsda_fast.kernels.noise import noise_reference, signed
from lsda_fast.kernels.registry import Operation

__all__ = ["Transition", "ddim", "renoise", "sampler_step"]

# kTerms of csrc/core/sampler_step.h.
_TERMS = 4


class Transition(NamedTuple):
    """The coefficients of z0, z_t and noise."""

    z0: float
    z_t: float
    noise: float


def renoise(alpha_s: float, sigma_s: float) -> Transition:
    """Fresh noise on the clean estimate."""
    return Transition(alpha_s, 0.0, sigma_s)


def ddim(alpha_t: float, sigma_t: float, alpha_s: float, sigma_s: float, eta: float = 0.0) -> Transition:
    """DDIM; ancestral with ``eta`` = 1."""
    ratio = alpha_t * sigma_s / (alpha_s * sigma_t)
    tau = eta * sigma_s * math.sqrt(max(0.0, 1.0 - ratio**2))
    k = math.sqrt(sigma_s**2 - tau**2) / sigma_t
    return Transition(alpha_s - k * alpha_t, k, tau)


def sampler_step(
    terms: Sequence[Tensor],
    coefficients: Sequence[float],
    *,
    noise: float = 0.0,
    members: Tensor | None = None,
    seed: int = 0,
    step: int = 0,
    stream: int = 0,
) -> Tensor:
    """See the module's equation.

    Parameters
    ----------
    terms : sequence of Tensor, shape (M, *latent) each
        At least one.
    coefficients : sequence of float
    noise : float
        Scale of the noise.
    members : Tensor of int64, shape (M,), optional
        Member numbers; needed for noise.
    seed, step, stream : int
        As of ``lsda_fast.diffusion.noise.normal``.

    Returns
    -------
    Tensor, shape (M, *latent)
    """
    if not terms or len(terms) != len(coefficients) or any(t.shape != terms[0].shape for t in terms):
        shapes = [tuple(t.shape) for t in terms]
        raise InputError(f"terms {shapes}, {len(coefficients)} coefficients; accepted: terms of one shape, one each")
    if members is None:
        members = torch.zeros(len(terms[0]), dtype=torch.int64, device=terms[0].device)
        if noise:
            raise InputError(f"noise {noise} without members; accepted: the number of each member")
    if members.shape != terms[0].shape[:1] or members.dtype != torch.int64:
        given = f"{tuple(members.shape)} members of {len(terms[0])}, {members.dtype}"
        raise InputError(f"{given}; accepted: one number each, int64")
    return SAMPLER(list(terms), list(coefficients), noise, members, signed(seed), step, stream)


def sampler_reference(
    terms: list[Tensor], coefficients: list[float], noise: float, members: Tensor, seed: int, step: int, stream: int
) -> Tensor:
    """See ``sampler_step``."""
    z = sum(c * x for c, x in zip(coefficients, terms, strict=True))
    assert isinstance(z, Tensor)
    if noise:
        eps = noise_reference(members, math.prod(z.shape[1:]), seed, step, stream, z.dtype)
        z = z + noise * eps.reshape(z.shape)
    return z


def _empty(terms: list[Tensor], *rest: object) -> Tensor:
    return torch.empty_like(terms[0], memory_format=torch.contiguous_format)


def _fill(
    z: Tensor, terms: list[Tensor], coefficients: list[float], noise: float, members: Tensor, *counter: int
) -> None:
    seed, step, stream = counter
    shape = (len(z), math.prod(z.shape[1:]))
    native.run("sampler_step", z.dtype, z, terms, coefficients, noise, members, *shape, seed % (1 << 64), step, stream)


def _limits(terms: list[Tensor], *rest: object) -> str:
    return f"{len(terms)} terms; native code takes up to {_TERMS}" if len(terms) > _TERMS else ""


SAMPLER = Operation(
    "sampler_step(Tensor[] terms, float[] coefficients, float noise, Tensor members, int seed, int step, int stream)"
    " -> Tensor",
    reference=sampler_reference,
    empty=_empty,
    natives={"cpu": Native(_fill, _limits), "triton": Native(triton.fill("sampler_step"), _limits, triton.DTYPES)},
)
