"""Vision-transformer autoencoder with window attention, the state compressor of LO-SDA and Align-DA.

A state x (M, C, H, W) is cut into patches of p x q points. Each patch is one token of the grid
(h, w) = (H/p, W/q), and two towers of pre-norm blocks turn tokens into latent values and back::

    encode  z = head(tower(embed(patches(x)) + e)),  e = rows[i] + columns[j]
    decode  x = pixels(head(tower(embed(z) + e)))
    block   u = u + A(norm(u)),  u = u + MLP(norm(u)),  A = softmax(Q K^T / sqrt(d) + mask) V

Every `global_every`-th block attends to all tokens. The local blocks between take the windows in turn, and
every other one shifts its window by half. Where longitude wraps, that shift is a plain roll; without the
embedding of columns (`longitude_embedding=False`) no meridian is then special, and a rolled state gives the
rolled latent. The mask cuts every other border and hides the padding.

The windows, their order and the embedding follow VAEformer (arXiv 2405.03376), the shifts follow Swin
(arXiv 2103.14030).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsda_fast.errors import InputError

__all__ = ["ViTAutoencoder", "Windows"]


@dataclass(frozen=True)
class Windows:
    """How the token grid (h, w) is cut into attention windows.

    Parameters
    ----------
    grid : (h, w) of the tokens.
    size : (a, b) of one window, at most the grid.
    shift : (s, t), offset of the cuts in tokens, less than the size.
    periodic : columns w - 1 and 0 are neighbours.
    """

    grid: tuple[int, int]
    size: tuple[int, int]
    shift: tuple[int, int] = (0, 0)
    periodic: bool = False

    @property
    def padded(self) -> tuple[int, int]:
        """The grid, each axis rounded up to whole windows."""
        (h, w), (a, b) = self.grid, self.size
        return -(-h // a) * a, -(-w // b) * b

    def split(self, u: Tensor) -> Tensor:
        """Tokens (M, h, w, D) to windows (M, n, L, D), L = a b; the padding is zero and `mask` hides it."""
        (h, w), (hp, wp), (a, b), (s, t) = self.grid, self.padded, self.size, self.shift
        if t and self.periodic:
            # Before the padding: neighbours across the date line must stay neighbours.
            u = u.roll(-t, -2)
        if (hp, wp) != (h, w):
            u = F.pad(u, (0, 0, 0, wp - w, 0, hp - h))
        if s:
            u = u.roll(-s, -3)
        if t and not self.periodic:
            u = u.roll(-t, -2)
        u = u.unflatten(-2, (wp // b, b)).unflatten(-4, (hp // a, a))
        return u.transpose(-4, -3).flatten(-3, -2).flatten(-4, -3)

    def merge(self, u: Tensor) -> Tensor:
        """Windows (M, n, L, D) back to tokens (M, h, w, D), the inverse of `split`."""
        (h, w), (hp, wp), (a, b), (s, t) = self.grid, self.padded, self.size, self.shift
        u = u.unflatten(-3, (hp // a, wp // b)).unflatten(-2, (a, b)).transpose(-4, -3)
        u = u.flatten(-3, -2).flatten(-4, -3)
        if s:
            u = u.roll(s, -3)
        if t and not self.periodic:
            u = u.roll(t, -2)
        u = u[..., :h, :w, :]
        return u.roll(t, -2) if t and self.periodic else u

    def mask(self, device: torch.device) -> Tensor | None:
        """Which pairs may attend, bool (n, L, L); None where every pair of every window may.

        The shift brings opposite borders into one window and the padding brings in empty tokens, so a pair
        may attend when both lie in the same part. Padding sees padding: no row of the softmax is empty.
        """
        cut = self.shift[0] or (self.shift[1] and not self.periodic)
        if not cut and self.padded == self.grid:
            return None
        rows, columns = self._parts(0, False, device), self._parts(1, self.periodic, device)
        parts = (3 * rows[:, None, :, None] + columns[None, :, None, :]).flatten(2).flatten(0, 1)
        return parts[:, :, None] == parts[:, None, :]

    def _parts(self, axis: int, wraps: bool, device: torch.device) -> Tensor:
        """Part of each position of a split axis (windows, size): 0 kept, 1 brought around, 2 padding."""
        length, padded, size, shift = self.grid[axis], self.padded[axis], self.size[axis], self.shift[axis]
        # Computed, not stored: a buffer would be lost on the way through the meta device.
        position = torch.arange(padded, device=device)
        if wraps:
            part = 2 * (position >= length).long()
        else:
            source = (position + shift) % padded
            part = (position >= padded - shift).long() + 2 * (source >= length).long()
        return part.unflatten(0, (padded // size, size))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, u: Tensor, windows: Windows, mask: Tensor | None) -> Tensor:
        # The projection comes before the split, so that padding costs nothing but its share of the scores.
        qkv = windows.split(self.qkv(u)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.movedim(-3, 0).transpose(-3, -2).unbind(0)
        # Written out because the fused scaled_dot_product_attention kernels have no forward-mode derivative:
        # Gauss-Newton takes torch.func.jvp through `decode`, and it must be the transpose of torch.func.vjp.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], float("-inf"))
        mixed = scores.softmax(-1) @ v
        return self.out(windows.merge(mixed.transpose(-3, -2).flatten(-2)))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(mlp_ratio * width)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, u: Tensor, windows: Windows, mask: Tensor | None) -> Tensor:
        u = u + self.attention(self.norm1(u), windows, mask)
        return u + self.mlp(self.norm2(u))


class _Tower(nn.Module):
    """Position embedding, blocks and last LayerNorm: tokens (M, h, w, D) to features (M, h, w, D)."""

    def __init__(self, plan: Sequence[Windows], width: int, heads: int, mlp_ratio: float, longitude: bool) -> None:
        super().__init__()
        self.plan = tuple(plan)
        h, w = plan[0].grid
        self.rows = nn.Parameter(nn.init.trunc_normal_(torch.empty(h, 1, width), std=0.02))
        self.columns: nn.Parameter | None = None
        if longitude:
            self.columns = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, w, width), std=0.02))
        self.blocks = nn.ModuleList(_Block(width, heads, mlp_ratio) for _ in self.plan)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, u: Tensor) -> Tensor:
        masks = {windows: windows.mask(u.device) for windows in dict.fromkeys(self.plan)}
        u = u + self.rows
        if self.columns is not None:
            u = u + self.columns
        for windows, block in zip(self.plan, self.blocks):
            u = block(u, windows, masks[windows])
        return self.norm(u)


class ViTAutoencoder(nn.Module):
    """Autoencoder of two vision-transformer towers with window attention.

    Parameters
    ----------
    shape : (C, H, W) of the normalised states.
    latent_channels : channels of the latent.
    patch : (p, q), grid points per token; must divide (H, W).
    width, depth, heads : size D of a token, blocks per tower, attention heads; heads must divide width.
    windows : (rows, columns) in tokens, taken in turn by the local blocks; cropped to the token grid.
    global_every : every `global_every`-th block attends globally; 1 makes all blocks global.
    mlp_ratio : hidden size of the MLP over D.
    periodic : longitude wraps around.
    longitude_embedding : tokens carry their longitude, as in VAEformer; always so where longitude does not
        wrap. Without it a state rolled by whole windows gives the rolled latent, but among the tokens that
        attend to each other, columns of one latitude are an unordered set.

    Attributes
    ----------
    latent_shape : (latent_channels, H/p, W/q).

    Raises
    ------
    InputError
        When a size is not positive, the patch does not divide the grid, or heads do not divide width.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        latent_channels: int,
        patch: Sequence[int] = (4, 4),
        width: int,
        depth: int,
        heads: int,
        windows: Sequence[Sequence[int]],
        global_every: int,
        mlp_ratio: float = 4.0,
        periodic: bool,
        longitude_embedding: bool = True,
    ) -> None:
        super().__init__()
        counts = [latent_channels, width, depth, heads, global_every, int(mlp_ratio * width), len(windows)]
        named = "latent_channels, width, depth, heads, global_every, mlp_ratio * width, number of windows"
        for name, sizes, count in (
            ("shape", shape, 3),
            ("patch", patch, 2),
            (named, counts, 7),
            *(("a window", window, 2) for window in windows),
        ):
            if len(sizes) != count or min(sizes) < 1:
                raise InputError(f"{name} came as {list(sizes)}; {count} positive integers are accepted.")
        C, H, W = shape
        p, q = patch
        if H % p or W % q:
            raise InputError(f"patch {p} x {q} came for grid {H} x {W}; a divisor of the grid is accepted.")
        if width % heads:
            raise InputError(f"{heads} heads came for width {width}; a divisor of the width is accepted.")

        self.shape, self.patch = (C, H, W), (p, q)
        self.latent_shape = (latent_channels, H // p, W // q)
        plan = _plan(self.latent_shape[1:], depth, windows, global_every, periodic)
        longitude = longitude_embedding or not periodic
        self.encoder_embed = nn.Linear(C * p * q, width)
        self.encoder = _Tower(plan, width, heads, mlp_ratio, longitude)
        self.encoder_head = nn.Linear(width, 2 * latent_channels)
        self.decoder_embed = nn.Linear(latent_channels, width)
        self.decoder = _Tower(plan, width, heads, mlp_ratio, longitude)
        self.decoder_head = nn.Linear(width, C * p * q)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent of x (M, C, H, W), each (M, latent_channels, h, w).

        The log-variance lies in [-30, 20]. Raises InputError when x has another shape.
        """
        _check("a state", x, self.shape)
        (_, h, w), (p, q) = self.latent_shape, self.patch
        patches = x.unflatten(-1, (w, q)).unflatten(-3, (h, p)).permute(0, 2, 4, 1, 3, 5).flatten(-3)
        values = self.encoder_head(self.encoder(self.encoder_embed(patches)))
        mean, logvar = values.permute(0, 3, 1, 2).chunk(2, dim=1)
        return mean.contiguous(), logvar.contiguous().clamp(-30.0, 20.0)

    def encode(self, x: Tensor) -> Tensor:
        """Mean latent z (M, latent_channels, h, w) of states x (M, C, H, W); InputError for another shape."""
        return self.moments(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """States (M, C, H, W) of latents z (M, latent_channels, h, w); InputError for another shape."""
        _check("a latent", z, self.latent_shape)
        tokens = self.decoder(self.decoder_embed(z.permute(0, 2, 3, 1)))
        patches = self.decoder_head(tokens).unflatten(-1, (self.shape[0], *self.patch))
        return patches.permute(0, 3, 1, 4, 2, 5).flatten(-2).flatten(-3, -2)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction (M, C, H, W) of states x (M, C, H, W) through the mean latent."""
        return self.decode(self.encode(x))


def _plan(
    grid: tuple[int, int], depth: int, windows: Sequence[Sequence[int]], global_every: int, periodic: bool
) -> list[Windows]:
    """Windows of each block; the turn counts local blocks only: VAEformer has three windows, then global."""
    (h, w), local = grid, 0
    plan = []
    for i in range(depth):
        size, shift = grid, (0, 0)
        if (i + 1) % global_every:
            rows, columns = windows[local % len(windows)]
            size = (min(rows, h), min(columns, w))
            if local % 2:
                # A window that covers its axis has nothing to gain from a shift.
                shift = (size[0] // 2 * (size[0] < h), size[1] // 2 * (size[1] < w))
            local += 1
        plan.append(Windows(grid, size, shift, periodic))
    return plan


def _check(what: str, values: Tensor, shape: tuple[int, int, int]) -> None:
    if values.ndim != 4 or tuple(values.shape[1:]) != shape:
        accepted = ", ".join(map(str, shape))
        raise InputError(f"{what} came with shape {tuple(values.shape)}; (M, {accepted}) is accepted.")
