"""Candidates: N samples of the prior p(z | z_b) for every background, and their shards on disk.

Noise is keyed by (seed of the case, member), and members go through the networks in blocks of fixed places: a case's
candidates are the same whichever others were drawn, before or after an interruption.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lsda_fast.alignment.config import CandidatesConfig
from lsda_fast.guidance import Likelihood, ObsFree
from lsda_fast.package import Package
from lsda_fast.package.prior import to_latent
from lsda_fast.sampler import Sampler

__all__ = ["Candidates", "draw_candidates"]


class Candidates(NamedTuple):
    """The candidates of one date.

    Parameters
    ----------
    z : Tensor, shape (N, *latent)
        Latents of the autoencoder.
    background : Tensor, shape latent
    calendar : Tensor, shape (4,)
    """

    z: Tensor
    background: Tensor
    calendar: Tensor

    def save(self, path: Path, time: np.datetime64) -> None:
        """One shard, which says its date."""
        tensors = {name: value.cpu().contiguous() for name, value in self._asdict().items()}
        save_file(tensors, path, metadata={"time": str(time)})

    @classmethod
    def load(cls, path: Path) -> "Candidates":
        """Read a shard."""
        return cls(**load_file(path))


def draw_candidates(
    package: Package, background: Tensor, season: Tensor, config: CandidatesConfig, seed: int
) -> Candidates:
    """Samples of the prior for one background.

    Parameters
    ----------
    package : Package
    background : Tensor, shape (C, H, W)
        Normalised.
    season : Tensor, shape (4,)
        Its calendar.
    config : CandidatesConfig
    seed : int
    """
    with torch.no_grad():
        z_b = package.autoencoder.encode(background[None].to(package.device, package.dtype))
    precision = getattr(torch, config.precision)
    prior = package.prior(background, calendar=season, fused=True, precision=precision)
    nothing = torch.zeros(0, dtype=prior.dtype, device=prior.device)
    likelihood = Likelihood(lambda x: x.new_zeros(len(x), 0), nothing, nothing, nothing)
    block = min(config.block, config.members)
    sampler = Sampler(ObsFree(), solver=config.solver, steps=config.steps, block=block)
    samples = sampler(prior, likelihood, members=config.members, seed=seed)
    with torch.no_grad():
        return Candidates(to_latent(package, samples.z, z_b), z_b[0], season)
