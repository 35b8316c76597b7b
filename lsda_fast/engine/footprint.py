"""The memory and the network evaluations of a block of members, before it is run.

It runs without values (``engine.watch``) for three noise levels: every level but the first and the last takes the same.
Bytes grow linearly with its members, block(M) = constant + M per_member: two sizes say those of any.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lsda_fast.diffusion.noise import Key
from lsda_fast.engine.watch import Watch, values_aside
from lsda_fast.guidance import Likelihood
from lsda_fast.kernels.norm_conv import kept_filters
from lsda_fast.package import Package
from lsda_fast.prior import Prior
from lsda_fast.sampler import Sampler

__all__ = [
    "Footprint",
    "choose_chunk",
    "footprint",
    "free_memory",
    "state_bytes",
    "total",
    "weight_bytes",
    "weights_of",
]

_SHARE = 0.9  # of the free memory that a block may take
_LARGEST = 64  # members of a block beyond which a GPU has long been busy


class Footprint(NamedTuple):
    """Bytes of a block of M members, constant + M per_member, and a member's evaluations."""

    constant: float
    per_member: float
    evaluations: Counter[str]

    def block(self, members: int) -> int:
        """Bytes."""
        return round(self.constant + members * self.per_member)


def footprint(sampler: Sampler, prior: Prior, likelihood: Likelihood, members: Sequence[int]) -> Footprint:
    """Of a prepared analysis, from blocks of one or two sizes; with one, the bytes are those of that size."""
    peaks, counts = zip(*(_simulate(sampler, prior, likelihood, M) for M in members))
    per_member = (peaks[-1] - peaks[0]) / max(members[-1] - members[0], 1)
    evaluations = Counter({kind: count // members[0] for kind, count in counts[0].items()})
    return Footprint(peaks[0] - members[0] * per_member, per_member, evaluations)


def _simulate(sampler: Sampler, prior: Prior, likelihood: Likelihood, members: int) -> tuple[int, Counter[str]]:
    """Peak and evaluations of a block: the levels between the first and the last are as the second is."""
    own = replace(prior, evaluations=Counter())
    key = Key.of(0, range(members), antithetic=sampler.guidance.antithetic, device=prior.device)
    levels, seen = sampler.levels(prior), []
    few = [*levels[:2], levels[-1]] if len(levels) > 3 else levels
    with values_aside(), Watch(prior.device) as watch:
        sampler.block_of(own, likelihood, key, levels=few, on_level=lambda *_: seen.append(Counter(own.evaluations)))
    evaluations = Counter(own.evaluations)
    if len(levels) > len(few):
        evaluations.update({k: (len(levels) - len(few)) * (n - seen[0][k]) for k, n in seen[1].items()})
    return watch.peak, evaluations


def total(
    evaluations: Mapping[str, int], prepared: Mapping[str, int], block: int, members: Sequence[int]
) -> dict[str, int]:
    """Evaluations of a run: those of the preparation, and a member's for all of every block that one is asked of."""
    blocks = len({member // block for member in members})
    counts = Counter(prepared)
    counts.update({kind: count * blocks * block for kind, count in evaluations.items()})
    return dict(counts)


def state_bytes(prior: Prior, members: int) -> int:
    """Bytes while all members are decoded, one after the other, and put together."""

    def peak(count: int) -> int:
        z = [torch.zeros(1, *prior.latent_shape, dtype=prior.dtype, device=prior.device)] * count
        with values_aside(), Watch(prior.device) as watch:
            torch.cat([prior.decode(value) for value in z])
        return watch.peak

    one, two = peak(1), peak(2)
    return one + (members - 1) * (two - one)


def weights_of(package: Package) -> list[Tensor]:
    """Parameters and buffers of all networks of a package."""
    return [t for m in package.modules.values() for t in (*m.parameters(), *m.buffers())]


def weight_bytes(package: Package) -> int:
    """Bytes of all networks of a package, and of what is kept with them for all analyses."""
    tensors = weights_of(package)
    tensors += [t for weight in tensors for t in kept_filters(weight)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values()) + sum(getattr(m, "kept_bytes", 0) for m in package.modules.values())


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device, what torch keeps for itself there included."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def choose_chunk(one: Footprint, members: int, free: int) -> int:
    """Members of a block: the power of two that holds all, up to 64, or less where memory is short."""
    chunk = 1
    while chunk < min(members, _LARGEST):
        chunk *= 2
    while chunk > 1 and one.block(chunk) > _SHARE * free:
        chunk //= 2
    return chunk
