"""Linear autoencoders: principal components of patches, or of the whole domain, alone or under a nonlinear residual.

z = (x_patch - mean) V / s and x_patch = mean + V s z, with V the leading eigenvectors of the covariance of patches
and s their standard deviations, so every latent has unit variance. For small data sets the linear one is the better
autoencoder.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lsda_fast.errors import InputError
from lsda_fast.models.head import Head

__all__ = ["LinearAutoencoder", "ResidualAutoencoder"]


class LinearAutoencoder(nn.Module):
    """Patch-wise principal components.

    Parameters
    ----------
    shape : (C, H, W)
    latent_channels : int
    patch : (int, int), optional
        Rows and columns of a patch; the whole domain when not given.

    Raises
    ------
    InputError
        A patch that does not divide the grid, or more latents than a patch has numbers.
    """

    mean: Tensor
    vectors: Tensor
    std: Tensor

    def __init__(self, shape: tuple[int, int, int], latent_channels: int, patch: tuple[int, int] | None = None) -> None:
        super().__init__()
        C, H, W = shape
        self.patch = (patch[0], patch[1]) if patch else (H, W)
        if H % self.patch[0] or W % self.patch[1]:
            raise InputError(f"patch {self.patch} does not divide the grid {H} x {W}")
        size = C * math.prod(self.patch)
        if latent_channels > size:
            raise InputError(f"latent_channels = {latent_channels}; accepted is at most {size}, the numbers of a patch")
        self.shape = (C, H, W)
        self.latent_shape = (latent_channels, H // self.patch[0], W // self.patch[1])
        self.register_buffer("mean", torch.zeros(C, H, W))
        self.register_buffer("vectors", torch.eye(size)[:, :latent_channels].clone())
        self.register_buffer("std", torch.ones(latent_channels))

    def _patches(self, x: Tensor) -> Tensor:
        """(M, C, H, W) -> (M, h, w, C p q)."""
        M, C, _, _ = x.shape
        _, h, w = self.latent_shape
        p, q = self.patch
        return x.reshape(M, C, h, p, w, q).permute(0, 2, 4, 1, 3, 5).reshape(M, h, w, -1)

    def encode(self, x: Tensor) -> Tensor:
        """State (M, C, H, W) to latent (M, k, h, w)."""
        return ((self._patches(x - self.mean) @ self.vectors) / self.std).permute(0, 3, 1, 2)

    def decode(self, z: Tensor) -> Tensor:
        """Latent (M, k, h, w) to state (M, C, H, W)."""
        C, H, W = self.shape
        _, h, w = self.latent_shape
        p, q = self.patch
        patches = (z.permute(0, 2, 3, 1) * self.std) @ self.vectors.T
        x = patches.reshape(len(z), h, w, C, p, q).permute(0, 3, 1, 4, 2, 5).reshape(len(z), C, H, W)
        return x + self.mean

    def features(self, z: Tensor) -> tuple[Tensor, ...]:
        """What the head decodes: the latent itself."""
        return (z,)

    def heads(self) -> tuple[Head, ...]:
        """The components of a patch."""
        return (Head((self.vectors * self.std)[:, None], self.mean, self.shape, self.patch),)

    @torch.no_grad()
    def fit(self, states: Tensor, *, batch: int = 64) -> None:
        """Principal components of normalised states (T, C, H, W), about their time mean."""
        k = self.latent_shape[0]
        self.mean.copy_(states.mean(0))
        covariance = torch.zeros(len(self.vectors), len(self.vectors), dtype=torch.float64, device=self.mean.device)
        count = 0
        for part in states.split(batch):
            rows = self._patches(part.to(self.mean.device) - self.mean).flatten(0, 2).double()
            covariance += rows.T @ rows
            count += len(rows)
        values, vectors = torch.linalg.eigh(covariance / count)
        self.vectors.copy_(vectors.flip(1)[:, :k])
        self.std.copy_(values.flip(0)[:k].clamp_min(1e-12).sqrt())


class ResidualAutoencoder(nn.Module):
    """The sum of a linear autoencoder and a nonlinear one, encoder and decoder alike.

    Parameters
    ----------
    linear, residual : dict
        Settings of the two, ``residual`` with its ``name``; they must give the same latent shape.
    """

    def __init__(self, linear: dict[str, Any], residual: dict[str, Any]) -> None:
        super().__init__()
        from lsda_fast.models import build_autoencoder

        self.linear = LinearAutoencoder(**linear)
        network: Any = build_autoencoder(**residual)
        self.residual = network
        self.shape, self.latent_shape = self.linear.shape, self.linear.latent_shape
        if tuple(network.latent_shape) != self.latent_shape:
            raise InputError(
                f"the linear part has latents {self.latent_shape}, the residual {tuple(network.latent_shape)}; "
                "they must be the same"
            )

    def encode(self, x: Tensor) -> Tensor:
        """State (M, C, H, W) to latent (M, k, h, w)."""
        return self.linear.encode(x) + self.residual.encode(x - self.linear.mean)

    def decode(self, z: Tensor) -> Tensor:
        """Latent (M, k, h, w) to state (M, C, H, W)."""
        return self.linear.decode(z) + self.residual.decode(z)

    def features(self, z: Tensor) -> tuple[Tensor, ...]:
        """What the heads of the two decode."""
        return self.linear.features(z) + self.residual.features(z)

    def heads(self) -> tuple[Head, ...]:
        """The heads of the two."""
        return self.linear.heads() + self.residual.heads()
