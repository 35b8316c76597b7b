"""Counter-based Gaussian noise: the same member draws the same numbers in any batch, chunk, worker or device.

Philox4x32-10 (Salmon et al. 2011, doi:10.1145/2063384.2063405) maps a 128-bit counter and a 64-bit key to four 32-bit
words. Here ``key = seed`` and ``counter = (block of four elements, step, member, stream)``; pairs of words become
pairs of normals by Box-Muller in float64. Nothing is drawn from a global generator.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["normal", "philox"]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
_ROUNDS = 10


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low words of the 64-bit product of a 32-bit constant and 32-bit words held in int64."""
    low_part, high_part = a * (b & 0xFFFF), a * (b >> 16)
    high = (high_part + (low_part >> 16)) >> 16
    low = ((high_part << 16) + low_part) & _MASK
    return high, low


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four int64 tensors of 32-bit words in, four out (broadcast together)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def normal(
    shape: Sequence[int],
    *,
    seed: int,
    members: Sequence[int],
    step: int = 0,
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal noise, keyed by seed, member, step and stream.

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

    Returns
    -------
    Tensor, shape (M, *shape)
    """
    size = math.prod(shape)
    block = torch.arange((size + 3) // 4, dtype=torch.int64, device=device)[None]
    member = torch.tensor(list(members), dtype=torch.int64, device=device)[:, None]
    scalar = torch.zeros_like(block[:, :1])
    words = philox((block, scalar + step, member, scalar + stream), (seed & _MASK, (seed >> 32) & _MASK))
    uniform = [(w.to(torch.float64) + 0.5) * 2.0**-32 for w in words]
    radius = [torch.sqrt(-2.0 * torch.log(u)) for u in uniform[::2]]
    angle = [2.0 * math.pi * u for u in uniform[1::2]]
    values = [f(a) * r for r, a in zip(radius, angle) for f in (torch.cos, torch.sin)]
    flat = torch.stack(values, dim=-1).flatten(1)[:, :size]
    return flat.to(dtype).reshape(len(member), *shape)
