"""Known architectures, rebuilt by name from a package's manifest. Nothing here runs code from a package."""

from typing import Any

from torch import nn

from lsda_fast.errors import InputError
from lsda_fast.models.convolutional import ConvolutionalAutoencoder
from lsda_fast.models.denoiser import EnsembleDenoiser, TransformerDenoiser
from lsda_fast.models.forecaster import Forecaster
from lsda_fast.models.linear import LinearAutoencoder, ResidualAutoencoder
from lsda_fast.models.vit import ViTAutoencoder
from lsda_fast.models.whitening import DiagonalWhitening, FullWhitening, Whitening
from lsda_fast.models.zonal_whitening import ZonalWhitening

__all__ = [
    "AUTOENCODERS",
    "DENOISERS",
    "FORECASTERS",
    "WHITENINGS",
    "ConvolutionalAutoencoder",
    "DiagonalWhitening",
    "EnsembleDenoiser",
    "Forecaster",
    "FullWhitening",
    "LinearAutoencoder",
    "ResidualAutoencoder",
    "TransformerDenoiser",
    "ViTAutoencoder",
    "Whitening",
    "ZonalWhitening",
    "build",
    "build_autoencoder",
]

AUTOENCODERS: dict[str, type[nn.Module]] = {
    "linear": LinearAutoencoder,
    "convolutional": ConvolutionalAutoencoder,
    "vit": ViTAutoencoder,
    "residual": ResidualAutoencoder,
}
DENOISERS: dict[str, type[nn.Module]] = {"ensemble": EnsembleDenoiser, "transformer": TransformerDenoiser}
WHITENINGS: dict[str, type[nn.Module]] = {
    "diagonal": DiagonalWhitening,
    "full": FullWhitening,
    "zonal": ZonalWhitening,
}
FORECASTERS: dict[str, type[nn.Module]] = {"unet": Forecaster}


def build(registry: dict[str, type[nn.Module]], name: str, settings: dict[str, Any]) -> nn.Module:
    """A module by name; InputError when the name or a setting is unknown."""
    if name not in registry:
        raise InputError(f"architecture {name!r} is unknown; accepted: {', '.join(registry)}")
    try:
        return registry[name](**settings)
    except TypeError as error:
        raise InputError(f"architecture {name!r} does not take these settings: {error}") from error


def build_autoencoder(name: str, **settings: Any) -> nn.Module:
    """An autoencoder by name."""
    return build(AUTOENCODERS, name, settings)
