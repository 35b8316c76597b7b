"""A transformer for windows of latents: a token is a place of the latent grid with all states of the window.

It is ``TransformerDenoiser`` with the states of a window as channels. Under ``wiener`` it reads the noised states and
their linear-Gaussian estimate side by side, and corrects the latter.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lsda_fast.models.denoiser import TransformerDenoiser

__all__ = ["WindowTransformer"]


class WindowTransformer(nn.Module):
    """Transformer on windows of latents.

    Parameters
    ----------
    latent_shape : (c, h, w)
    size : int
        States of a window.
    prediction : str
    **settings
        Width, depth, heads, patch, dropout and calendar of ``TransformerDenoiser``.
    """

    def __init__(
        self, latent_shape: tuple[int, int, int], size: int = 5, prediction: str = "wiener", **settings: Any
    ) -> None:
        super().__init__()
        c, h, w = latent_shape
        self.latent_shape, self.size, self.corrects = tuple(latent_shape), size, prediction == "wiener"
        conditioning = "concatenate" if self.corrects else "none"
        self.network = TransformerDenoiser(
            (size * c, h, w), prediction=prediction, conditioning=conditioning, **settings
        )

    def predict(self, scaled: Tensor, log_rho: Tensor, season: Tensor | None = None) -> Tensor:
        """F (N, size, c, h, w) of windows as the network reads them (``models.window_input``); see ``WindowUNet``."""
        noised, base = scaled.chunk(2, dim=2) if self.corrects else (scaled, torch.zeros_like(scaled))
        F = self.network.predict(noised.flatten(1, 2), log_rho, base.flatten(1, 2), season)
        return F.unflatten(1, (self.size, -1))
