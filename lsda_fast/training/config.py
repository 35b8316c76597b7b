"""The training configuration: its sections, and its presets beside this module."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from lsda_fast.training.config_file import Section, read_config

__all__ = ["PRESETS", "Optimization", "Section", "TrainingConfig", "load_config", "read_config"]

PRESETS = ("tiny", "small", "nature", "paper", "slams_tiny", "slams", "slams_paper", "slams_pixel")


class Optimization(Section):
    """How a network is trained."""

    steps: int = Field(1000, ge=0, description="Optimiser steps; 0 leaves the network as it begins.")
    batch: int = Field(32, ge=1, description="Samples per step.")
    accumulate: int = Field(1, ge=1, description="Parts of a step's samples that are computed one after the other.")
    lr: float = Field(1e-3, gt=0, description="Peak learning rate of AdamW; warm-up, then cosine to zero.")
    warmup: int = Field(100, ge=0, description="Steps of linear warm-up.")
    weight_decay: float = Field(1e-3, ge=0, description="Decoupled weight decay.")
    ema: float = Field(0.999, ge=0, lt=1, description="Decay of the averaged weights, which are the ones kept.")
    validate_every: int = Field(100, ge=1, description="Steps between validations; the best averaged weights are kept.")
    patience: int | None = Field(
        None, ge=1, description="Validations in a row without a better one that end the training; none: all steps."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Of matrix products and convolutions (the weights stay float32); auto: bfloat16 on a GPU. On a CPU "
        "with AMX, bfloat16 takes half the time; on one without, more.",
    )


class GapConfig(Section):
    """What goes missing from the input of a multimodal autoencoder in training."""

    samples: float = Field(0.0, ge=0, le=1, description="Share of the samples that lose anything.")
    modality: float = Field(0.4, ge=0, le=1, description="Chance that such a sample loses a modality; one stays.")
    channel: float = Field(0.0, ge=0, le=1, description="That it loses a channel.")
    points: float = Field(0.0, ge=0, le=1, description="That a modality of it loses some of its points.")


class AutoencoderConfig(Section):
    """State to latent and back."""

    kind: Literal[
        "linear",
        "convolutional",
        "vit",
        "residual_convolutional",
        "residual_vit",
        "multimodal",
        "slams",
        "identity",
    ] = Field(
        "linear",
        description="Principal components, a network, a network on top of principal components; multimodal: the latter "
        "for inputs with gaps; slams: the published one; identity: none, the state itself.",
    )
    latent_channels: int = Field(64, ge=1, description="Numbers per latent place.")
    patch: int | None = Field(
        None, description="Grid points per latent place each way; none: one place, the whole domain."
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="Further settings of the network.")
    latent_noise: float = Field(0.0, ge=0, description="Noise on the latent in training, in its standard deviations.")
    kl: float = Field(0.0, ge=0, description="Weight of the KL term, for networks that give moments.")
    gaps: GapConfig = GapConfig()
    optimization: Optimization = Optimization()


class ModalityConfig(Section):
    """A modality beside the state, and where it comes from."""

    kind: Literal["in-situ", "satellite"] = Field(description="What measures it.")
    variables: list[str] = Field(min_length=1, description="Its channels or variables.")
    source: str | list[str] | None = Field(
        None, description="Path, pattern or paths of its data; none: the data set of the states."
    )
    decoded: bool = Field(True, description="Whether the decoder gives it, on the state's grid.")
    tolerance_hours: float = Field(0.0, ge=0, description="A state takes the nearest in time within this, or nothing.")
    shift_hours: float = Field(0.0, description="Added to its times: 12 for daily means stamped at midnight.")
    unit: float = Field(
        1.0, gt=0, description="Standard deviations that count as one in the autoencoder's error: above 1, less weight."
    )


class ForecasterConfig(Section):
    """State to state over the lead."""

    modes: int = Field(0, ge=0, description="Principal components of the linear part.")
    ridge: float = Field(1e-3, ge=0, description="Ridge penalty of the linear part, relative to the mean variance.")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="Further settings of the U-Net; width 0 for none."
    )
    folds: int = Field(1, ge=1, description="Backgrounds of a block of time come from a model that has not seen it.")
    optimization: Optimization = Optimization()


class BackgroundConfig(Section):
    """The backgrounds that the prior is trained on: forecasts from perturbed states."""

    perturbation: float = Field(
        0.0,
        ge=0,
        description="Scale of the initial perturbation: this times (state_i - state_j) / sqrt(2), i and j random.",
    )
    draws: int = Field(1, ge=1, description="Perturbed forecasts per training time.")


class WhiteningConfig(Section):
    """S, the covariance of the background's latent error."""

    kind: Literal["full", "zonal", "diagonal"] = Field("full", description="Its structure.")
    settings: dict[str, Any] = Field(default_factory=dict, description="Rank and reach of the zonal one.")
    calibrate: bool = Field(
        False, description="Scale S to the errors of the validation period; for backgrounds fitted in sample."
    )
    prior: bool = Field(True, description="The denoiser works on u = S^-1/2 (z - z_b); otherwise on z, as published.")


class DenoiserConfig(Section):
    """The prior's network."""

    prediction: Literal["wiener", "eps", "x0", "v", "score"] = Field("wiener", description="What its output means.")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="Width, depth, heads, patch, conditioning, dropout, leading."
    )
    networks: int = Field(1, ge=1, description="Networks trained side by side; the prior is their average.")
    condition_noise: float = Field(0.0, ge=0, description="Noise on the background latent in training.")
    spread_weight: float = Field(
        0.0, ge=0, description="Loss weight of latent i: variance_i to this power (full whitening)."
    )
    optimization: Optimization = Optimization()


class WindowConfig(Section):
    """The prior over trajectories, from windows of consecutive states; in the place of forecaster and denoiser."""

    size: int = Field(5, ge=1, description="States of a window; odd.")
    hours: float = Field(6.0, gt=0, description="Between one state and the next.")
    kind: Literal["transformer", "unet"] = Field("transformer", description="The network; `unet` is the published.")
    prediction: Literal["wiener", "eps", "x0", "v", "score"] = Field("wiener", description="What its output means.")
    settings: dict[str, Any] = Field(default_factory=dict, description="Further settings of the network.")
    trajectory: dict[str, Any] = Field(
        default_factory=dict, description="Rank, lags, reach and floor of the covariance in space and time."
    )
    optimization: Optimization = Optimization()

    @model_validator(mode="after")
    def _odd(self) -> Self:
        if self.size % 2 == 0:
            raise ValueError(f"size {self.size} is even; accepted are odd sizes")
        return self


class ScheduleConfig(Section):
    """The noise schedule."""

    kind: Literal["vp_cosine", "vp_linear", "edm"] = "edm"
    eta: float = 1e-3
    beta_min: float = 0.1
    beta_max: float = 20.0
    sigma_min: float = 2e-3
    sigma_max: float = 20.0


class TrainingConfig(Section):
    """Everything that ``lsda train`` does."""

    variables: list[str] | None = Field(None, description="Channels or variables; all of them when not given.")
    modalities: dict[str, ModalityConfig] = Field(
        default_factory=dict,
        description="What is encoded with the state, by name; channels follow the state's.",
    )
    train: tuple[str, str] | None = Field(
        None, description="First and last time of training; the first 80 % when not given."
    )
    validate_: tuple[str, str] | None = Field(None, alias="validate", description="Of validation; the next 10 %.")
    lead_hours: float = Field(24.0, gt=0, description="Lead of the forecast model, and of the backgrounds.")
    seed: int = Field(0, ge=0)
    missing: Literal["refuse", "mask"] = Field(
        "refuse", description="Missing values end the training, or leave their states out."
    )
    normalization: Literal["total", "anomaly"] = Field(
        "total",
        description="Channels in units of their standard deviation in space and time, or about the local time mean.",
    )
    observation_std: float = Field(
        0.1, gt=0, description="Default observation error, in each channel's standard deviations."
    )
    storage: Literal["float32", "float16"] = Field("float32", description="Precision of large weights on disk.")
    checkpoint_minutes: float = Field(3.0, gt=0, description="Time between checkpoints.")
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    forecaster: ForecasterConfig = ForecasterConfig()
    background: BackgroundConfig = BackgroundConfig()
    whitening: WhiteningConfig = WhiteningConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    window: WindowConfig | None = Field(None, description="With it, the prior is one over trajectories.")

    @model_validator(mode="after")
    def _one_prior(self) -> Self:
        others = ("lead_hours", "forecaster", "background", "whitening", "denoiser")
        defaults = {name: type(self).model_fields[name].default for name in others}
        set_ = [name for name in others if self.window and getattr(self, name) != defaults[name]]
        if set_:
            raise ValueError(
                f"`window` came with {', '.join(set_)}; accepted is a prior over trajectories or the other"
            )
        return self


def load_config(source: str | Path, **overrides: Any) -> TrainingConfig:
    """A training preset by name or a YAML file, with top-level overrides; see ``config_file.read_config``."""
    return read_config(TrainingConfig, source, "lsda_fast.training", PRESETS, overrides)
