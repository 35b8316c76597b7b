"""Gaussian noise keyed by seed, member, step and stream: the generator of ``lsda_fast.kernels.noise``, in any shape.

Nothing is drawn from a global generator.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lsda_fast.kernels.noise import MIRROR, noise_reference

__all__ = ["normal"]


def normal(
    shape: Sequence[int],
    *,
    seed: int,
    members: Sequence[int],
    step: int = 0,
    stream: int = 0,
    antithetic: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal noise.

    Parameters
    ----------
    shape : sequence of int
        Shape of one member.
    seed : int
        0 <= seed < 2**64.
    members : sequence of int
        Member numbers, each 0 <= m < 2**32; member ``m`` gives the same numbers in any company.
    step, stream : int
        Noise level, and which use of noise at that level, each 0 <= i < 2**32.
    antithetic : bool
        Members 2 i and 2 i + 1 draw opposite numbers: what is linear in the noise then averages to its mean exactly.

    Returns
    -------
    Tensor, shape (M, *shape)
    """
    numbers = torch.tensor(list(members), dtype=torch.int64, device=device)
    if antithetic:
        numbers = numbers // 2 + numbers % 2 * MIRROR
    flat = noise_reference(numbers, math.prod(shape), seed, step, stream, dtype)
    return flat.reshape(len(numbers), *shape)
