"""The convolutional residual autoencoder.

Encoder: patches to channels, residual blocks on the latent grid, a 1x1 head. Decoder: residual blocks on the latent
grid, pixel shuffle to the full grid, residual blocks there, a 3x3 head. Both heads start at zero, so that under a
linear autoencoder the pair begins as principal components.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsda_fast.errors import InputError
from lsda_fast.models.head import Head
from lsda_fast.models.layers import GeoConv2d, GroupNorm, ResidualBlock

__all__ = ["ConvolutionalAutoencoder"]


class ConvolutionalAutoencoder(nn.Module):
    """Convolutions that wrap in longitude and go over the poles where the grid does.

    Parameters
    ----------
    shape : (C, H, W)
    latent_channels : int
    patch : int
        Grid points per latent place in each direction.
    width : int
        Channels on the latent grid; a multiple of 8.
    depth : int
        Residual blocks on the latent grid, encoder and decoder each.
    fine_width, fine_depth : int
        Channels and residual blocks of the decoder on the full grid.
    periodic : bool
        Longitude wraps.
    poles : (bool, bool)
        The grid reaches the north and the south pole.
    inputs : int, optional
        Channels that the encoder takes; C when not given.
    zero_head : bool
        Heads start at zero (for a residual) or at random (alone).
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        latent_channels: int,
        patch: int = 4,
        width: int = 128,
        depth: int = 3,
        fine_width: int = 32,
        fine_depth: int = 1,
        periodic: bool = True,
        zero_head: bool = False,
        poles: Sequence[bool] = (True, True),
        inputs: int | None = None,
    ) -> None:
        super().__init__()
        C, H, W = shape
        if H % patch or W % patch:
            raise InputError(f"patch {patch} does not divide the grid {H} x {W}")
        self.shape, self.patch = (C, H, W), patch
        self.latent_shape = (latent_channels, H // patch, W // patch)
        edges: dict[str, Any] = {"periodic": periodic, "poles": poles}
        blocks = lambda n, size: [ResidualBlock(size, **edges) for _ in range(n)]  # noqa: E731
        self.encoder = nn.Sequential(
            GeoConv2d((inputs or C) * patch * patch, width, **edges),
            *blocks(depth, width),
            GroupNorm(8, width),
            nn.SiLU(),
        )
        self.encoder_head = nn.Conv2d(width, latent_channels, 1)
        self.decoder = nn.Sequential(GeoConv2d(latent_channels, width, **edges), *blocks(depth, width))
        self.expand = nn.Conv2d(width, fine_width * patch * patch, 1)
        self.fine = nn.Sequential(*blocks(fine_depth, fine_width), GroupNorm(8, fine_width), nn.SiLU())
        self.decoder_head = GeoConv2d(fine_width, C, **edges, zero=zero_head)
        if zero_head:
            nn.init.zeros_(self.encoder_head.weight)
            nn.init.zeros_(self.encoder_head.bias)  # type: ignore[arg-type]

    def encode(self, x: Tensor) -> Tensor:
        """State (M, C, H, W), or what else the encoder takes, to latent (M, k, h, w)."""
        return self.encoder_head(self.encoder(F.pixel_unshuffle(x, self.patch)))

    def decode(self, z: Tensor) -> Tensor:
        """Latent (M, k, h, w) to state (M, C, H, W)."""
        return self.decoder_head(*self.features(z))

    def features(self, z: Tensor) -> tuple[Tensor, ...]:
        """What the head decodes: latent (M, k, h, w) to (M, fine_width, H, W)."""
        return (self.fine(F.pixel_shuffle(self.expand(self.decoder(z)), self.patch)),)

    def heads(self) -> tuple[Head, ...]:
        """The decoder's last convolution."""
        return (Head.of_convolution(self.decoder_head, self.shape),)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL of N(mean, exp(log_variance)) from N(0, 1), averaged over the latent's numbers."""
    return 0.5 * torch.mean(mean.square() + log_variance.exp() - 1.0 - log_variance)
