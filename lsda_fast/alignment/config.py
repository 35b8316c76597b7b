"""The configuration of an alignment: one YAML file, checked by pydantic, with presets beside this module."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from lsda_fast.training.config import Optimization
from lsda_fast.training.config_file import Section, read_config

__all__ = [
    "PRESETS",
    "AlignmentConfig",
    "CandidatesConfig",
    "LoraConfig",
    "ObjectiveConfig",
    "PairsConfig",
    "load_config",
]

PRESETS = ("align_tiny", "align_nature", "align_paper")


class CandidatesConfig(Section):
    """Samples of the prior for every background."""

    members: int = Field(32, ge=2, description="Candidates per background.")
    steps: int | None = Field(None, ge=1, description="Noise levels of the sampler; its own when not given.")
    solver: str = Field("auto", description="Transition between levels; the guidance's own for auto.")
    block: int = Field(32, ge=1, description="Members that go through the networks together.")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="Of the denoiser's matrix products.")


class PairsConfig(Section):
    """Winners and losers; see ``pairing``."""

    count: int = Field(4000, ge=1, description="Pairs to train on, spread evenly over the backgrounds.")
    top: int = Field(5, ge=1, description="One reward: winners and losers of a background are so many best and worst.")
    quantile: float = Field(
        0.1, gt=0, le=0.5, description="Several rewards: winners lie in this top share of all, losers in the bottom."
    )
    widest: float = Field(
        0.5, gt=0, le=0.5, description="A background without winners or losers has its share widened up to this."
    )
    select: Literal["intersection", "dominance"] = Field(
        "intersection", description="Pairs of winners and losers of those shares, or the pairs that differ most."
    )
    per_case: int = Field(24, ge=1, description="Dominance: pairs of a background.")
    held_out: float = Field(0.15, gt=0, lt=1, description="Share of the dates, the last ones, kept for validation.")


class LoraConfig(Section):
    """Low-rank updates of the linear layers in place of a full fine-tune."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(16.0, gt=0, description="Updates are scaled by alpha / rank.")


class ObjectiveConfig(Section):
    """The preference loss; see ``losses``."""

    loss: Literal["dpo", "ipo", "dspo"] = "dpo"
    beta: float | None = Field(
        None,
        gt=0,
        description="How strongly the model is held to the reference; 8000, and 0.01 for dspo, when not given.",
    )
    units: Literal["training", "eps", "latent"] = Field(
        "training",
        description="Squared errors as in training, those of the noise, as published, or those of the autoencoder's "
        "latent, where the large scales count that rewards are about.",
    )
    anchor: float = Field(
        0.0, ge=0, description="Weight, in units of beta, of the error of latents that are better than the winners."
    )
    toward: float = Field(
        0.0, ge=0, le=1, description="These lie so far on the way from the winner to the reference analysis."
    )
    repeats: int = Field(4, ge=1, description="Draws of noise and level in which held-out pairs are validated.")
    lora: LoraConfig | None = Field(None, description="A full fine-tune when not given.")

    @model_validator(mode="after")
    def _anchored(self) -> Self:
        if self.toward and not self.anchor:
            raise ValueError(f"toward {self.toward:g} came without an anchor; accepted is an anchor above 0")
        return self

    @property
    def strength(self) -> float:
        """beta, or the loss's own."""
        return self.beta if self.beta is not None else {"dpo": 8000.0, "ipo": 8000.0, "dspo": 0.01}[self.loss]


class AlignmentOptimization(Optimization):
    """How the denoiser is fine-tuned."""

    steps: int = Field(500, ge=0)
    lr: float = Field(1e-5, gt=0)
    warmup: int = Field(25, ge=0)
    weight_decay: float = Field(0.0, ge=0, description="Of full weights it would pull them away from the reference's.")
    ema: float = Field(0.99, ge=0, lt=1)
    validate_every: int = Field(25, ge=1)
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "float32", description="The loss is a small difference of errors, which bfloat16 products drown in rounding."
    )
    share: float = Field(
        1.0, gt=0, le=1, description="The aligned weights lie so far on the way from the reference's to the last ones."
    )


class AlignmentConfig(Section):
    """Everything that ``lsda align`` does."""

    rewards: list[str] = Field(["accuracy"], min_length=1, description="What candidates are judged by.")
    period: tuple[str, str] | None = Field(None, description="First and last time; all of the data when not given.")
    dates: int | None = Field(None, ge=2, description="Backgrounds, evenly spread over the period; all when not given.")
    draws: int = Field(1, ge=1, description="Backgrounds of a date, from different perturbations.")
    perturbation: float | None = Field(
        None,
        ge=0,
        description="Of the states that backgrounds start from; the package's training's when not given.",
    )
    lead_hours: float = Field(48.0, gt=0, description="Of the forecasts that are rewarded.")
    forecast_model: str | None = Field(
        None,
        description="MODULE:FUNCTION that makes the model of these from the package; the package's own when not given.",
    )
    seed: int = Field(0, ge=0)
    storage: Literal["float32", "float16"] = Field("float32", description="Precision of large weights on disk.")
    checkpoint_minutes: float = Field(3.0, gt=0, description="Time between checkpoints.")
    candidates: CandidatesConfig = CandidatesConfig()
    pairs: PairsConfig = PairsConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimization: AlignmentOptimization = AlignmentOptimization()


def load_config(source: str | Path, **overrides: Any) -> AlignmentConfig:
    """An alignment preset by name or a YAML file, with top-level overrides; see ``config_file.read_config``."""
    return read_config(AlignmentConfig, source, "lsda_fast.alignment", PRESETS, overrides)
