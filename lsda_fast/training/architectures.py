"""The networks that a configuration asks for, on the layout of the states."""

from typing import Any

from lsda_fast.errors import InputError
from lsda_fast.layout import StateLayout
from lsda_fast.package import Architecture
from lsda_fast.training.config import TrainingConfig, WindowConfig

__all__ = [
    "autoencoder_architecture",
    "denoiser_architecture",
    "forecaster_architecture",
    "trajectory_architecture",
    "whitening_architecture",
    "window_architecture",
]


def autoencoder_architecture(config: TrainingConfig, layout: StateLayout) -> Architecture:
    """State to latent and back; InputError for settings that do not go together."""
    c = config.autoencoder
    if c.kl > 0 and c.kind != "vit":
        raise InputError(f"autoencoder kind {c.kind!r} has no moments for kl = {c.kl:g}; only `vit` has")
    if c.kind == "identity":
        return Architecture("identity", {"shape": list(layout.shape)})
    common: dict[str, Any] = {"shape": list(layout.shape), "latent_channels": c.latent_channels}
    linear = {**common, "patch": [c.patch, c.patch] if c.patch else None}
    if c.kind == "linear":
        return Architecture("linear", linear)
    if c.patch is None:
        raise InputError(f"autoencoder kind {c.kind!r} needs a patch; without one only `linear` is accepted")
    kind = c.kind.removeprefix("residual_")
    if kind == "convolutional":
        network = {**common, "patch": c.patch, **_edges(layout), **c.settings}
    else:
        network = {**common, "patch": [c.patch, c.patch], "periodic": layout.grid.periodic, **c.settings}
    if not c.kind.startswith("residual_"):
        return Architecture(kind, network)
    return Architecture("residual", {"linear": linear, "residual": {"name": kind, **network, "zero_head": True}})


def forecaster_architecture(config: TrainingConfig, layout: StateLayout) -> Architecture:
    """State to state over the lead."""
    c = config.forecaster
    return Architecture("unet", {"shape": list(layout.shape), "modes": c.modes, **_edges(layout), **c.settings})


def whitening_architecture(config: TrainingConfig, latent_shape: tuple[int, ...]) -> Architecture:
    """S, the covariance of the background's latent error."""
    return Architecture(config.whitening.kind, {"latent_shape": list(latent_shape), **config.whitening.settings})


def denoiser_architecture(config: TrainingConfig, latent_shape: tuple[int, ...]) -> Architecture:
    """The prior's network."""
    c = config.denoiser
    settings = {"latent_shape": list(latent_shape), "prediction": c.prediction, **c.settings}
    if c.networks > 1:
        return Architecture("ensemble", {"networks": c.networks, **settings})
    return Architecture("transformer", settings)


def trajectory_architecture(config: WindowConfig, layout: StateLayout, latent_shape: tuple[int, ...]) -> Architecture:
    """The covariance of trajectories; zonal where the latent has longitudes all round."""
    zonal = layout.grid.periodic and latent_shape[-1] > 1
    return Architecture("stationary", {"latent_shape": list(latent_shape), "zonal": zonal, **config.trajectory})


def window_architecture(config: WindowConfig, layout: StateLayout, latent_shape: tuple[int, ...]) -> Architecture:
    """The network of windows."""
    settings = {"latent_shape": list(latent_shape), "size": config.size, "prediction": config.prediction}
    edges = _edges(layout) if config.kind == "unet" else {}
    return Architecture(config.kind, settings | edges | config.settings)


def _edges(layout: StateLayout) -> dict[str, Any]:
    """What convolutions must know of the grid's borders."""
    return {"periodic": layout.grid.periodic, "poles": list(layout.grid.poles)}
