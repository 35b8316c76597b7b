"""The multimodal autoencoder: principal components of patches with gaps, and a residual network that sees the gaps.

    z = S^-1 V' (E[x | known] / u - mean) + N(known values, mask),     x = u (mean + V S z + residual decoder(z))

E is Gaussian (``models.gaps``): N begins at zero, so that the pair begins as the best linear estimate from any subset
of modalities, channels and points, and as the principal components where nothing is missing. The first layer of N is
linear in values and masks: the sum of one encoder per modality, each on its own channels, of which an absent one, all
zeros, adds nothing. The units u decide what the latent is spent on. The decoder is that of ``ResidualAutoencoder``,
with its heads and derivatives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.models.gaps import PatchGaussian
from lsda_fast.models.head import Head
from lsda_fast.models.inputs import ModalityInputs
from lsda_fast.models.linear import ResidualAutoencoder

__all__ = ["MultimodalAutoencoder"]


class MultimodalAutoencoder(ResidualAutoencoder):
    """Any subset of modalities to one latent.

    Parameters
    ----------
    linear : dict
        Settings of the linear part, with a ``patch``.
    residual : dict
        Of a convolutional autoencoder without ``inputs``, which follow from the modalities.
    modalities, grid
        As for ``ModalityInputs``.
    units : sequence of float, optional
        In which errors of each channel count: above 1, less than their size. 1 when not given.
    """

    units: Tensor

    def __init__(
        self,
        linear: dict[str, Any],
        residual: dict[str, Any],
        modalities: Mapping[str, Mapping[str, Any]],
        grid: Mapping[str, Sequence[float]] | None = None,
        units: Sequence[float] | None = None,
    ) -> None:
        C, H, W = linear["shape"]
        inputs = ModalityInputs(C, modalities, grid)
        super().__init__(linear, {"name": "convolutional", **residual, "inputs": 2 * inputs.total})
        self.inputs = inputs
        self.gaps = PatchGaussian((inputs.total, H, W), self.linear.patch)
        if units is not None and len(units) != C:
            raise InputError(f"{len(units)} units came; accepted are {C}, one per channel")
        u = torch.ones(C) if units is None else torch.tensor(list(units))
        self.register_buffer("units", u[:, None, None], persistent=False)

    def encode(self, x: Tensor, others: Mapping[str, Tensor] | None = None) -> Tensor:
        """Channels (M, C, H, W) and modalities beside them, NaN where missing, to latent (M, k, h, w)."""
        return self.encode_inputs(self.inputs(x, others))

    def encode_inputs(self, fields: Tensor) -> Tensor:
        """The same from what ``inputs`` makes of them, (M, C + D, H, W)."""
        known = ~fields.isnan()
        values = torch.where(known, fields - self.gaps.mean, 0)
        seen = torch.cat([values, known.to(values.dtype)], 1)
        whole = self.gaps(fields)[:, : self.shape[0]] / self.units
        return self.linear.encode(whole) + self.residual.encode(seen)

    def decode(self, z: Tensor) -> Tensor:
        """Latent (M, k, h, w) to state (M, C, H, W)."""
        return super().decode(z) * self.units

    def heads(self) -> tuple[Head, ...]:
        """The heads of the two, in the channels' units."""
        each = lambda head: self.units.repeat_interleave(head.patch[0] * head.patch[1], 0)  # noqa: E731
        return tuple(
            replace(head, weight=head.weight * each(head), bias=head.bias * self.units) for head in super().heads()
        )

    @torch.no_grad()
    def fit(self, fields: Tensor, *, batch: int = 64) -> None:
        """The linear parts, from what ``inputs`` makes of normalised states (T, C + D, H, W)."""
        self.gaps.fit(fields, batch=batch)
        states = fields[:, : self.shape[0]]
        if states.isnan().any():
            device = self.gaps.mean.device
            filled = [self.gaps(part.to(device))[:, : self.shape[0]].cpu() for part in fields.split(batch)]
            states = torch.cat(filled)
        self.linear.fit(states / self.units.cpu(), batch=batch)
