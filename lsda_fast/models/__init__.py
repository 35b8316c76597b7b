"""Known architectures, rebuilt by name from a package's manifest. Nothing here runs code from a package."""

from typing import Any

from torch import nn

from lsda_fast.errors import InputError
from lsda_fast.models.convolutional import ConvolutionalAutoencoder
from lsda_fast.models.denoiser import EnsembleDenoiser, TransformerDenoiser
from lsda_fast.models.forecaster import Forecaster
from lsda_fast.models.identity import IdentityAutoencoder
from lsda_fast.models.linear import LinearAutoencoder, ResidualAutoencoder
from lsda_fast.models.multimodal import MultimodalAutoencoder
from lsda_fast.models.slams import SlamsAutoencoder
from lsda_fast.models.stationary import StationaryTrajectories
from lsda_fast.models.trajectory_covariance import TrajectoryCovariance
from lsda_fast.models.vit import ViTAutoencoder
from lsda_fast.models.whitening import DiagonalWhitening, FullWhitening, Whitening
from lsda_fast.models.window_transformer import WindowTransformer
from lsda_fast.models.window_unet import WindowUNet
from lsda_fast.models.zonal_whitening import ZonalWhitening

__all__ = [
    "AUTOENCODERS",
    "DENOISERS",
    "FORECASTERS",
    "TRAJECTORIES",
    "WHITENINGS",
    "WINDOWS",
    "ConvolutionalAutoencoder",
    "DiagonalWhitening",
    "EnsembleDenoiser",
    "Forecaster",
    "FullWhitening",
    "IdentityAutoencoder",
    "LinearAutoencoder",
    "MultimodalAutoencoder",
    "ResidualAutoencoder",
    "SlamsAutoencoder",
    "StationaryTrajectories",
    "TrajectoryCovariance",
    "TransformerDenoiser",
    "ViTAutoencoder",
    "Whitening",
    "WindowTransformer",
    "WindowUNet",
    "ZonalWhitening",
    "build",
    "build_autoencoder",
]

AUTOENCODERS: dict[str, type[nn.Module]] = {
    "linear": LinearAutoencoder,
    "convolutional": ConvolutionalAutoencoder,
    "vit": ViTAutoencoder,
    "residual": ResidualAutoencoder,
    "multimodal": MultimodalAutoencoder,
    "slams": SlamsAutoencoder,
    "identity": IdentityAutoencoder,
}
DENOISERS: dict[str, type[nn.Module]] = {"ensemble": EnsembleDenoiser, "transformer": TransformerDenoiser}
WHITENINGS: dict[str, type[nn.Module]] = {
    "diagonal": DiagonalWhitening,
    "full": FullWhitening,
    "zonal": ZonalWhitening,
}
FORECASTERS: dict[str, type[nn.Module]] = {"unet": Forecaster}
WINDOWS: dict[str, type[nn.Module]] = {"transformer": WindowTransformer, "unet": WindowUNet}
TRAJECTORIES: dict[str, type[nn.Module]] = {"stationary": StationaryTrajectories}


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
