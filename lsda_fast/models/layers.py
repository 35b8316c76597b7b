"""Layers that know the sphere (``kernels.geo_pad``), and attention modulated by the noise level.

Attention is written out, because forward-mode derivatives need it: flash kernels have none.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsda_fast.kernels.geo_pad import geo_pad

__all__ = [
    "Attention",
    "GeoConv2d",
    "GroupNorm",
    "ResidualBlock",
    "TransformerBlock",
    "level_embedding",
    "multiplied_in",
    "passes",
]


class GeoConv2d(nn.Module):
    """A convolution of odd kernel that keeps the grid, padded by ``geo_pad``."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        periodic: bool,
        poles: Sequence[bool] = (True, True),
        zero: bool = False,
    ) -> None:
        super().__init__()
        self.periodic, self.poles, self.margin = periodic, tuple(poles), kernel // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel)
        if zero:
            nn.init.zeros_(self.conv.weight)
            nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    @property
    def pad(self) -> tuple[Any, ...]:
        """What ``geo_pad`` is told."""
        return self.margin, self.periodic, self.poles

    def forward(self, x: Tensor) -> Tensor:
        """(M, inputs, H, W) -> (M, outputs, H, W)."""
        # Padded in the precision that is multiplied in: half the copies where that is the lower one.
        answer = self.conv(geo_pad(x.to(multiplied_in(self.conv)), *self.pad))
        return answer if torch.is_autocast_enabled(x.device.type) else answer.to(x.dtype)


def multiplied_in(conv: nn.Conv2d) -> torch.dtype:
    """The precision of a convolution's products: autocast's where that is on."""
    device = conv.weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else conv.weight.dtype


class GroupNorm(nn.GroupNorm):
    """Group normalisation through layer_norm: the native one lacks forward-mode derivatives for some memory layouts."""

    def forward(self, x: Tensor) -> Tensor:
        """(M, width, H, W) -> the same."""
        grouped = x.reshape(len(x), self.num_groups, -1)
        normal = F.layer_norm(grouped, grouped.shape[2:], eps=self.eps).reshape(x.shape)
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), the second convolution zero to begin with."""

    def __init__(self, width: int, *, periodic: bool, poles: Sequence[bool] = (True, True), groups: int = 8) -> None:
        super().__init__()
        self.norm1, self.norm2 = GroupNorm(groups, width), GroupNorm(groups, width)
        self.conv1 = GeoConv2d(width, width, periodic=periodic, poles=poles)
        self.conv2 = GeoConv2d(width, width, periodic=periodic, poles=poles, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        """(M, width, H, W) -> the same."""
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))

    def branch(self) -> list[nn.Module]:
        """The layers that x is added to, in their order."""
        return [self.norm1, nn.SiLU(), self.conv1, self.norm2, nn.SiLU(), self.conv2]


def passes(layers: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, bool, tuple[Any, ...]]]:
    """Layers as the fused operations take them: a norm with the SiLU after it, and with what ``geo_pad`` would be told.

    Yields
    ------
    (nn.Module, bool, tuple)
        A layer, whether SiLU belongs to it, and how its result is padded. After one that pads, a ``GeoConv2d`` is its
        bare convolution.
    """
    waiting = list(layers)
    while waiting:
        layer, silu = waiting.pop(0), False
        if not isinstance(layer, GroupNorm):
            yield layer, False, ()
            continue
        if waiting and isinstance(waiting[0], nn.SiLU):
            waiting, silu = waiting[1:], True
        if waiting and isinstance(waiting[0], GeoConv2d):
            yield layer, silu, waiting[0].pad
            waiting[0] = waiting[0].conv
        else:
            yield layer, silu, ()


Pair = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Multi-head attention of tokens to themselves or to others."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def keys_values(self, context: Tensor) -> Pair:
        """Of the tokens (M, n', width): each (M, heads, n', width / heads)."""
        M, n, _ = context.shape
        k, v = self.key_value(context).reshape(M, n, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return k, v

    def forward(self, x: Tensor, context: Pair | None = None) -> Tensor:
        """(M, n, width) -> the same; ``context`` is the ``keys_values`` of what is attended to, x's when not given."""
        M, n, width = x.shape
        q = self.query(x).reshape(M, n, self.heads, -1).transpose(1, 2)
        k, v = self.keys_values(x) if context is None else context
        weights = (q @ k.mT * (width // self.heads) ** -0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(M, n, width))


class TransformerBlock(nn.Module):
    """Attention, cross-attention to the background where asked, and an MLP, each modulated by the noise level.

    The modulation is adaLN-zero (Peebles & Xie 2023, arXiv:2212.09748). A single token has nobody to attend to and
    skips attention.
    """

    def __init__(self, width: int, heads: int, *, tokens: int, cross: bool, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads) if tokens > 1 else None
        self.cross = Attention(width, heads) if cross else None
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.branches = 1 + (self.attention is not None) + cross
        self.modulation = nn.Linear(width, 3 * self.branches * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, level: Tensor, background: Pair | None) -> Tensor:
        """x (M, n, width), level (M or 1, width), the background's keys and values -> (M, n, width)."""
        shift, scale, gate = self.modulation(F.silu(level)).reshape(len(level), self.branches, 3, 1, -1).unbind(2)
        i = 0
        if self.attention is not None:
            x = x + gate[:, i] * self.attention(self.norm(x) * (1 + scale[:, i]) + shift[:, i])
            i += 1
        if self.cross is not None:
            x = x + gate[:, i] * self.cross(self.norm(x) * (1 + scale[:, i]) + shift[:, i], background)
            i += 1
        return x + gate[:, i] * self.mlp(self.norm(x) * (1 + scale[:, i]) + shift[:, i])


class TransformerBlocks(nn.ModuleList):
    """``TransformerBlock`` after ``TransformerBlock``."""

    def keys_values(self, background: Tensor) -> list[Pair | None]:
        """What each block attends to of the background tokens (M, n, width)."""
        return [None if block.cross is None else block.cross.keys_values(background) for block in self]  # type: ignore[union-attr, operator]

    def forward(self, x: Tensor, level: Tensor, background: Sequence[Pair | None]) -> Tensor:
        """x (M, n, width), level (M or 1, width), ``keys_values`` of the background -> (M, n, width)."""
        for block, pair in zip(self, background):
            x = block(x, level, pair)
        return x


def level_embedding(log_rho: Tensor, width: int) -> Tensor:
    """Sinusoids of the logarithm of the noise-to-signal ratio, (M,) -> (M, width)."""
    frequency = torch.exp(torch.linspace(math.log(0.1), math.log(10.0), width // 2, device=log_rho.device))
    phase = log_rho[:, None] * frequency.to(log_rho.dtype)
    return torch.cat([phase.sin(), phase.cos()], dim=-1)
