"""No autoencoder: the latent is the state, for priors in the space of states."""

import torch
from torch import Tensor, nn

from lsda_fast.models.head import Head

__all__ = ["IdentityAutoencoder"]


class IdentityAutoencoder(nn.Module):
    """z = x.

    Parameters
    ----------
    shape : (C, H, W)
    """

    one: Tensor

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = self.latent_shape = (shape[0], shape[1], shape[2])
        self.register_buffer("one", torch.eye(shape[0])[:, None], persistent=False)

    def encode(self, x: Tensor) -> Tensor:
        """x itself, (M, C, H, W)."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """z itself, (M, C, H, W)."""
        return z

    def features(self, z: Tensor) -> tuple[Tensor, ...]:
        """What the head decodes: the latent."""
        return (z,)

    def heads(self) -> tuple[Head, ...]:
        """The identity of the channels."""
        return (Head(self.one, self.one.new_zeros(()), self.shape),)
