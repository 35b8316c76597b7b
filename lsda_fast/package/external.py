"""Modules that a user brings: callables with or without weights, in the place of the package's own networks."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lsda_fast.errors import InputError

__all__ = ["External", "external_module"]


class External(nn.Module):
    """A user's callables as one module, so that weights are found and kept.

    Parameters
    ----------
    encode, decode : callable, optional
        Of an autoencoder: (M, C, H, W) to (M, *latent_shape), and back.
    call : callable, optional
        Of a denoiser: (z_t, t, z_b) to its prediction, or (windows, t).
    latent_shape : tuple of int
    """

    def __init__(
        self,
        encode: Callable[..., Tensor] | None = None,
        decode: Callable[..., Tensor] | None = None,
        call: Callable[..., Tensor] | None = None,
        latent_shape: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.latent_shape = latent_shape
        self._encode, self._decode, self._call = encode, decode, call
        owners = [getattr(f, "__self__", None) for f in (encode, decode, call)]
        self.owners = nn.ModuleList({id(o): o for o in owners if isinstance(o, nn.Module)}.values())

    def encode(self, x: Tensor) -> Tensor:
        """The user's encoder."""
        assert self._encode is not None
        return self._encode(x)

    def decode(self, z: Tensor) -> Tensor:
        """The user's decoder."""
        assert self._decode is not None
        return self._decode(z)

    def forward(self, *arguments: Tensor) -> Tensor:
        """The user's denoiser."""
        assert self._call is not None
        return self._call(*arguments)


def external_module(path: Path, name: str, settings: Mapping[str, Any], given: Mapping[str, Any]) -> nn.Module:
    """The caller's callables in the place of the external module ``name``; InputError when they are not given."""
    wanted = {"autoencoder": ("encoder", "decoder")}.get(name, (name,))
    missing = [part for part in wanted if part not in given]
    if missing:
        raise InputError(
            f"{path}: the {name} is external; pass {' and '.join(missing)} in Package.load(path, modules=...)"
        )
    if name == "autoencoder":
        shape = tuple(settings["latent_shape"])
        return External(encode=given["encoder"], decode=given["decoder"], latent_shape=shape)
    return External(call=given[name]) if name in ("denoiser", "window") else given[name]
