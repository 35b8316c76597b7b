"""The networks that a configuration asks for, on the layout of the states."""

from collections.abc import Sequence
from typing import Any

import torch

from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.errors import InputError
from lsda_fast.layout import StateLayout
from lsda_fast.modalities import Modality
from lsda_fast.models import AUTOENCODERS, DENOISERS, FORECASTERS, TRAJECTORIES, WHITENINGS, WINDOWS, build
from lsda_fast.package import Architecture
from lsda_fast.training.config import TrainingConfig, WindowConfig

__all__ = [
    "autoencoder_architecture",
    "check_networks",
    "denoiser_architecture",
    "forecaster_architecture",
    "trajectory_architecture",
    "whitening_architecture",
    "window_architecture",
]


def autoencoder_architecture(
    config: TrainingConfig, layout: StateLayout, modalities: Sequence[Modality] = ()
) -> Architecture:
    """State to latent and back; InputError for settings that do not go together."""
    c = config.autoencoder
    if (modalities or c.gaps.samples > 0) and c.kind not in ("multimodal", "slams"):
        raise InputError(f"autoencoder kind {c.kind!r} takes neither modalities nor gaps; multimodal and slams do")
    if c.kl > 0 and c.kind != "vit":
        raise InputError(f"autoencoder kind {c.kind!r} has no moments for kl = {c.kl:g}; only `vit` has")
    if c.kind == "identity":
        return Architecture("identity", {"shape": list(layout.shape)})
    common: dict[str, Any] = {"shape": list(layout.shape), "latent_channels": c.latent_channels}
    linear = {**common, "patch": [c.patch, c.patch] if c.patch else None}
    if c.kind == "slams":
        return Architecture("slams", {**common, **_modalities(layout, modalities), **_edges(layout), **c.settings})
    if c.kind == "linear":
        return Architecture("linear", linear)
    if c.patch is None:
        raise InputError(f"autoencoder kind {c.kind!r} needs a patch; without one only `linear` is accepted")
    kind = c.kind.removeprefix("residual_")
    if kind in ("convolutional", "multimodal"):
        network = {**common, "patch": c.patch, **_edges(layout), **c.settings}
    else:
        network = {**common, "patch": [c.patch, c.patch], "periodic": layout.grid.periodic, **c.settings}
    if c.kind == "multimodal":
        units = {name: config.modalities[m.name].unit for m in modalities[1:] if m.decoded for name in m.layout.names}
        settings = {"linear": linear, "residual": {**network, "zero_head": True}, **_modalities(layout, modalities)}
        return Architecture("multimodal", {**settings, "units": [units.get(name, 1.0) for name in layout.names]})
    if not c.kind.startswith("residual_"):
        return Architecture(kind, network)
    return Architecture("residual", {"linear": linear, "residual": {"name": kind, **network, "zero_head": True}})


def forecaster_architecture(config: TrainingConfig, layout: StateLayout) -> Architecture:
    """State to state over the lead."""
    c = config.forecaster
    return Architecture("unet", {"shape": list(layout.shape), "modes": c.modes, **_edges(layout), **c.settings})


def whitening_architecture(config: TrainingConfig, layout: StateLayout, latent_shape: tuple[int, ...]) -> Architecture:
    """S, the covariance of the background's latent error; InputError for a zonal one of a grid that does not close."""
    if config.whitening.kind == "zonal" and not layout.grid.periodic:
        raise InputError("whitening kind 'zonal' came for a grid that does not go round; accepted there are the others")
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
    # Networks of the published kind expect latents of unit variance.
    floor = 0.01 if config.prediction == "wiener" else 1.0
    settings = {"latent_shape": list(latent_shape), "zonal": zonal, "floor": floor}
    return Architecture("stationary", settings | config.trajectory)


def window_architecture(config: WindowConfig, layout: StateLayout, latent_shape: tuple[int, ...]) -> Architecture:
    """The network of windows."""
    settings = {"latent_shape": list(latent_shape), "size": config.size, "prediction": config.prediction}
    edges = _edges(layout) if config.kind == "unet" else {}
    return Architecture(config.kind, settings | edges | config.settings)


def check_networks(config: TrainingConfig, layout: StateLayout, modalities: Sequence[Modality]) -> None:
    """Build the schedule and every network once: InputError for settings that one does not take."""
    with torch.random.fork_rng(devices=[]):
        Schedule(**config.schedule.model_dump())
        spec = autoencoder_architecture(config, layout, modalities)
        autoencoder: Any = build(AUTOENCODERS, spec.name, spec.settings)
        shape = tuple(autoencoder.latent_shape)
        del autoencoder
        if config.window:
            specs = {
                "trajectory": (TRAJECTORIES, trajectory_architecture(config.window, layout, shape)),
                "window": (WINDOWS, window_architecture(config.window, layout, shape)),
            }
        else:
            specs = {
                "forecaster": (FORECASTERS, forecaster_architecture(config, layout)),
                "whitening": (WHITENINGS, whitening_architecture(config, layout, shape)),
                "denoiser": (DENOISERS, denoiser_architecture(config, shape)),
            }
        for registry, own in specs.values():
            build(registry, own.name, own.settings)


def _modalities(layout: StateLayout, modalities: Sequence[Modality]) -> dict[str, Any]:
    """What encoders must know of the modalities, see ``ModalityInputs``."""
    settings: dict[str, Any] = {}
    for modality in modalities:
        names = modality.layout.names
        settings[modality.name] = {
            "channels": [layout.index(name) for name in names] if modality.decoded else len(names)
        }
        if modality.layout.grid != layout.grid:
            settings[modality.name]["grid"] = modality.layout.grid.to_dict()
    if not modalities:
        settings["state"] = {"channels": list(range(len(layout.channels)))}
    own = any("grid" in setting for setting in settings.values())
    return {"modalities": settings} | ({"grid": layout.grid.to_dict()} if own else {})


def _edges(layout: StateLayout) -> dict[str, Any]:
    """What convolutions must know of the grid's borders."""
    return {"periodic": layout.grid.periodic, "poles": list(layout.grid.poles)}
