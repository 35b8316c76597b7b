"""A transition of the sampler in one pass over memory, its noise drawn where it is added:

    z_s[m] = sum_j coefficient_j term_j[m] + noise eps(seed, member_m, step, stream)

Every transition that is linear in what it is given has this form (lsda_fast/diffusion/solvers.py has the coefficients).
The generator is that of ``noise``. Reads each term once and writes z_s once. Nothing here is differentiated: the
transitions lie outside every gradient.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.kernels import native, triton
from lsda_fast.kernels.implementations import Native
from lsda_fast.kernels.noise import noise_reference
from lsda_fast.kernels.registry import Operation

__all__ = ["sampler_step"]

# kTerms of csrc/core/sampler_step.h.
_TERMS = 4


def sampler_step(
    terms: Sequence[Tensor],
    coefficients: Sequence[float],
    *,
    noise: float = 0.0,
    members: Tensor | None = None,
    seed: Tensor | None = None,
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
    seed : Tensor of int64, shape (1,), optional
        On the members' device; 0 when not given.
    step, stream : int
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
    if seed is None:
        seed = members.new_zeros(1)
    if seed.shape != (1,) or seed.dtype != torch.int64:
        raise InputError(f"a seed {tuple(seed.shape)}, {seed.dtype}; accepted: (1,), int64")
    return SAMPLER([t.contiguous() for t in terms], list(coefficients), noise, members, seed, step, stream)


def sampler_reference(
    terms: list[Tensor], coefficients: list[float], noise: float, members: Tensor, seed: Tensor, step: int, stream: int
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


def _fill(z: Tensor, terms: list[Tensor], coefficients: list[float], noise: float, members: Tensor, *key: Any) -> None:
    native.run("sampler_step", z.dtype, z, terms, coefficients, noise, members, len(z), math.prod(z.shape[1:]), *key)


def _limits(terms: list[Tensor], *rest: object) -> str:
    return f"{len(terms)} terms; native code takes up to {_TERMS}" if len(terms) > _TERMS else ""


SAMPLER = Operation(
    "sampler_step(Tensor[] terms, float[] coefficients, float noise, Tensor members, Tensor seed, int step, int stream)"
    " -> Tensor",
    reference=sampler_reference,
    empty=_empty,
    natives={"cpu": Native(_fill, _limits), "triton": Native(triton.fill("sampler_step"), _limits, triton.DTYPES)},
)
