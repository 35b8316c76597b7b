"""A compact learned forecast model: state to state over a fixed lead, in normalised units.

x(t + lead) = x(t) + L x(t) + N(x(t)). L is a ridge regression between principal components of the whole domain,
fitted in closed form (for small domains, where it is hard to beat); N is a U-Net with residual blocks whose head
starts at zero.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsda_fast.errors import InputError
from lsda_fast.models.layers import GeoConv2d, GroupNorm, ResidualBlock

__all__ = ["Forecaster"]


class Forecaster(nn.Module):
    """Persistence plus a linear and a nonlinear tendency.

    Parameters
    ----------
    shape : (C, H, W)
    modes : int
        Principal components of the linear part; 0 for none.
    width : int
        Channels of the U-Net's finest grid, a multiple of 8; 0 for none.
    depth : int
        Residual blocks per resolution.
    patch : int
        Grid points that the U-Net's finest places hold in each direction.
    scales : int
        Resolutions, each half the one before.
    periodic : bool
        Longitude wraps.
    poles : (bool, bool)
        The grid reaches the north and the south pole.
    calendar : int
        How many of the leading numbers that tell season and time of day are read.
    """

    mean: Tensor
    vectors: Tensor
    matrix: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        modes: int = 0,
        width: int = 64,
        depth: int = 1,
        patch: int = 2,
        scales: int = 2,
        periodic: bool = True,
        calendar: int = 4,
        poles: Sequence[bool] = (True, True),
    ) -> None:
        super().__init__()
        C, H, W = shape
        unit = patch * 2 ** (scales - 1)
        if width and (H % unit or W % unit):
            raise InputError(f"a U-Net of patch {patch} and {scales} scales does not divide the grid {H} x {W}")
        modes = min(modes, C * H * W)
        self.shape, self.modes, self.patch, self.width = tuple(shape), modes, patch, width
        self.calendar = calendar
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("vectors", torch.zeros(C * H * W, modes))
        self.register_buffer("matrix", torch.zeros(modes + calendar, modes))
        if width:
            edges: dict[str, Any] = {"periodic": periodic, "poles": poles}
            self.embed = GeoConv2d(C * patch * patch, width, **edges)
            self.place = nn.Parameter(torch.zeros(width, H // patch, 1))
            self.season = nn.Linear(calendar, width, bias=False) if calendar else None
            block = lambda size: nn.Sequential(*[ResidualBlock(size, **edges) for _ in range(depth)])  # noqa: E731
            sizes = [width * 2**i for i in range(scales)]
            self.down = nn.ModuleList(block(size) for size in sizes)
            self.reduce = nn.ModuleList(nn.Conv2d(4 * a, b, 1) for a, b in pairwise(sizes))
            self.expand = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in pairwise(sizes))
            self.up = nn.ModuleList(block(size) for size in sizes[:-1])
            self.head = nn.Sequential(
                GroupNorm(8, width), nn.SiLU(), GeoConv2d(width, C * patch * patch, **edges, zero=True)
            )

    @torch.no_grad()
    def fit_linear(self, before: Tensor, after: Tensor, calendar: Tensor, *, ridge: float) -> None:
        """The mean state, and a ridge regression of the tendency on the leading components and the calendar.

        ``before`` and ``after`` are states (T, C, H, W) one lead apart, ``calendar`` (T, n) belongs to ``before``.
        """
        before, after, calendar = (t.to(self.mean.device) for t in (before, after, calendar))
        self.mean.copy_(before.mean(0))
        if not self.modes:
            return
        rows = (before - self.mean).flatten(1).double()
        vectors = torch.linalg.eigh(rows.T @ rows)[1].flip(1)[:, : self.modes]
        self.vectors.copy_(vectors)
        predictors = torch.cat([rows @ vectors, calendar[:, : self.calendar].double()], dim=1)
        target = (after - before).flatten(1).double() @ vectors
        gram = predictors.T @ predictors
        gram.diagonal().add_(ridge * gram.trace() / len(gram))
        self.matrix.copy_(torch.linalg.solve(gram, predictors.T @ target))

    def forward(self, x: Tensor, calendar: Tensor) -> Tensor:
        """State (M, C, H, W) and its calendar (M, n) to the state one lead later."""
        calendar = calendar[:, : self.calendar]
        y = x
        if self.modes:
            predictors = torch.cat([(x - self.mean).flatten(1) @ self.vectors, calendar], dim=1)
            y = y + (predictors @ self.matrix @ self.vectors.T).reshape(x.shape)
        return y + self._network(x, calendar) if self.width else y

    def _network(self, x: Tensor, calendar: Tensor) -> Tensor:
        h = self.embed(F.pixel_unshuffle(x - self.mean, self.patch)) + self.place
        if self.season is not None:
            h = h + self.season(calendar)[:, :, None, None]
        skips = []
        for block, reduce in zip(self.down, self.reduce):
            h = block(h)
            skips.append(h)
            h = reduce(F.pixel_unshuffle(h, 2))
        h = self.down[-1](h)
        for block, expand, skip in zip(reversed(self.up), reversed(self.expand), reversed(skips)):
            h = block(skip + F.pixel_shuffle(expand(h), 2))
        return F.pixel_shuffle(self.head(h), self.patch)
