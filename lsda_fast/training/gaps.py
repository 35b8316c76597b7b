"""Gaps for training: modalities, channels and points of some samples go missing; the encoder learns to do without.

Points go in blocks of 1, 2, 4, 8 or 16 each way, a random share of them: what stations leave out, and swaths.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lsda_fast.training.config import GapConfig

__all__ = ["with_gaps"]


def with_gaps(
    fields: Tensor, modalities: Sequence[Sequence[int]], config: GapConfig, generator: torch.Generator
) -> Tensor:
    """Fields (M, C, H, W) with NaN where something went missing.

    Parameters
    ----------
    fields : Tensor, shape (M, C, H, W)
    modalities : sequence of sequences of int
        Channels of each modality.
    config : GapConfig
    generator : torch.Generator
        On the CPU: the same gaps on any device.
    """
    draw = lambda *size: torch.rand(size, generator=generator)  # noqa: E731
    missing = torch.zeros(fields.shape, dtype=torch.bool)
    (M, C, H, W), n = fields.shape, len(modalities)
    touched = draw(M) < config.samples
    kept, keeper = draw(M, n) >= config.modality, torch.randint(n, (M,), generator=generator)
    kept[torch.arange(M), keeper] |= ~kept.any(1)
    channels = draw(M, C) < config.channel
    for i in touched.nonzero()[:, 0].tolist():
        missing[i, channels[i]] = True
        for m, places in enumerate(modalities):
            missing[i, list(places)] |= ~kept[i, m]
            if draw(1) < config.points:
                missing[i, list(places)] |= _blocks(H, W, generator)
    return fields.masked_fill(missing.to(fields.device), torch.nan)


def _blocks(H: int, W: int, generator: torch.Generator) -> Tensor:
    size = 2 ** int(torch.randint(5, (), generator=generator))
    share = torch.rand((), generator=generator)
    coarse = torch.rand(-(-H // size), -(-W // size), generator=generator) < share
    return coarse.repeat_interleave(size, 0).repeat_interleave(size, 1)[:H, :W]
