"""Training: autoencoder, forecast model, background statistics and denoiser, from any xarray-readable states."""

from lsda_fast.training.config import TrainingConfig
from lsda_fast.training.pipeline import train

__all__ = ["TrainingConfig", "train"]
