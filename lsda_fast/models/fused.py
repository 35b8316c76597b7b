"""The same networks through the fused operations: ``norm_silu`` for convolutions, padding included; for transformers
``gated_residual_norm``, and ``window_attention`` where tokens attend to their like.

A transformer is one residual stream x, and every branch f_i reads a norm of it of its own. What the stream gains from a
branch and what the next one reads are made in one pass, over the borders of blocks and up to the last norm:

    n_0 = norm_0(x_0),  (x_i+1, n_i+1) = (x_i + gate_i f_i(n_i), norm_i+1(x_i+1))

Values and first derivatives are equal to rounding; there are no second derivatives.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsda_fast.kernels.gated_residual_norm import gated_residual_norm
from lsda_fast.kernels.norm_silu import norm_silu
from lsda_fast.kernels.window_attention import window_attention
from lsda_fast.models.denoiser import TransformerDenoiser
from lsda_fast.models.layers import (
    Attention,
    GroupNorm,
    Pair,
    ResidualBlock,
    TransformerBlock,
    TransformerBlocks,
    passes,
)
from lsda_fast.models.windows import Tower, WindowAttention, Windows

__all__ = ["fused"]


def fused(module: nn.Module) -> nn.Module:
    """A copy of an autoencoder, a denoiser or a forecaster that runs through the fused operations.

    Parameters
    ----------
    module : nn.Module

    Returns
    -------
    nn.Module
        Of the module's interface, with its own weights and buffers, not copies: what changes them in place, or moves
        them, is seen by both. Names in its ``state_dict`` differ.
    """
    replace = REPLACEMENTS.get(type(module))
    if replace is not None:
        return replace(module)
    twin = copy.copy(module)
    twin.__dict__["_modules"] = (
        {str(i): child for i, child in enumerate(_passes(module))}
        if type(module) is nn.Sequential
        else {name: child and fused(child) for name, child in module._modules.items()}
    )
    return twin


class FusedNorm(nn.Module):
    """Group or layer normalisation, SiLU where it follows, and the margins of the convolution behind it."""

    def __init__(self, norm: nn.GroupNorm | nn.LayerNorm, silu: bool = False, pad: Sequence[Any] = ()) -> None:
        super().__init__()
        self.weight, self.bias, self.silu, self.pad, self.eps = norm.weight, norm.bias, silu, pad, norm.eps
        self.groups = norm.num_groups if isinstance(norm, nn.GroupNorm) else None

    def forward(self, x: Tensor) -> Tensor:
        """The shape of x, with the margins."""
        return norm_silu(x, self.weight, self.bias, groups=self.groups, eps=self.eps, silu=self.silu, pad=self.pad)


class FusedResidual(nn.Module):
    """See ``ResidualBlock``."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.branch = nn.Sequential(*_passes(block.branch()))

    def forward(self, x: Tensor) -> Tensor:
        """(M, width, H, W) -> the same."""
        return x + self.branch(x)


class FusedBlocks(nn.Module):
    """All blocks of a ``TransformerDenoiser``, and its last norm."""

    def __init__(self, blocks: TransformerBlocks, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.blocks, self.norm, self.keys_values = blocks, norm, blocks.keys_values

    def forward(self, x: Tensor, level: Tensor, background: Sequence[Pair | None]) -> Tensor:
        """x (M, n, width), level (M or 1, width), ``keys_values`` of the background -> (M, n, width)."""
        active = F.silu(level)
        steps: list[Step] = []
        for block, pair in zip(self.blocks, background):
            assert isinstance(block, TransformerBlock)
            modulation = block.modulation(active).reshape(len(level), block.branches, 3, -1)
            shift, scale, gate = modulation.expand(len(x), -1, -1, -1).unbind(2)
            branches: list[Callable[[Tensor], Tensor]] = [block.mlp]
            if block.cross is not None:
                branches.insert(0, lambda n, cross=block.cross, pair=pair: cross(n, pair))  # type: ignore[misc]
            if block.attention is not None:
                branches.insert(0, lambda n, own=block.attention: _attend(own, n))  # type: ignore[misc]
            for i, branch in enumerate(branches):
                norm = {"scale": scale[:, i], "shift": shift[:, i], "eps": block.norm.eps}
                steps.append((branch, norm, gate[:, i]))
        return _stream(x, steps, _settings(self.norm))


class FusedTower(nn.Module):
    """See ``Tower``."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.plan, self.rows, self.columns, self.blocks, self.norm = (
            tower.plan,
            tower.rows,
            tower.columns,
            tower.blocks,
            tower.norm,
        )

    def forward(self, u: Tensor) -> Tensor:
        """Tokens (M, h, w, D) to features of the same shape."""
        biases = {windows: windows.bias(u) for windows in dict.fromkeys(self.plan)}
        u = u + self.rows
        if self.columns is not None:
            u = u + self.columns
        steps: list[Step] = []
        for windows, block in zip(self.plan, self.blocks):
            attend: Any = lambda n, f=block.attention, w=windows: _attend_inside(f, w, biases[w], n)  # noqa: E731
            steps += [(attend, _settings(block.norm1), None), (block.mlp, _settings(block.norm2), None)]  # type: ignore[arg-type, list-item]
        return _stream(u, steps, _settings(self.norm))


def _attend(layer: Attention, x: Tensor) -> Tensor:
    """``Attention`` of tokens x (M, n, width) to each other."""
    qkv = torch.cat([layer.query(x), layer.key_value(x)], -1).unflatten(-1, (3, layer.heads, -1))
    return layer.out(_mixed(qkv, None, layer.out))


def _attend_inside(layer: WindowAttention, windows: Windows, bias: Tensor | None, u: Tensor) -> Tensor:
    """``WindowAttention`` of tokens u (M, h, w, width)."""
    qkv = windows.split(layer.qkv(u)).unflatten(-1, (3, layer.heads, -1))
    mixed = _mixed(qkv.flatten(0, 1), bias, layer.out)
    return layer.out(windows.merge(mixed.unflatten(0, qkv.shape[:2])))


def _mixed(qkv: Tensor, bias: Tensor | None, out: nn.Linear) -> Tensor:
    """The attention's mean values (B, L, H d), from products in the precision of the weights that take them."""
    own = out.weight.dtype
    return window_attention(qkv.to(own), bias if bias is None else bias.to(own)).to(qkv.dtype).flatten(-2)


Step = tuple[Callable[[Tensor], Tensor], dict[str, Any], Tensor | None]


def _stream(x: Tensor, steps: Sequence[Step], last: dict[str, Any]) -> Tensor:
    """The module's equation: a branch, the arguments of its norm and its gate for every step."""
    n = norm_silu(x, **steps[0][1], silu=False)
    for i, (branch, _, gate) in enumerate(steps):
        norm = steps[i + 1][1] if i + 1 < len(steps) else last
        x, n = gated_residual_norm(x, branch(n), gate=gate, **norm)
    return n


def _settings(norm: nn.LayerNorm) -> dict[str, Any]:
    return {"weight": norm.weight, "bias": norm.bias, "eps": norm.eps}


def _passes(layers: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for layer, silu, pad in passes(layers):
        yield FusedNorm(layer, silu, pad) if isinstance(layer, GroupNorm) else fused(layer)


def _denoiser(module: TransformerDenoiser) -> nn.Module:
    """The last norm is the blocks'."""
    twin = copy.copy(module)
    blocks = FusedBlocks(module.blocks, module.norm)
    twin.__dict__["_modules"] = {**module._modules, "blocks": blocks, "norm": nn.Identity()}
    return twin


REPLACEMENTS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    GroupNorm: FusedNorm,
    ResidualBlock: FusedResidual,
    TransformerDenoiser: _denoiser,
    Tower: FusedTower,
}
