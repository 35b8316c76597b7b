"""The modules of a package, by name and settings as its manifest has them: the package's own, and a user's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lsda_fast.errors import InputError
from lsda_fast.models import (
    AUTOENCODERS,
    DENOISERS,
    FORECASTERS,
    TRAJECTORIES,
    WHITENINGS,
    WINDOWS,
    Whitening,
    ZonalWhitening,
    build,
)
from lsda_fast.package.external import External, external_module
from lsda_fast.package.files import checked_file, load_weights

__all__ = ["REGISTRIES", "Architecture", "load_modules", "users_modules"]

REGISTRIES = {
    "autoencoder": AUTOENCODERS,
    "denoiser": DENOISERS,
    "whitening": WHITENINGS,
    "forecaster": FORECASTERS,
    "trajectory": TRAJECTORIES,
    "window": WINDOWS,
}


@dataclass(frozen=True)
class Architecture:
    """Name and settings of a module; ``external`` is a module that the user brings."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


def users_modules(
    encoder: Callable[[Tensor], Tensor],
    decoder: Callable[[Tensor], Tensor],
    denoiser: Callable[..., Tensor],
    latent_shape: tuple[int, ...],
    whitening: Whitening | None,
    name: str = "denoiser",
) -> tuple[dict[str, nn.Module], dict[str, Architecture]]:
    """A user's callables as the modules of a package, and their architectures; see ``Package.from_modules``.

    ``name`` is the denoiser's: ``window`` for one of windows.
    """
    modules: dict[str, nn.Module] = {
        "autoencoder": External(encode=encoder, decode=decoder, latent_shape=tuple(latent_shape)),
        name: External(call=denoiser),
    }
    architectures = {
        "autoencoder": Architecture("external", {"latent_shape": list(latent_shape)}),
        name: Architecture("external"),
    }
    if whitening is not None:
        modules["whitening"] = whitening
        architectures["whitening"] = _whitening_architecture(whitening, latent_shape)
    return modules, architectures


def _whitening_architecture(whitening: Whitening, latent_shape: tuple[int, ...]) -> Architecture:
    """Name and settings of one of the package's own whitenings; any other is external."""
    name = next((name for name, kind in WHITENINGS.items() if type(whitening) is kind), "external")
    settings: dict[str, Any] = {} if name == "external" else {"latent_shape": list(latent_shape)}
    if isinstance(whitening, ZonalWhitening):
        settings |= {"rank": whitening.variance.shape[1], "reach": whitening.reach}
    return Architecture(name, settings)


def load_modules(
    path: Path, architectures: Mapping[str, Architecture], files: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, nn.Module]:
    """The modules of a package folder with their weights.

    Parameters
    ----------
    path : Path
        Folder of the package.
    architectures : mapping of str to Architecture
    files : mapping
        The manifest's sizes and hashes, by file name.
    given : mapping
        The caller's callables, for external modules.

    Raises
    ------
    InputError
        A module, architecture or setting that is unknown, an external one that is not given, or weights that are not
        those of the manifest.
    """
    modules: dict[str, nn.Module] = {}
    for name, architecture in architectures.items():
        if name not in REGISTRIES:
            raise InputError(f"{path}: module {name!r} is unknown; accepted: {', '.join(REGISTRIES)}")
        file = checked_file(path, f"{name}.safetensors", files)
        if architecture.name == "external":
            modules[name] = external_module(path, name, architecture.settings, given)
        else:
            modules[name] = build(REGISTRIES[name], architecture.name, architecture.settings)
        load_weights(modules[name], file)
    return modules
