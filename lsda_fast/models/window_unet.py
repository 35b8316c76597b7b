"""The network of SDA for windows of states (Rozet & Louppe 2023, arXiv:2306.10574): a U-Net whose channels are states.

Every level of the U-Net halves the grid; a block is x + conv(silu(conv(norm(x + p)))), p a projection of the noise
level, and the way up adds what the way down had on the same grid. As published: hidden channels (32, 64, 128) for
latents and (64, 128, 256) for states, 3 blocks a level, kernels of 3, 64 numbers for the noise level, ``eps``, and
padding that is circular in both directions. ``circular=False`` pads as the grid is: over the date line and the poles.

With matrix products in a lower precision (``models.precision``, autocast) images stay in it from one convolution to the
next, activations and sums included; norms are float32.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsda_fast.errors import InputError
from lsda_fast.kernels.geo_pad import geo_pad
from lsda_fast.models.layers import level_embedding, multiplied_in

__all__ = ["WindowUNet"]


class Edges(NamedTuple):
    """How the grid goes on: in a circle both ways, or as ``geo_pad`` has it; ``single`` for one row alone."""

    circular: bool
    periodic: bool
    poles: Sequence[bool]
    single: bool


class WindowUNet(nn.Module):
    """U-Net on windows of latents, modulated by the noise level.

    Parameters
    ----------
    latent_shape : (c, h, w)
    size : int
        States of a window.
    hidden : sequence of int
        Channels of the levels.
    blocks : int
        Blocks a level, on the way down and on the way up.
    kernel : int
        Odd, at least 3.
    embedding : int
        Numbers that tell the noise level; even.
    prediction : str
        For ``wiener`` the network reads the linear-Gaussian estimate beside the noised states, and starts at zero.
    circular : bool
        Padding as published; else by ``periodic`` and ``poles``, as for ``geo_pad``.
    calendar : int
        Numbers per window that tell time of day and season; 0 for none.

    Raises
    ------
    InputError
        A kernel that is even or below 3.
    """

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        size: int = 5,
        hidden: Sequence[int] = (32, 64, 128),
        blocks: int = 3,
        kernel: int = 3,
        embedding: int = 64,
        prediction: str = "eps",
        circular: bool = True,
        periodic: bool = True,
        poles: Sequence[bool] = (True, True),
        calendar: int = 0,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0 or kernel < 3:
            raise InputError(f"a kernel of {kernel} came; accepted is an odd one of at least 3")
        self.latent_shape, self.size, self.embedding = tuple(latent_shape), size, embedding
        channels, edges = size * latent_shape[0], Edges(circular, periodic, tuple(poles), latent_shape[1] == 1)
        corrects = prediction == "wiener"
        self.level = nn.Sequential(nn.Linear(embedding, 4 * embedding), nn.SiLU(), nn.Linear(4 * embedding, embedding))
        self.season = nn.Linear(calendar, embedding) if calendar else None
        inputs = [channels * (2 if corrects else 1), *hidden[:-1]]
        self.heads = nn.ModuleList(
            _Conv(a, b, kernel, edges, stride=1 if i == 0 else 2) for i, (a, b) in enumerate(zip(inputs, hidden))
        )
        self.down, self.up = (
            nn.ModuleList(nn.ModuleList(_Block(b, kernel, embedding, edges) for _ in range(blocks)) for b in hidden)
            for _ in range(2)
        )
        self.norms = nn.ModuleList(_ChannelNorm(b) for b in hidden)
        self.tails = nn.ModuleList(_Conv(b, a, kernel, edges) for a, b in zip([channels, *hidden[:-1]], hidden))
        if corrects:
            for parameter in self.tails[0].parameters():
                nn.init.zeros_(parameter)

    def predict(self, scaled: Tensor, log_rho: Tensor, season: Tensor | None = None) -> Tensor:
        """F (N, size, c, h, w) of windows as the network reads them (``models.window_input``), one noise level each.

        ``log_rho`` is (N,), ``season`` (N, n) the time of the windows' centres.
        """
        level = self.level(level_embedding(log_rho, self.embedding))
        if self.season is not None and season is not None:
            level = level + self.season(season[:, : self.season.in_features])
        # Channels last in memory, side by side where the norms read them.
        x, grids = scaled.flatten(1, 2).contiguous(memory_format=torch.channels_last), []
        for head, blocks in zip(self.heads, self.down):
            x = head(x)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, level)
            grids.append(x)
        for i in reversed(range(len(grids))):
            for block in self.up[i]:  # type: ignore[attr-defined]
                x = block(x, level)
            x = self.norms[i](x)
            if i > 0:
                low = x.to(grids[i - 1].dtype)  # a copy of a quarter of the size
                x = self.tails[i](F.interpolate(low, size=grids[i - 1].shape[2:])) + grids[i - 1]
        return self.tails[0](x).unflatten(1, (self.size, -1)).to(scaled.dtype)


class _Conv(nn.Module):
    """A convolution of odd kernel, padded as the edges are."""

    def __init__(self, inputs: int, outputs: int, kernel: int, edges: Edges, stride: int = 1) -> None:
        super().__init__()
        # Where there is one row there is nothing north or south to see.
        self.conv = nn.Conv2d(inputs, outputs, (1 if edges.single else kernel, kernel), stride=stride)
        self.edges, self.margin = edges, kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H', W'), in the precision that is multiplied in."""
        return self.conv(self._pad(x.to(multiplied_in(self.conv))))

    def _pad(self, x: Tensor) -> Tensor:
        n, edges = self.margin, self.edges
        if edges.single and edges.circular:
            return torch.cat([x[..., -n:], x, x[..., :n]], dim=-1)
        x = geo_pad(x, n, edges.periodic, edges.poles, edges.circular)
        return x[..., n:-n, :] if edges.single else x


class _ChannelNorm(nn.LayerNorm):
    """Every place normalised over its channels."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same, in the precision of the weights."""
        return super().forward(x.movedim(1, -1).to(self.weight.dtype)).movedim(-1, 1)


class _Block(nn.Module):
    """x + conv(silu(conv(norm(x + p))))."""

    def __init__(self, channels: int, kernel: int, embedding: int, edges: Edges) -> None:
        super().__init__()
        self.project = nn.Linear(embedding, channels)
        self.norm = _ChannelNorm(channels)
        self.conv1, self.conv2 = (_Conv(channels, channels, kernel, edges) for _ in range(2))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """x (N, channels, H, W), level (N, embedding)."""
        return x + self.conv2(F.silu(self.conv1(self.norm(x + self.project(level)[:, :, None, None].to(x.dtype)))))
