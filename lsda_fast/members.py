"""Which members are asked for, how many go together, and their ensemble shifted on the average of its means.

Where a guidance knows E[z | z_t, y] of every member, their average carries little sampling noise. The pairs' scale
makes the usual sample variance, with M - 1 below it, unbiased.
"""

from collections.abc import Iterable, Sequence
from numbers import Integral

import torch
from torch import Tensor

from lsda_fast.errors import InputError

__all__ = ["even_chunk", "member_numbers", "pairs_first", "recentred", "without_opposite"]

MOST = 1_000_000
# Members that go through the networks together, and latents of theirs, at most, where nothing else is said.
_TOGETHER, _LATENTS = 16, 2**19


def member_numbers(members: int | Sequence[int]) -> list[int]:
    """The numbers of so many members, or these; InputError for none, and for numbers twice or out of range."""
    if isinstance(members, Integral):
        ids = list(range(members)) if members <= MOST else []
    else:
        ids = list(members) if isinstance(members, Iterable) else []
    if (
        not ids
        or not all(isinstance(member, Integral) for member in ids)
        or min(ids) < 0
        or max(ids) >= 2**32
        or len(set(ids)) != len(ids)
    ):
        raise InputError(
            f"members = {members}; accepted: a number from 1 to {MOST}, or different member numbers below 2**32"
        )
    return ids


def even_chunk(members: int, latents: int) -> int:
    """How many of so many members, with so many latents each, go through the networks together: in even parts."""
    largest = max(1, min(_TOGETHER, _LATENTS // latents))
    return -(-members // -(-members // largest))


def recentred(z: Tensor, means: Sequence[Tensor], members: Sequence[int], *, antithetic: bool) -> Tensor:
    """The members z (M, *latent) about the average of ``means``, one a member."""
    scale = _pair_scale(members) if antithetic else 1.0
    return torch.stack(list(means)).mean(0) + scale * (z - z.mean(0))


def without_opposite(members: Sequence[int]) -> int:
    """How many members 2 i or 2 i + 1 are there without the other."""
    there = set(members)
    return sum(member ^ 1 not in there for member in members)


def pairs_first(members: Sequence[int]) -> list[int]:
    """The places of the members, each beside its opposite, behind them those that have none."""
    place = {int(member): i for i, member in enumerate(members)}
    return [place[m] for m in sorted(place, key=lambda m: (m ^ 1 not in place, m))]


def _pair_scale(members: Sequence[int]) -> float:
    """What makes the usual sample variance of M members, u of them without their opposite, unbiased.

    The sum of squares about their mean has the expectation M - u / M variances, where independent ones have M - 1.
    """
    M = len(members)
    alone = without_opposite(members)
    return float(((M - 1) / (M - alone / M)) ** 0.5)
