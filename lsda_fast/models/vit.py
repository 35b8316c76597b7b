"""Vision-transformer autoencoder with window attention, the state compressor of LO-SDA and Align-DA.

A state x (M, C, H, W) is cut into patches of p x q points. Each patch is one token of the grid
(h, w) = (H/p, W/q), and two towers of pre-norm blocks turn tokens into latent values and back::

    encode  z = head(tower(embed(patches(x)) + e)),  e = rows[i] + columns[j]
    decode  x = pixels(head(tower(embed(z) + e)))

Every `global_every`-th block attends to all tokens. The local blocks between take the windows in turn, and
every other one shifts its window by half. Where longitude wraps, without the embedding of columns
(`longitude_embedding=False`), no meridian is special, and a rolled state gives the rolled latent. With
`zero_head`, both heads start at zero, so that under a linear autoencoder the pair begins as principal components.

The windows, their order and the embedding follow VAEformer (arXiv 2405.03376).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lsda_fast.errors import InputError
from lsda_fast.models.head import Head
from lsda_fast.models.windows import Tower, Windows

__all__ = ["ViTAutoencoder"]


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
    zero_head : heads start at zero (for a residual) or at random (alone).

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
        zero_head: bool = False,
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
        self.encoder = Tower(plan, width, heads, mlp_ratio, longitude)
        self.encoder_head = nn.Linear(width, 2 * latent_channels)
        self.decoder_embed = nn.Linear(latent_channels, width)
        self.decoder = Tower(plan, width, heads, mlp_ratio, longitude)
        self.decoder_head = nn.Linear(width, C * p * q)
        if zero_head:
            for parameter in (*self.encoder_head.parameters(), *self.decoder_head.parameters()):
                nn.init.zeros_(parameter)

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
        patches = self.decoder_head(self._tokens(z)).unflatten(-1, (self.shape[0], *self.patch))
        return patches.permute(0, 3, 1, 4, 2, 5).flatten(-2).flatten(-3, -2)

    def features(self, z: Tensor) -> tuple[Tensor, ...]:
        """What the head decodes: latents z (M, latent_channels, h, w) to tokens (M, width, h, w)."""
        return (self._tokens(z).movedim(-1, 1),)

    def heads(self) -> tuple[Head, ...]:
        """The projection of tokens to patches."""
        (C, _, _), (p, q), (_, h, w) = self.shape, self.patch, self.latent_shape
        bias = self.decoder_head.bias.reshape(C, p, q).repeat(1, h, w)
        return (Head(self.decoder_head.weight[:, None], bias, self.shape, self.patch),)

    def _tokens(self, z: Tensor) -> Tensor:
        return self.decoder(self.decoder_embed(z.permute(0, 2, 3, 1)))

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
