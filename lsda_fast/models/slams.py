"""The published autoencoder of SLAMS: a stack of 5 x 5 convolutions to five channels at every grid point, and back.

Channels 12 -> 9 -> 8 -> 7 -> 6 -> 5 and 5 -> 6 -> 7 -> 8 -> 9 -> 10, batch normalisation and ReLU between them (Qu et
al. 2024, arXiv:2404.06665, and its code). What is missing is the mean: 0, without a mask. Latents are in units of their
standard deviation, as the diffusion of them assumes. Here the convolutions go over the date line and the poles.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lsda_fast.models.head import Head
from lsda_fast.models.inputs import ModalityInputs
from lsda_fast.models.layers import GeoConv2d

__all__ = ["SlamsAutoencoder"]


class SlamsAutoencoder(nn.Module):
    """Stride-1 convolutions, without compression in space.

    Parameters
    ----------
    shape : (C, H, W)
    latent_channels : int
    widths : sequence of int
        Channels between the inputs and the latent.
    kernel : int
    modalities, grid
        As for ``ModalityInputs``.
    periodic, poles
        As for ``geo_pad``.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        latent_channels: int = 5,
        widths: Sequence[int] = (9, 8, 7, 6),
        kernel: int = 5,
        modalities: Mapping[str, Mapping[str, Any]] | None = None,
        grid: Mapping[str, Sequence[float]] | None = None,
        periodic: bool = True,
        poles: Sequence[bool] = (True, True),
    ) -> None:
        super().__init__()
        C, H, W = shape
        self.shape, self.latent_shape = (C, H, W), (latent_channels, H, W)
        self.inputs = ModalityInputs(C, modalities or {}, grid)
        edges: dict[str, Any] = {"kernel": kernel, "periodic": periodic, "poles": poles}
        self.encoder = nn.Sequential(
            *(self._stage(a, b, edges) for a, b in pairwise([self.inputs.total, *widths])),
            GeoConv2d(widths[-1], latent_channels, **edges),
        )
        up = [latent_channels, *reversed(widths)]
        self.decoder = nn.Sequential(*(self._stage(a, b, edges) for a, b in pairwise(up)))
        self.decoder_head = GeoConv2d(widths[0], C, **edges)
        self.register_buffer("mean", torch.zeros(latent_channels))
        self.register_buffer("std", torch.ones(latent_channels))

    @staticmethod
    def _stage(inputs: int, outputs: int, edges: dict[str, Any]) -> nn.Module:
        return nn.Sequential(GeoConv2d(inputs, outputs, **edges), nn.BatchNorm2d(outputs), nn.ReLU())

    def encode(self, x: Tensor, others: Mapping[str, Tensor] | None = None) -> Tensor:
        """Channels (M, C, H, W) and modalities beside them, NaN where missing, to latent (M, k, H, W)."""
        return self.encode_inputs(self.inputs(x, others))

    def encode_inputs(self, fields: Tensor) -> Tensor:
        """The same from what ``inputs`` makes of them, (M, C + D, H, W)."""
        # Channels last in memory: in bfloat16 faster than planes.
        z = self.encoder(fields.nan_to_num().contiguous(memory_format=torch.channels_last))
        return (z - self.mean[:, None, None]) / self.std[:, None, None]

    def decode(self, z: Tensor) -> Tensor:
        """Latent (M, k, H, W) to state (M, C, H, W)."""
        return self.decoder_head(*self.features(z))

    def features(self, z: Tensor) -> tuple[Tensor, ...]:
        """What the head decodes: latent (M, k, H, W) to (M, widths[0], H, W)."""
        z = z * self.std[:, None, None] + self.mean[:, None, None]
        return (self.decoder(z.contiguous(memory_format=torch.channels_last)),)

    def heads(self) -> tuple[Head, ...]:
        """The decoder's last convolution."""
        return (Head.of_convolution(self.decoder_head, self.shape),)

    @torch.no_grad()
    def standardize(self, fields: Tensor, *, batch: int = 64) -> None:
        """Give the latents of these inputs (T, C + D, H, W) zero mean and unit variance; states stay as they are."""
        z = torch.cat([self.encode_inputs(part.to(self.mean.device)).cpu() for part in fields.split(batch)])
        z = z.to(self.mean.device) * self.std[:, None, None] + self.mean[:, None, None]
        self.mean.copy_(z.mean((0, 2, 3)))
        self.std.copy_(z.std((0, 2, 3)).clamp_min(1e-6))
